"""Checkpoints are written completely or not at all, and the previous one is kept."""
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.storage.atomic import atomic_file


def previous_checkpoint(path: str | Path) -> Path:
    """The path of the checkpoint before the one at `path`."""
    path = Path(path)
    return path.with_name(f'{path.name}.previous')


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts) to `path`, which is replaced only when all is on disk. What it
    held is kept as `previous_checkpoint(path)`.

    Raises `UserError` if it can't be written (for example on a full disk); existing files stay intact.
    """
    with atomic_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch reports that the stream below it failed
            raise OSError(str(error).splitlines()[0]) from error
        if os.path.exists(path):  # from now on it is there under both names, until the new one takes its place
            _keep(Path(path), previous_checkpoint(path))


def _keep(path: Path, name: Path):
    """Give the file at `path` another name too, which may be taken."""
    temporary = name.with_name(f'.{name.name}.{os.getpid()}.tmp')
    try:
        try:
            os.link(path, temporary)
        except OSError:  # file systems without links
            shutil.copyfile(path, temporary)
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)
