"""The vectors of masks in a growing file: vectors already computed, also by an interrupted run, are not computed again.

The file is a header and records of one size: key, vector, checksum. An incomplete or damaged record and everything after it is
cut off.
"""
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from utils.errors import UserError
from utils.storage.atomic import make_folder

MAGIC = b'prototypes 1\n'
KEY = 32  # bytes
START = len(MAGIC) + 8  # of the records, after the header
CHUNK = 1024  # records that are looked at together


def file_for(folder: str | Path, settings: Mapping[str, Any]) -> Path:
    """The cache in `folder` of vectors that depend on `settings`, plain values, and on the image."""
    text = json.dumps(settings, sort_keys=True)
    return Path(folder) / f'{hashlib.sha256(text.encode()).hexdigest()[:16]}.vectors'


def content_key(*paths: str | Path) -> bytes:
    """32 bytes that identify the content of files, for example of an image and its mask. Raises `UserError` for an unreadable
    one."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f'{path} could not be read ({error.strerror})') from error
        digest.update(len(content).to_bytes(8, 'little') + content)
    return digest.digest()


class PrototypeCache:
    """Vectors (D float32) by keys of 32 bytes, at `path`. A context manager; one process at a time.

    It takes about 100 bytes of memory per vector. Raises `UserError` if the file can't be written.
    """

    def __init__(self, path: str | Path):
        self.path, self._rows, self._count = Path(path), dict[bytes, int](), 0  # records in the file
        self._file: IO[bytes] | None = None
        self._record: np.dtype | None = None

    def __enter__(self) -> Self:
        make_folder(self.path.parent)
        try:
            self._file = open(self.path, 'r+b' if self.path.exists() else 'w+b')  # noqa: SIM115 - closed by __exit__
            self._read()
        except OSError as error:
            raise self._error(error) from error
        return self

    def __exit__(self, *_: object):
        if self._file:
            self._file.close()
        self._file = None

    def __len__(self):
        return len(self._rows)

    def __contains__(self, key: bytes):
        return key in self._rows

    def __getitem__(self, key: bytes) -> np.ndarray:
        assert self._file and self._record is not None
        self._file.seek(START + self._rows[key] * self._record.itemsize)
        return np.frombuffer(self._file.read(self._record.itemsize), self._record)['vector'][0].copy()

    def add(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Append vectors, B x D float32, and hand them to the system, so that they outlive this process."""
        assert self._file
        try:
            if self._record is None:
                self._begin(vectors.shape[1])
            assert self._record is not None
            records = np.zeros(len(keys), self._record)
            records['key'] = np.frombuffer(b''.join(keys), np.uint8).reshape(-1, KEY)
            records['vector'] = vectors
            records['sum'] = [_checksum(record) for record in records]
            self._file.seek(START + self._count * self._record.itemsize)
            self._file.write(records.tobytes())
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error
        for key in keys:
            self._note(key)

    def _note(self, key: bytes):
        self._rows[key] = self._count
        self._count += 1

    def _begin(self, dimension: int):
        assert self._file
        self._file.seek(0)
        self._file.write(MAGIC + dimension.to_bytes(8, 'little'))
        self._set_dimension(dimension)

    def _set_dimension(self, dimension: int):
        self._record = np.dtype([('key', np.uint8, (KEY,)), ('vector', '<f4', (dimension,)), ('sum', '<u4')])

    def _read(self):
        """Index the complete records, and cut off the rest."""
        assert self._file
        header = self._file.read(START)
        dimension = int.from_bytes(header[len(MAGIC):], 'little')
        if len(header) < START or not header.startswith(MAGIC) or not 0 < dimension < 2 ** 20:
            self._file.truncate(0)
            return
        self._set_dimension(dimension)
        assert self._record is not None
        size = self._record.itemsize
        while chunk := self._file.read(CHUNK * size):
            for record in np.frombuffer(chunk[:len(chunk) // size * size], self._record):
                if record['sum'] != _checksum(record):
                    break
                self._note(record['key'].tobytes())
            else:
                if len(chunk) % size == 0:
                    continue
            break
        self._file.truncate(START + self._count * size)

    def _error(self, error: OSError):
        return UserError(f'{self.path} could not be written ({error.strerror or error}): make room, or choose another root_dir '
                         'in env.yml')


def _checksum(record: np.void):
    return zlib.crc32(record.tobytes()[:-4])

