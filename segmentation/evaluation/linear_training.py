"""The training of the linear classifier: its steps and epochs, and the evaluation of its best model (paper section 4)."""
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch.utils.data import DataLoader

from data import contents
from data.dataset import SegmentationDataset
from data.label_space import LabelSpace
from evaluation.feature_cache import FeatureCache
from evaluation.inference import evaluate
from evaluation.linear_probe import backward_loss, frozen_features, online_iou
from evaluation.metrics import class_iou
from evaluation.model_loading import finetuned_network
from evaluation.results import RESULTS, print_iou, write_results
from evaluation.training_views import view_figure
from models.networks import LinearNetwork
from utils.checkpoint import save_checkpoint
from utils.config.keys import LINEAR
from utils.parallel import distributed, preemption, ranks
from utils.parallel.preemption import deferred
from utils.parallel.ranks import is_main
from utils.training.device import on_device
from utils.training.loop import Trainer
from utils.training.metrics_writer import MetricsWriter
from utils.training.optimizer import learning_rate, set_learning_rate

log = logging.getLogger('maskcontrast')


class LinearTrainer(Trainer):
    """Trains the classifier of a frozen `LinearNetwork` on batches of `TrainingViews`, and keeps the best one.

    best_model: path of its plain state dict. best_epoch (counted from 0) and best_iou (percent) are in the checkpoints too.
    """

    model: LinearNetwork

    def __init__(self, *arguments: Any, best_model: str | Path, **named: Any):
        super().__init__(*arguments, **named)
        self.best_model, self.best_epoch, self.best_iou = best_model, 0, 0.0
        self.validation_told = False  # whether rank 0 has logged what the validation images hold

    def own_state(self) -> dict[str, Any]:
        return {'best_epoch': self.best_epoch, 'best_iou': self.best_iou}

    def resume(self, state: Mapping[str, Any], source: str | Path, same_optimizer: bool = True,
               same_batches: bool = True) -> None:
        super().resume(state, source, same_optimizer, same_batches)
        self.best_epoch, self.best_iou = state.get('best_epoch', 0), state.get('best_iou', 0.0)
        if self.step == 0 and self.best_iou and self.best_epoch == self.epoch - 1:
            self._save_best()  # it may have been killed just before that

    def report_seen(self, seen: Sequence[contents.Contents | None]) -> None:
        views: Any = self.loader.dataset  # `TrainingViews`
        contents.report(contents.merged(seen), views.dataset, views.dataset.split, views.space)

    def train_step(self, batch: dict[str, Any]) -> torch.Tensor:
        features = frozen_features(self.model, batch['image'], self.device, self.precision)
        labels = batch['labels'].to(self.device, non_blocking=True).long()
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward_loss(self.model.classifier, features, labels)
        distributed.sum_gradients(self.model.classifier.parameters())
        self.optimizer.step()
        return loss.unsqueeze(0) * ranks.world_size()  # whose mean over the processes is the loss

    def score(self, validation: FeatureCache, classes: int) -> float:
        """Online mIoU in percent. validation: `FeatureCache`. It may take long, and a request to stop doesn't wait."""
        self.save()
        self.writer.finish()
        if not validation.keep:
            distributed.broadcast_state(self.model)  # batch norms that are not frozen have seen different images
        with preemption.at_once():
            return float(online_iou(self.model.classifier, validation, classes).mean())

    def save_epoch(self, iou: float) -> None:
        """Write the checkpoint after `run_epoch`, and the best model if `iou` (percent) is higher than in all epochs before.

        In this order: of a best model that was not written, the checkpoint has the weights.
        """
        better = iou > self.best_iou
        if better:
            self.best_epoch, self.best_iou = self.epoch, iou
        self.end_epoch()
        self.writer.finish()
        if better:
            self._save_best()
            distributed.barrier()

    def _save_best(self):
        if ranks.is_main():
            save_checkpoint(self.model.state_dict(), self.best_model)


def train(trainer: LinearTrainer, val_loader: DataLoader, space: LabelSpace, p: EasyDict, output: Path) -> None:
    """The epochs that are left, each scored on the validation images. p: configuration with the schedule."""
    keep = p.freeze_batchnorm == 'all'  # the features of the validation images never change
    if trainer.epoch >= p.epochs:
        return
    with FeatureCache(trainer.model, val_loader, trainer.device, trainer.precision, p.transformation_kwargs.resolution,
                            output, keep) as validation, \
            MetricsWriter(output, trainer.epoch, functools.partial(view_figure, space)) as record, deferred(), trainer.writer:
        if keep:
            _report_validation(trainer, validation, space)  # before a classifier is trained for them
        while trainer.epoch < p.epochs:
            lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, trainer.epoch, p.epochs, **p.scheduler_kwargs)
            set_learning_rate(trainer.optimizer, lr)
            epoch = trainer.epoch + 1
            numbers = trainer.run_epoch(look_at=functools.partial(record.picture, epoch))
            numbers['mIoU'] = trainer.score(validation, len(space))
            _report_validation(trainer, validation, space)
            record.scalars(epoch, {'lr': lr, **numbers})
            trainer.save_epoch(numbers['mIoU'])
            log.info('Epoch %d/%d: loss %.4f, online mIoU %.2f (best %.2f), lr %.5f, %.1f images/s', epoch, p.epochs,
                     numbers['loss'], numbers['mIoU'], trainer.best_iou, lr, numbers['images_per_second'])


def _report_validation(trainer: LinearTrainer, validation: FeatureCache, space: LabelSpace):
    """Log once what the validation images hold, when all of them have been read. All processes call it."""
    images: Any = validation.loader.dataset  # `EvaluationImages`
    dataset: SegmentationDataset = images.dataset
    with distributed.watched():
        parts = distributed.gather_objects(validation.seen)
        if parts is not None and None not in parts and not trainer.validation_told:  # on rank 0
            trainer.validation_told = True
            contents.report(contents.merged(parts), dataset, dataset.split, space)


def final_evaluation(trainer: LinearTrainer, val_loader: DataLoader, space: LabelSpace, p: EasyDict, output: Path,
                     crf: bool) -> None:
    """Evaluate the best model at the images' own size, as eval.py does, and leave and print its results."""
    log.info('Best online mIoU %.2f in epoch %d; evaluating this model at full resolution%s', trainer.best_iou,
             trainer.best_epoch + 1, ', with CRF' if crf else '')
    network = on_device(finetuned_network(p, len(space), p.best_model), trainer.device)
    confusion = evaluate(network, val_loader, space, output, trainer.device, trainer.precision, crf, pictures=0,
                         told=trainer.validation_told)
    if not is_main() or confusion is None:
        return
    iou = class_iou(confusion) * 100
    write_results(output, LINEAR, p.best_model, space.names, iou, crf=crf, pretraining=p.pretraining,
                  epochs=trainer.epoch, online_mIoU=trainer.best_iou, best_epoch=trainer.best_epoch)
    print_iou(log, space.names, iou)


def finished(output: Path, state: dict[str, Any], crf: bool) -> bool:
    """Whether the results in `output` are those of the best model in `state`, the last checkpoint, with or without `crf`."""
    try:
        results = json.loads((output / RESULTS).read_text())
        wanted = {'script': LINEAR, 'crf': crf, 'epochs': state['epoch'], 'online_mIoU': state.get('best_iou')}
        return wanted.items() <= results.items()
    except (OSError, ValueError, AttributeError):
        return False
