"""Fetches the PASCAL VOC archive and unpacks it, so that the data set's folder is either complete or absent."""
import gzip
import logging
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from data.label_space import VOC
from utils.errors import UserError, one_line
from utils.storage.fetch import by_hand, fetch

VOC_URL = 'https://drive.google.com/file/d/1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH/view'
ARCHIVE = 'PASCAL_VOC.tgz'

GZIP = b'\x1f\x8b'  # how such files begin
CHUNK = 2 ** 20      # bytes

log = logging.getLogger('maskcontrast')


class _BadArchive(Exception):
    """The archive itself is faulty, so a retry with the same file is pointless."""


def fetch_voc(db_root: str | Path, url: str = VOC_URL) -> Path:
    """The folder `<db_root>/VOCSegmentation`, fetched first when it is missing: its presence means that it is complete.

    The data are PASCAL VOC 2012 with the SBD labels ("trainaug") and saliency masks, as published with MaskContrast
    (arXiv 2102.06191). An archive `<db_root>/PASCAL_VOC.tgz` that is there already is used and kept; one that is
    fetched here is deleted once it is unpacked. Several processes may call this at once.

    db_root: folder of the data sets, made when it is missing. url: of the archive, a Google Drive link or the file's own
    address. Raises `UserError` if the archive can't be fetched (Google Drive's quota, the network), is broken, or holds
    something else or members that point outside, and if there is no room. Nothing half-done is left in `db_root`.
    """
    folder, archive = Path(db_root) / VOC, Path(db_root) / ARCHIVE
    if folder.is_dir():
        return folder
    if os.path.lexists(folder):
        raise UserError(f'{folder} is a file or a broken link instead of the data: remove it and run again')
    given = archive.exists()
    if not given:
        fetch(url, archive, (GZIP,), 'a gzip archive', 'db_root in env.yml')
    log.info('unpacking %s to %s', archive, folder)
    try:
        _unpack(archive, folder)
    except _BadArchive as error:
        if given:
            raise UserError(f'{archive} is not usable ({one_line(error)}): delete it and run again') from error
        archive.unlink(missing_ok=True)
        raise UserError(f'{archive} as downloaded from {url} is not usable ({one_line(error)}) and was deleted: run again, '
                        f'or {by_hand(url, archive)}') from error
    except OSError as error:
        raise UserError(f'{archive} could not be unpacked to {folder} ({one_line(error)}): '
                        'make room there or choose another db_root in env.yml, and run again') from error
    if not given:
        archive.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path):
    """Unpack the archive's `VOCSegmentation/` as `folder`, by a rename after everything was read and checked.

    Raises `_BadArchive`, or OSError for errors of the disk.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{VOC}.', suffix='.tmp', dir=folder.parent) as temporary:
        source = Path(temporary) / VOC
        try:
            with gzip.open(archive) as stream:
                with tarfile.open(fileobj=stream, mode='r|') as tar:
                    tar.extractall(temporary, filter=member_filter)
                while stream.read(CHUNK):  # tar stops at its own end mark; gzip's checksum comes after it
                    pass
        except FileNotFoundError:
            if folder.is_dir():  # a process that ran beside this one has unpacked and deleted the archive
                return
            raise
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise _BadArchive(one_line(error)) from error
        missing = [name for name in ('', 'images', 'sets') if not (source / name).is_dir()]
        if missing:
            raise _BadArchive(f'it has no folder {(Path(VOC) / missing[0]).as_posix()}/')
        try:
            os.rename(source, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its folder is whole
                raise


def member_filter(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's `data` filter, which refuses what leads outside. A leading slash, which it strips, is refused too."""
    if member.name.startswith('/'):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)
