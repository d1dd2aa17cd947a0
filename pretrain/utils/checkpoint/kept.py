"""The paths of a pre-training's numbered checkpoints, for writing and scoring."""
import re
from pathlib import Path

KEPT_FOLDER = 'checkpoints'


def kept_path(output: str | Path, epoch: int) -> Path:
    """The query network after `epoch` epochs (0: as it started) of the run whose folder is `output`."""
    return Path(output) / KEPT_FOLDER / f'epoch_{epoch:04d}.pth.tar'


def kept_checkpoints(output: str | Path) -> dict[int, Path]:
    """All that a run has kept so far: paths by number of epochs, in their order."""
    numbers = {path: re.fullmatch(r'epoch_(\d{4,})\.pth\.tar', path.name) for path in (Path(output) / KEPT_FOLDER).glob('*')}
    return dict(sorted((int(match[1]), path) for path, match in numbers.items() if match))
