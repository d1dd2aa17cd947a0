"""The validation images as the linear classifier sees them: computed once, then read from a file."""
import logging
import tempfile

import numpy as np
import torch
from tqdm import tqdm

from evaluation.images import resize_labels
from evaluation.linear import frozen_features
from utils.errors import UserError

log = logging.getLogger('maskcontrast')


class ValidationFeatures:
    """Iterates over (ids, features, labels) of the batches of a loader of `EvaluationImages` with labels.

    features: B x 256 x h x w float32 on `device`. labels: B x H x W uint8 array at `resolution`, 255 = void.
    With `keep`, the first pass writes both to an unnamed file in `folder`, which vanishes with the process, however that
    ends, and later passes read it: equal bit for bit, as long as the network below the classifier doesn't change. Where there
    is no room for the file (4 MB an image at 512 x 512), every pass computes.
    """

    def __init__(self, network, loader, device, precision, resolution, folder, keep):
        self.network, self.loader, self.device, self.precision = network, loader, device, precision
        self.resolution = tuple(resolution)
        self.file = tempfile.TemporaryFile(dir=folder) if keep else None  # noqa: SIM115 - lives as long as this object
        self.batches = []  # (ids, shape of the features as B x h x w x 256), once all are in the file

    def __iter__(self):
        return self._read() if self.batches else self._compute()

    def close(self):
        """Give the room on the disk back."""
        if self.file:
            self.file.close()
        self.file, self.batches = None, []

    def _compute(self):
        self.network.eval()
        batches = []
        for batch in tqdm(self.loader, desc='Validation', disable=None, leave=False):
            features = frozen_features(self.network, batch['image'], self.device, self.precision)
            labels = np.stack([resize_labels(labels, self.resolution) for labels in batch['labels']])
            if self.file:
                batches.append((batch['id'], self._write(features, labels)))
            yield batch['id'], features, labels
        self.batches = batches if self.file else []

    def _write(self, features, labels):
        array = features.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # no copy where the layout is channels_last
        try:
            array.tofile(self.file)
            labels.tofile(self.file)
        except OSError as error:
            log.warning('No room to keep the features of the validation images (%s): the network runs in every epoch', error)
            self.close()
        return array.shape

    def _read(self):
        self.file.seek(0)
        for ids, shape in self.batches:
            features = torch.from_numpy(self._next(np.float32, shape)).permute(0, 3, 1, 2)
            yield ids, features.to(self.device), self._next(np.uint8, (len(ids), *self.resolution))

    def _next(self, dtype, shape):
        values = np.fromfile(self.file, dtype, int(np.prod(shape)))
        if values.size != np.prod(shape):
            raise UserError('the file with the features of the validation images could not be read back: start again')
        return values.reshape(shape)
