"""Fetches the PASCAL VOC archive and unpacks it, so that the data set's folder is either whole or absent."""
import gzip
import logging
import os
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from utils.errors import UserError
from utils.files import atomic_file

VOC_URL = 'https://drive.google.com/file/d/1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH/view'
ARCHIVE = 'PASCAL_VOC.tgz'
FOLDER = 'VOCSegmentation'

TIMEOUT = 60  # seconds without a byte; gdown's own default waits for ever
CHUNK = 2 ** 20  # bytes
QUOTA = ('too many users have viewed or downloaded this file recently', 'quota exceeded')

log = logging.getLogger('maskcontrast')


class _BadArchive(Exception):
    """The archive itself is at fault, so that a retry with the same file is pointless."""


def fetch_voc(db_root, url=VOC_URL):
    """Return the folder `<db_root>/VOCSegmentation`, fetched first when it is missing.

    The data are PASCAL VOC 2012 with the SBD labels ("trainaug") and saliency masks, as published with MaskContrast
    (arXiv 2102.06191). An archive `<db_root>/PASCAL_VOC.tgz` that is there already is used and kept; one that is
    fetched here is deleted once it is unpacked. Several processes may call this at once.

    Args:
        db_root: folder of the data sets, made when it is missing.
        url: where the archive is: a Google Drive link or the file's own address.

    Returns:
        The folder's `Path`. Its presence means that all of it is there.

    Raises:
        UserError: the archive can't be fetched (Google Drive's quota, the network), is broken, holds something else or
            members that point outside, or there is no room. Nothing half-done is left in `db_root`.
    """
    folder, archive = Path(db_root) / FOLDER, Path(db_root) / ARCHIVE
    if folder.is_dir():
        return folder
    if os.path.lexists(folder):
        raise UserError(f'{folder} is a file or a link to nowhere instead of the data: remove it and run again')
    by_hand = archive.exists()
    if not by_hand:
        _download(url, archive)
    log.info('unpacking %s to %s', archive, folder)
    try:
        _unpack(archive, folder)
    except _BadArchive as error:
        if by_hand:
            raise UserError(f'{archive} is not usable ({_line(error)}): delete it and run again') from error
        archive.unlink(missing_ok=True)
        raise UserError(f'{archive} as it came from {url} is not usable ({_line(error)}) and was deleted: run again, '
                        f'or {_by_hand(url, archive)}') from error
    except OSError as error:
        raise UserError(f'{archive} could not be unpacked to {folder} ({_line(error)}): '
                        'make room there or choose another db_root in env.yml, and run again') from error
    if not by_hand:
        archive.unlink(missing_ok=True)
    return folder


def _download(url, archive):
    """Fetch `url` to `archive`, which gets its name only when all of it has come and it is a gzip file."""
    import gdown  # here, because it takes a third of a second and only the first run needs it
    import requests  # gdown's own; its exceptions are OSErrors, so they must be told from those of the disk

    log.info('fetching %s to %s', url, archive)
    with atomic_file(archive, 'w+b') as file:
        try:
            # Into an open file: given a path, gdown leaves a partial file beside it after a failure. Cookies would be
            # kept in the user's home folder. A length other than the announced one is an error.
            gdown.download(url, output=file, quiet=not sys.stderr.isatty(), use_cookies=False, timeout=TIMEOUT,
                           log_messages={'start': '', 'output': f'To: {archive}\n'})
            file.seek(0)
            start = file.read(CHUNK)
        except (gdown.exceptions.DownloadError, requests.RequestException) as error:
            if _is_quota(str(error)):
                raise _quota_error(url, archive) from error
            raise UserError(f'{url} could not be fetched ({_line(error)}): run again, '
                            f'or {_by_hand(url, archive)}') from error
        except OSError as error:
            raise UserError(f'{archive} could not be written ({_line(error)}): '
                            'make room there or choose another db_root in env.yml') from error
        if not start.startswith(b'\x1f\x8b'):
            if _is_quota(start.decode(errors='replace')):
                raise _quota_error(url, archive)
            what = 'a web page' if start.lstrip().startswith(b'<') else 'something else'
            raise UserError(f'{url} gave {what} instead of a gzip archive: {_by_hand(url, archive)}')


def _unpack(archive, folder):
    """Unpack the archive's `VOCSegmentation/` as `folder`, by a rename after everything was read and checked.

    Raises `_BadArchive`, or OSError where the disk is at fault.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{FOLDER}.', suffix='.tmp', dir=folder.parent) as temporary:
        source = Path(temporary) / FOLDER
        try:
            with gzip.open(archive) as stream:
                with tarfile.open(fileobj=stream, mode='r|') as tar:
                    tar.extractall(temporary, filter=_member_filter)
                while stream.read(CHUNK):  # tar stops at its own end mark; gzip's checksum comes after it
                    pass
        except FileNotFoundError:
            if folder.is_dir():  # a process that ran beside this one has unpacked and deleted the archive
                return
            raise
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise _BadArchive(_line(error)) from error
        missing = [name for name in ('', 'images', 'sets') if not (source / name).is_dir()]
        if missing:
            raise _BadArchive(f'it has no folder {(Path(FOLDER) / missing[0]).as_posix()}/')
        try:
            os.rename(source, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its folder is whole
                raise


def _member_filter(member, folder):
    """tarfile's `data` filter, which refuses what leads outside. A leading slash, which it strips, is refused too."""
    if member.name.startswith('/'):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def _is_quota(text):
    text = ' '.join(text.lower().split())  # pages and gdown's messages are wrapped
    return any(sentence in text for sentence in QUOTA)


def _quota_error(url, archive):
    return UserError(f'Google Drive refuses {archive.name} for now because its download quota is used up: '
                     f'wait a day, or {_by_hand(url, archive)}')


def _by_hand(url, archive):
    return f'open {url} in a browser, save the file as {archive} and run again'


def _line(error):
    """An exception's message in one line."""
    return ' '.join(str(error).split()) or type(error).__name__
