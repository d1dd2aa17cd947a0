"""Files and folders that are either whole or absent, whatever happens while they are written."""
import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

from utils.errors import UserError

PATIENCE = 5  # seconds to wait for another process that holds a folder


@contextlib.contextmanager
def atomic_file(path, mode='wb', flush=True):
    """Open a temporary file beside `path` that takes its name when the block ends well.

    The content is flushed to the disk before the rename, so that after a crash or a full disk `path` holds either what
    it held before or everything that was written. `flush` costs milliseconds a file; without it a crash of the machine may
    lose the file, which will do for what can be made again. Raises `UserError` when the file can't be written.
    """
    path = Path(path)
    make_folder(path.parent)
    short = path.name.encode(errors='replace')[:100].decode(errors='ignore')  # file systems take 255 bytes
    temporary = path.with_name(f'.{short}.{os.getpid()}-{threading.get_ident()}.tmp')
    try:
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flush:
            _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f'{path} could not be written ({error.strerror or error}): '
                        'make room or choose another folder; what was there before is unchanged') from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path):
    """A temporary folder beside `path` that takes its name when the block ends well, and vanishes when it doesn't.

    `path` must not exist: its presence means that it is whole. Raises `UserError` when it can't be written.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.rename(temporary, path)
    except OSError as error:
        raise UserError(f'{path} could not be written ({error.strerror or error}): '
                        'make room or choose another folder in env.yml') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder):
    """Delete what killed writers of temporary files and folders left in `folder`, where nobody else may be writing."""
    for path in Path(folder).glob('.*.tmp'):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


_held = {}  # lock files by their paths


def hold_folder(path):
    """Make the folder `path`, and keep other processes from holding it until `release_folders`, or the end of this process.

    Raises `UserError` when another one holds it. A run that was killed a moment ago is waited for.
    """
    make_folder(path)
    lock, end = Path(path) / '.lock', time.monotonic() + PATIENCE
    while (holder := _try_to_lock(lock)) is not None:
        if time.monotonic() > end:
            raise UserError(f'{path}: another run is writing into this folder ({holder}): wait for it, or give the '
                            'experiment file another name')
        time.sleep(0.1)


def _try_to_lock(lock):
    """None when it succeeded, else what the holder has written into the lock file."""
    try:
        file = open(lock, 'a+', encoding='utf-8')  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, and gone with this process
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # else a file system without locks: nothing keeps two runs apart
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


def release_folders():
    """Let other processes hold the folders that this one holds."""
    while _held:
        lock, file = _held.popitem()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):  # the folder may have another name by now
                lock.unlink()
        file.close()


def make_folder(path):
    """Make `path` and its parents. Raises `UserError` where that is impossible, say below a regular file."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} could not be made ({error.strerror}): '
                        'choose another root_dir, db_root or image_cache in env.yml') from error


def set_aside(path):
    """Rename `path` to `path.old-1` (or the next free number) and return the new path. Nothing is deleted.

    Raises `UserError` when the folder above can't be written."""
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


def _sync_folder(path):
    """Flush the rename itself, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
