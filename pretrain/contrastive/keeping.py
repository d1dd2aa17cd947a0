"""Numbered checkpoints of the query network during training, from which a curve of scores is drawn."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.checkpoint.kept import kept_path
from utils.parallel.ranks import is_main
from utils.storage.atomic import atomic_file

QUERY = 'module.model_q.'  # prefix of the query network's keys, as in checkpoint.pth.tar


class Keeper:
    """Writes the query network to `checkpoints/epoch_0005.pth.tar` and so on, in half precision: a sixth of a checkpoint or
    less. The evaluations take such a file as `pretraining`. A run can't resume from it, only from `checkpoint.pth.tar`.

    network: the query network. output: the run's folder. every: epochs between files, or None for no files. epochs: of the
    run, whose last is kept too, and so is the start. steps: of an epoch. extra: values that every file carries (seed,
    configuration).
    """

    def __init__(self, network: nn.Module, output: str | Path, every: int | None, epochs: int, steps: int,
                 extra: Mapping[str, Any]):
        self.network, self.output, self.every, self.epochs = network, output, every, epochs
        self.steps, self.extra = steps, extra

    def keep(self, epoch: int, again: bool = True) -> None:
        """Write the file of `epoch`, the number of epochs that are done, if it is one to keep. Only rank 0 writes.

        again: replace a file that is there. Raises `UserError` if it can't be written.
        """
        if not self.every or not is_main() or epoch % self.every and epoch != self.epochs:
            return
        path = kept_path(self.output, epoch)
        if again or not path.exists():
            weights = {QUERY + key: in_half_precision(value) for key, value in self.network.state_dict().items()}
            with atomic_file(path) as file:
                try:
                    torch.save({'model': weights, 'epoch': epoch, 'steps': epoch * self.steps, **self.extra}, file)
                except RuntimeError as error:  # how torch reports that the stream below it failed
                    raise OSError(str(error).splitlines()[0]) from error


def in_half_precision(value: Tensor) -> Tensor:
    """A copy on the CPU, float16 where `value` is float and has no number beyond float16's range; otherwise as it is."""
    if not value.is_floating_point():
        return value.detach().cpu().clone()
    half = value.detach().to('cpu', torch.float16)
    return half if torch.isfinite(half).all() else value.detach().cpu().clone()
