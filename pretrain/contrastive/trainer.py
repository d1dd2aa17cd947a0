"""The training loop of a pre-training: its step, its epochs, and a picture of what it sees."""
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict

from contrastive.builder import ContrastiveModel
from contrastive.keeping import Keeper
from contrastive.simulation import SimulatedProcesses
from data import contents
from data.dataset import SegmentationDataset
from data.normalization import to_images
from utils.parallel import distributed
from utils.parallel.preemption import deferred
from utils.training.loop import Trainer
from utils.training.metrics_writer import MetricsWriter
from utils.training.optimizer import learning_rate, set_learning_rate
from utils.training.precision import autocast

log = logging.getLogger('maskcontrast')


class ContrastiveTrainer(Trainer):
    """Trains a `ContrastiveModel` on batches of `ViewPairs`."""
    model: ContrastiveModel
    PREFIX = 'module.'  # in published files too
    NUMBERS = ('loss', 'contrastive_loss', 'saliency_loss', 'acc1', 'acc5')
    SHOWN = {'loss': 'loss %.4f', 'acc1': 'top-1 %.1f%%'}

    def __init__(self, model: ContrastiveModel, *arguments: Any, **named: Any):
        super().__init__(model, *arguments, **named)
        step = model if len(self.streams.states) == 1 else SimulatedProcesses(model, self.streams)
        self.parallel = distributed.data_parallel(step, self.device)

    def report_seen(self, seen: Sequence[contents.Contents | None]) -> None:
        pairs: Any = self.loader.dataset  # `ViewPairs`
        dataset: SegmentationDataset = pairs.dataset
        contents.report(contents.merged(seen), dataset, dataset.split)

    def train_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """One step of paper section 3."""
        normalization = self.model.model_q.backbone.normalization
        images = [to_images(batch[view], self.device, normalization) for view in ('query', 'key')]
        masks = [batch[view].to(self.device, non_blocking=True) for view in ('query_mask', 'key_mask')]
        with autocast(self.device, self.precision):
            output = self.parallel(*images, *masks, batch['object_pixels'])
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(output['loss']).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([output[name].detach() for name in self.NUMBERS])


def train(trainer: ContrastiveTrainer, p: EasyDict, output: Path) -> None:
    """The remaining epochs. p: configuration with the schedule. output: folder for metrics.jsonl, tensorboard and what
    `keep_every` asks for."""
    keeper = Keeper(trainer.model.model_q, output, p.keep_every, p.epochs, len(trainer.loader), trainer.extra)
    if trainer.step == 0:
        keeper.keep(trainer.epoch, again=False)  # the start, or what a kill came before
    with MetricsWriter(output, trainer.epoch, view_figure) as record, deferred(), trainer.writer:
        while trainer.epoch < p.epochs:
            lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, trainer.epoch, p.epochs, **p.scheduler_kwargs)
            set_learning_rate(trainer.optimizer, lr)
            epoch = trainer.epoch + 1
            numbers = trainer.run_epoch(look_at=functools.partial(record.picture, epoch))
            record.scalars(epoch, {'lr': lr, **numbers})
            trainer.end_epoch(then=functools.partial(
                log.info, 'Epoch %d/%d: loss %.4f (contrastive %.4f, saliency %.4f), top-1 %.1f%%, top-5 %.1f%%, lr %.5f, '
                '%.1f images/s', epoch, p.epochs, numbers['loss'], numbers['contrastive_loss'], numbers['saliency_loss'],
                numbers['acc1'], numbers['acc5'], lr, numbers['images_per_second']))
            keeper.keep(epoch)


def view_figure(batch: dict[str, Any], pairs: int = 4) -> np.ndarray:
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
