"""What a pre-training step computes, and a picture of what it sees."""
import numpy as np
import torch

from data.batches import to_images
from utils import distributed
from utils.device import autocast
from utils.training import Trainer


class ContrastiveTrainer(Trainer):
    """Trains a `ContrastiveModel` on batches of `ViewPairs`."""
    PREFIX = 'module.'  # in published files too
    NUMBERS = ('loss', 'contrastive_loss', 'saliency_loss', 'acc1', 'acc5')
    SHOWN = {'loss': 'loss %.4f', 'acc1': 'top-1 %.1f%%'}

    def __init__(self, model, *arguments, **named):
        super().__init__(model, *arguments, **named)
        model.streams = self.streams
        self.parallel = distributed.data_parallel(model, self.device)

    def train_step(self, batch):
        """One step of paper section 3."""
        images = [to_images(batch[view], self.device) for view in ('query', 'key')]
        masks = [batch[view].to(self.device, non_blocking=True) for view in ('query_mask', 'key_mask')]
        with autocast(self.device, self.precision):
            output = self.parallel(*images, *masks)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(output['loss']).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([output[name].detach() for name in self.NUMBERS])


def view_figure(batch, pairs=4):
    """A picture of the first pairs: query view, its mask, key view, its mask. rows x columns x 3 uint8."""
    rows = []
    for i in range(min(pairs, len(batch['query']))):
        row = []
        for view in ('query', 'key'):
            image, mask = batch[view][i].numpy(), batch[f'{view}_mask'][i].numpy()
            stride = -(-len(image) // len(mask))  # of the masks, without `upsample`
            inside = mask.repeat(stride, 0).repeat(stride, 1)[:len(image), :len(image), None].astype(bool)
            row += [image, np.where(inside, image, image // 4)]
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)
