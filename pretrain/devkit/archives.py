"""Where the official data are: a folder, or an archive that is unpacked for as long as it takes to read it."""
import contextlib
import gzip
import logging
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from data.download import CHUNK, GZIP, member_filter
from utils.errors import UserError

log = logging.getLogger('maskcontrast')


@dataclass(frozen=True)
class Release:
    """One of the two official data sets.

    flag: its argument. archive: the official file's name. url: where that is. places: where the data may stand below the
    folder that a user names. folders, files: what must be there. members: of an archive, the files to unpack (a regular
    expression, relative to the place).
    """
    flag: str
    archive: str
    url: str
    places: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...]
    members: str


VOC = Release('--voc', 'VOCtrainval_11-May-2012.tar', 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
              ('', 'VOC2012', 'VOCdevkit/VOC2012'), ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'), (),
              r'JPEGImages/[^/]+\.jpg|SegmentationClass/[^/]+\.png|ImageSets/Segmentation/(train|val)\.txt')
SBD = Release('--sbd', 'benchmark.tgz',
              'http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/',
              ('', 'dataset', 'benchmark_RELEASE/dataset'), ('cls',), ('train.txt', 'val.txt'),
              r'cls/[^/]+\.mat|img/[^/]+\.jpg|(train|val)\.txt')


class _Header(tarfile.TarInfo):
    """A tar header. A broken or partial header is an error, while tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]  # typeshed's tarfile lacks both
                tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


@contextlib.contextmanager
def open_archives(voc: str | Path, sbd: str | Path, out: str | Path) -> Iterator[tuple[Path, Path]]:
    """The folders of PASCAL VOC 2012 (`JPEGImages/`...) and of SBD (`cls/`...), for the time of the block.

    voc, sbd: a folder or an archive each. out: the result's path; archives are unpacked to a temporary folder beside it,
    which vanishes with the block. Of SBD's images, only those that VOC lacks are unpacked.
    A `UserError` of the block that names a file unpacked here names the archive and its member instead.
    Raises `UserError` for a missing path, a folder or archive of something else, an archive that is truncated, broken or has a
    member that leads outside, and if there is no room at `out`.
    """
    out = Path(out)
    for path, release in ((voc, VOC), (sbd, SBD)):
        if not os.path.exists(path):
            raise UserError(f'{release.flag} {path} does not exist: {_what_to_give(release)}')
        if not os.path.isfile(path):
            _place(Path(path), release, path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {out.parent} could not be made ({error.strerror}): choose another --out') from error
    archives: dict[Path, str | Path] = {}  # by the folder that each is unpacked to
    try:
        with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', suffix='.tmp', dir=out.parent) as temporary:
            def find(path: str | Path, release: Release, wanted: Callable[[str], bool]):
                if not os.path.isfile(path):
                    return _place(Path(path), release, path)
                folder = Path(temporary) / release.flag.removeprefix('--')
                archives[folder] = path
                _unpack(path, folder, release, wanted)
                return _place(folder, release, path)

            voc_folder = find(voc, VOC, lambda name: True)
            yield voc_folder, find(sbd, SBD, lambda name: not os.path.isfile(voc_folder / 'JPEGImages' / name))
    except UserError as error:
        message = str(error)
        for folder, archive in archives.items():
            message = message.replace(f'{folder}{os.sep}', f'{archive}: ')
        raise UserError(message) from error
    except OSError as error:
        raise UserError(f'{out} could not be written ({error.strerror or error}): make room or choose another --out') from error


def _place(folder: Path, release: Release, given: str | Path):
    """The folder below `folder` that has the release's parts. given: what the user named, for the message."""
    for place in release.places:
        root = folder / place
        if (all(os.path.isdir(root / part) for part in release.folders)
                and all(os.path.isfile(root / part) for part in release.files)):
            return root
    parts = ', '.join([*(f'{part}/' for part in release.folders), *release.files])
    raise UserError(f'{release.flag} {given} does not hold {parts}: {_what_to_give(release)}')


def _what_to_give(release: Release):
    return f'give {release.archive} ({release.url}) or the folder to which it unpacks'


def _unpack(archive: str | Path, folder: Path, release: Release, wanted: Callable[[str], bool]):
    """Unpack what is needed of `archive`, a tar or a gzipped one. All its members are checked, the others too.

    wanted: called with the file name of each JPEG image, tells whether to unpack it.
    """
    log.info('unpacking %s', archive)
    places = '|'.join(f'{place}/' for place in release.places if place)
    needed = re.compile(rf'(\./)?({places})?({release.members})')
    folder.mkdir()
    try:
        with _open(archive) as stream:
            with tarfile.open(fileobj=stream, mode='r|', tarinfo=_Header) as tar:
                for member in tar:
                    member_filter(member, str(folder))
                    name = os.path.basename(member.name)
                    if member.isreg() and needed.fullmatch(member.name) and (not name.endswith('.jpg') or wanted(name)):
                        tar.extract(member, folder, set_attrs=False, filter='data')
            while stream.read(CHUNK):  # tar stops at its own end mark; gzip's checksum comes after it
                pass
    except tarfile.FilterError as error:
        raise UserError(f'{archive} is not the official archive, and was not unpacked ({error}): '
                        f'{_what_to_give(release)}') from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f'{archive} is truncated, damaged or not a tar archive ({error}): download it again '
                        f'({release.url})') from error
    except OSError as error:
        raise UserError(f'{archive} could not be unpacked to {folder.parent.parent} ({error.strerror or error}): '
                        'make room there or choose another --out') from error


def _open(archive: str | Path):
    with open(archive, 'rb') as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(archive) if packed else open(archive, 'rb')
