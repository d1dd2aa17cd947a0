"""The curves of a training run: one JSON line per epoch, and the same for tensorboard."""
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from utils.errors import UserError
from utils.parallel.ranks import is_main
from utils.storage.atomic import atomic_file


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` below a folder, where those of epochs after `epochs` are dropped. A context
    manager. Only rank 0 writes.

    draw: makes a picture, H x W x 3 uint8, of a batch. Epochs are counted from 1.
    """

    def __init__(self, folder: str | Path, epochs: int, draw: Callable[[dict[str, Any]], np.ndarray]):
        self.draw, self.writer = draw, None
        if is_main():
            self.metrics = Path(folder) / 'metrics.jsonl'
            _drop_epochs_after(epochs, self.metrics)
            try:
                self.writer = SummaryWriter(Path(folder) / 'tensorboard', purge_step=epochs + 1)
            except OSError as error:
                raise UserError(f'{folder}/tensorboard could not be written ({error.strerror})') from error

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        if self.writer:
            self.writer.close()

    def picture(self, epoch: int, batch: dict[str, Any]) -> None:
        """Add a picture of `batch`."""
        if self.writer:
            self.writer.add_image('views', self.draw(batch), epoch, dataformats='HWC')

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the `values`, numbers by name. Raises `UserError` if they can't be written."""
        if not self.writer:
            return
        try:
            with open(self.metrics, 'a', encoding='utf-8') as file:
                file.write(json.dumps({'epoch': epoch, **values}) + '\n')
        except OSError as error:
            raise UserError(f'{self.metrics} could not be written ({error.strerror})') from error
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()


def _drop_epochs_after(epochs: int, path: Path):
    """Drop the lines of later epochs and a broken last line: a resumed run writes them again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding='utf-8').splitlines()
    kept = [line for line in lines if _epoch_of(line) <= epochs]
    if kept != lines:
        with atomic_file(path, 'w') as file:
            file.writelines(line + '\n' for line in kept)


def _epoch_of(line: str):
    try:
        return json.loads(line)['epoch']
    except (ValueError, KeyError, TypeError):
        return float('inf')
