"""Decoded images, masks and labels on disk, where an epoch that reads them again is spared the decoding."""
import logging
import os
import shutil
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_file, make_folder

RESERVE = 2 * 2 ** 30  # bytes that stay free on the disk, for checkpoints

log = logging.getLogger('maskcontrast')


class DecodedCache:
    """Keeps arrays that were read from files as .npy files in `folder`, which runs and processes may share.

    What was made of a file counts as long as the file has its size and time of modification. After a write that failed, or
    that would have left less than RESERVE on the disk, nothing more is kept. Raises `UserError` when `folder` can't be made.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.writes = True
        make_folder(self.folder)

    def read(self, decode, path):
        """decode(path), a numpy array, or the array that an earlier call has kept. decode: a function of `data.reading`."""
        try:
            source = os.stat(path)
        except OSError:
            return decode(path)  # which says what is wrong
        kept = self.folder / decode.__name__ / f'{os.path.abspath(path)[1:]}.{source.st_size}.npy'
        try:
            if os.stat(kept).st_mtime_ns == source.st_mtime_ns:
                return np.load(kept)
        except (OSError, ValueError, EOFError):  # not there, or not whole
            pass
        array = decode(path)
        if self.writes:
            try:
                self._keep(array, kept, source.st_mtime_ns)
            except (UserError, OSError) as error:
                self.writes = False
                log.warning('From here on no more decoded images are kept (%s)', error)
        return array

    def _keep(self, array, kept, modified):
        if shutil.disk_usage(self.folder).free - array.nbytes < RESERVE:
            raise UserError(f'{self.folder}: less than {RESERVE >> 30} GiB would stay free')
        with atomic_file(kept, flush=False) as file:
            np.save(file, array)
            file.flush()
            os.utime(file.fileno(), ns=(modified, modified))
