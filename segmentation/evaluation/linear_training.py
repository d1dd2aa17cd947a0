"""The training steps of a classifier, linear or with the whole network, and the choice of the best model (paper section 4)."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data import contents
from data.normalization import to_images
from evaluation.feature_cache import FeatureCache
from evaluation.linear_probe import backward_loss, frozen_features, online_iou
from models.networks import LinearNetwork
from utils.checkpoint import save_checkpoint
from utils.parallel import distributed, preemption, ranks
from utils.training.loop import Trainer
from utils.training.precision import autocast


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
        """Online mIoU in percent. It may take long, so a request to stop takes effect at once."""
        self.save()
        self.writer.finish()
        if not validation.keep:
            distributed.broadcast_state(self.model)  # batch norms that are not frozen have seen different images
        with preemption.at_once():
            return float(online_iou(self.model.classifier, validation, classes).mean())

    def save_epoch(self, iou: float) -> None:
        """Write the checkpoint after `run_epoch`, and the best model if `iou` (percent) is higher than in all epochs before.

        In this order, so that the checkpoint has the weights of a best model that was not written.
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


class FinetuneTrainer(LinearTrainer):
    """The same for training the whole `LinearNetwork` (paper section 4)."""

    def train_step(self, batch: dict[str, Any]) -> torch.Tensor:
        images = to_images(batch['image'], self.device, self.model.backbone.normalization)
        with autocast(self.device, self.precision):
            features = self.model.features(images)
        labels = batch['labels'].to(self.device, non_blocking=True).long()
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward_loss(self.model.classifier, features.float(), labels, self.scaler.get_scale())
        distributed.sum_gradients(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.unsqueeze(0) * ranks.world_size()
