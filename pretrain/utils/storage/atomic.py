"""Files and folders that are either complete or absent, even if writing them is interrupted."""
import contextlib
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError

HOST = re.sub(r'\W', '_', platform.node())[:64]  # each container has a name, and processes, of its own
TEMPORARY = re.compile(rf'\..*\.{HOST}-(?P<process>[0-9]{{1,9}})-[0-9]+\.tmp', re.DOTALL)  # names of `atomic_file` on this host


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = 'wb', flush: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its name when the block ends well.

    The content is flushed to the disk before the rename, so that after a crash or a full disk `path` holds either what
    it held before or everything that was written. `flush` costs milliseconds a file; without it a crash of the machine may
    lose the file, which will do for what can be made again. Raises `UserError` if the file can't be written.
    """
    path = Path(path)
    make_folder(path.parent)
    short = path.name.encode(errors='replace')[:100].decode(errors='ignore')  # file systems take 255 bytes
    temporary = path.with_name(f'.{short}.{HOST}-{os.getpid()}-{threading.get_ident()}.tmp')
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
                        'make room or choose another folder; the earlier file is unchanged') from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well, and vanishes when it doesn't.

    `path` must not exist: its presence means that it is whole. Raises `UserError` if it can't be written.
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


def remove_temporaries(folder: str | Path) -> None:
    """Delete what killed writers of temporary files and folders left in `folder`, where nobody else may be writing."""
    for path in Path(folder).glob('.*.tmp'):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_abandoned(folder: str | Path) -> None:
    """Delete the temporary files of `atomic_file` in `folder` and its sub-folders whose process on this host has ended.
    Others, and other hosts, may be writing there."""
    for path in Path(folder).rglob('.*.tmp'):
        name = TEMPORARY.fullmatch(path.name)
        if name and not _is_running(int(name['process'])):
            path.unlink(missing_ok=True)


def _is_running(process: int):
    """Whether a process runs. A zombie does not: its parent has not asked for its exit code, as in containers without an init
    process."""
    try:
        os.kill(process, 0)  # sends nothing
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no Linux
        return True


def make_folder(path: str | Path) -> None:
    """Make `path` and its parents. Raises `UserError` if that is impossible, for example below a regular file."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} could not be made ({error.strerror}): '
                        'choose another root_dir, db_root or image_cache in env.yml') from error


def _sync_folder(path: Path):
    """Flush the rename itself, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
