"""The folder of a run: held by one process at a time, and renamed instead of deleted."""
import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from utils.errors import UserError
from utils.storage.atomic import make_folder

PATIENCE = 5  # seconds to wait for another process that holds a folder

_held: dict[Path, TextIO] = {}  # lock files by their paths


def hold_folder(path: str | Path) -> None:
    """Make the folder `path`, and keep other processes from holding it until `release_folders`, or the end of this process.

    Raises `UserError` if another one holds it. A run that was killed a moment ago is waited for.
    """
    make_folder(path)
    lock, end = Path(path) / '.lock', time.monotonic() + PATIENCE
    while (holder := _try_to_lock(lock)) is not None:
        if time.monotonic() > end:
            raise UserError(f'{path}: another run is writing into this folder ({holder}): wait for it, or rename the '
                            'experiment file')
        time.sleep(0.1)


def _try_to_lock(lock: Path):
    """None if it succeeded, otherwise the holder's text in the lock file."""
    try:
        file = open(lock, 'a+', encoding='utf-8')  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, and gone with this process
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # otherwise the file system has no locks to keep two runs apart
                file.seek(0)
                holder = file.read().strip()
                file.close()
                return holder
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            file.close()  # its holder has just released and deleted it
            return ''
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
    except OSError as error:
        raise UserError(f'{lock} could not be written ({error.strerror})') from error
    _held[lock] = file
    return None


def release_folders() -> None:
    """Let other processes hold the folders that this one holds."""
    while _held:
        lock, file = _held.popitem()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):  # the folder may have another name by now
                lock.unlink()
        file.close()


def is_held(path: str | Path) -> bool:
    """Whether another process holds the folder `path`. Where the file system has no locks, whether it says so."""
    try:
        with open(Path(path) / '.lock', encoding='utf-8') as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment, which whoever wants to hold it waits for
            except OSError:
                return True
    except OSError:
        return False
    return False


def set_aside(path: str | Path) -> Path:
    """Rename `path` to `path.old-1` (or the next free number) and return the new path. Nothing is deleted.

    Raises `UserError` if the folder above can't be written."""
    path = Path(path)
    number = 1
    while path.with_name(f'{path.name}.old-{number}').exists():
        number += 1
    aside = path.with_name(f'{path.name}.old-{number}')
    try:
        os.rename(path, aside)
    except OSError as error:
        raise UserError(f'{path} could not be renamed to {aside.name} ({error.strerror}): move it away by hand') from error
    return aside
