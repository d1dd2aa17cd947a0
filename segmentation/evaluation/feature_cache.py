"""The features of the validation images for the linear classifier: computed once, then read from a file."""
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.contents import Contents
from evaluation.evaluation_images import resize_labels
from evaluation.linear_probe import frozen_features
from models.networks import LinearNetwork
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel import distributed, ranks

RESERVE = 2 * 2 ** 30  # bytes that stay free on the disk, for checkpoints
MOST = 16 * 2 ** 30  # bytes: reading more takes longer than computing it on a GPU

log = logging.getLogger('maskcontrast')


class FeatureCache:
    """Iterates over (ids, features, labels) of the batches of a loader of `EvaluationImages` with labels. A context manager.

    features: B x 256 (without decoder: the backbone's channels) x h x w float32 on `device`. labels: B x H x W uint8 array at
    `resolution`, void as VOID.
    With `keep`, both are computed when the context is entered and written to an unnamed file in `folder`, which vanishes with
    the process, however that ends; every pass reads it: equal bit for bit, as long as the network below the classifier doesn't
    change (time saved: benchmarks/linear_probe.py). Where there is no room for the file (4 MB an image at 512 x 512; 34 MB
    without decoder), and without `keep`, every pass computes.
    """

    def __init__(self, network: LinearNetwork, loader: DataLoader, device: torch.device, precision: str,
                 resolution: Sequence[int], folder: str | Path, keep: bool):
        self.network, self.loader, self.device, self.precision = network, loader, device, precision
        self.resolution, self.folder, self.keep = tuple(resolution), folder, keep
        self.file: IO[bytes] | None = None
        self.seen: Contents | None = None  # of this process's images, once a pass has read them all
        self.batches: list[tuple[list[str], tuple[int, ...]]] = []  # ids, and shape of the features as B x h x w x 256

    def __enter__(self) -> Self:
        if self.keep:
            try:
                with distributed.watched():
                    self._fill()
            except OSError as error:
                log.warning('No room to keep the features of the validation images (%s): the network runs in every epoch',
                            error)
                self.close()
        return self

    def __exit__(self, *_: object):
        self.close()

    def close(self) -> None:
        """Free the disk space."""
        if self.file:
            self.file.close()
        self.file, self.batches = None, []

    def __iter__(self):
        return self._read() if self.file else self._compute()

    def _compute(self):
        self.network.eval()
        seen = Contents()
        for batch in progress(self.loader, 'Validation'):
            features = frozen_features(self.network, batch['image'], self.device, self.precision)
            for contents in batch['contents']:
                seen.add(contents)
            yield batch['id'], features, np.stack([resize_labels(labels, self.resolution) for labels in batch['labels']])
        self.seen = seen

    def _fill(self):
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - lives as long as this object
        for ids, features, labels in self._compute():
            distributed.note(f'validation, image {ids[0]}')
            array = features.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # no copy where the layout is channels_last
            if not self.batches:
                needed = (array.nbytes + labels.nbytes) * len(self.loader) * ranks.local_world_size()
                free = min(shutil.disk_usage(self.folder).free - RESERVE, MOST)
                if needed > free:
                    raise OSError(f'{needed >> 20} MiB are needed, {max(free, 0) >> 20} MiB may be used')
            array.tofile(self.file)
            labels.tofile(self.file)
            self.batches.append((ids, array.shape))

    def _read(self):
        assert self.file is not None
        self.file.seek(0)
        for ids, shape in self.batches:
            features = torch.from_numpy(self._next(np.float32, shape)).permute(0, 3, 1, 2)
            yield ids, features.to(self.device), self._next(np.uint8, (len(ids), *self.resolution))

    def _next(self, dtype: type, shape: tuple[int, ...]):
        assert self.file is not None
        values: np.ndarray = np.fromfile(self.file, dtype, int(np.prod(shape)))
        if values.size != np.prod(shape):
            raise UserError('the file with the features of the validation images could not be read back: start again')
        return values.reshape(shape)
