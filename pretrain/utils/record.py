"""The curves of a training run: a JSON line an epoch, and the same for tensorboard."""
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from utils.distributed import is_main
from utils.errors import UserError
from utils.log import append_metrics, cut_metrics


class Record:
    """Writes `metrics.jsonl` and `tensorboard/` below a folder, where those of epochs after `epochs` are dropped. A context
    manager. Only rank 0 writes."""

    def __init__(self, folder, epochs):
        self.writer = None
        if is_main():
            self.metrics = Path(folder) / 'metrics.jsonl'
            cut_metrics(self.metrics, epochs)
            try:
                self.writer = SummaryWriter(Path(folder) / 'tensorboard', purge_step=epochs + 1)
            except OSError as error:
                raise UserError(f'{folder}/tensorboard could not be written ({error.strerror})') from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()

    def picture(self, draw, number):
        """Add the picture that `draw` makes, H x W x 3 uint8, to epoch `number` (counted from 1)."""
        if self.writer:
            self.writer.add_image('views', draw(), number, dataformats='HWC')

    def numbers(self, number, values):
        """Add the values by name of epoch `number` (counted from 1)."""
        if not self.writer:
            return
        append_metrics(self.metrics, {'epoch': number, **values})
        for name, value in values.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()
