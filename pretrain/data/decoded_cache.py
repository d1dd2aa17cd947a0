"""Decoded images, masks and labels on disk, so that later epochs need not decode them again."""
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.storage.atomic import atomic_file, make_folder

RESERVE = 2 * 2 ** 30  # bytes that stay free on the disk, for checkpoints

log = logging.getLogger('maskcontrast')


class DecodedCache:
    """Keeps uint8 and int32 arrays that were read from files as .npy files in `folder`, which runs and processes may share.

    An entry is valid as long as its file has the same path, size and modification time; the cached array itself is not checked.
    After a write that failed, or that would have left less than RESERVE on the disk, nothing more is kept. Raises `UserError`
    if `folder` can't be made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.writes = True
        make_folder(self.folder)

    def read(self, decode: Callable[[Path], np.ndarray], path: Path, kind: str) -> np.ndarray:
        """decode(path), an array, or the one that an earlier call has kept. decode: a function of `data.decoding`. kind:
        its name with all else that its results depend on."""
        try:
            source = os.stat(path)
        except OSError:
            return decode(path)  # which says what is wrong
        kept = self._place(kind, os.path.abspath(path), source.st_size, source.st_mtime_ns)
        array = _loaded(kept)
        if array is None:
            array = decode(path)
            if self.writes:
                self._keep(array, kept)
        return array

    def _place(self, *what: str | int):
        digest = hashlib.sha256(repr(what).encode(errors='surrogateescape')).hexdigest()  # paths may be too long for a name
        return self.folder / digest[:2] / f'{digest}.npy'

    def _keep(self, array: np.ndarray, kept: Path):
        try:
            if shutil.disk_usage(self.folder).free - array.nbytes < RESERVE:
                raise UserError(f'{self.folder}: less than {RESERVE >> 30} GiB would stay free')
            with atomic_file(kept) as file:
                np.save(file, array)
        except (UserError, OSError) as error:
            self.writes = False
            log.warning('No more decoded images are kept from now on (%s)', error)


def _loaded(kept: Path):
    """The array in a file, or None when there is none, or no whole one."""
    try:
        array = np.load(kept)
        return array if array.dtype in (np.uint8, np.int32) and array.ndim > 1 else None
    except Exception:  # not there; and damaged bytes make numpy raise anything
        return None
