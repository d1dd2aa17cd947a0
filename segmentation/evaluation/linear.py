"""The linear classifier on a frozen network: its training step and its online score (paper section 4).

Axes: B batch, C classes, H W the input's height and width, h w the network's grid.
"""
import numpy as np
import torch
from torch.nn import functional as F

from data.batches import to_images
from data.dataset import VOID
from evaluation.confusion import class_iou, confusion_matrix
from models.interpolation import resize
from utils import distributed, preemption
from utils.checkpoint import save_checkpoint
from utils.device import autocast
from utils.errors import UserError
from utils.training import Trainer


@torch.no_grad()
def frozen_features(network, images, device, precision):
    """What the classifier of a `LinearNetwork` sees of B x H x W x 3 uint8 images: B x 256 x h x w float32, without a graph."""
    with autocast(device, precision):
        features = network.features(to_images(images, device))
    return features.float()


def backward_loss(classifier, features, labels):
    """Mean cross-entropy over the valid pixels of a batch; its gradients are added to those of `classifier`.

    Of several processes' batches together: each gets what its own add to the mean, and to the gradients.

    features: B x 256 x h x w. labels: B x H x W int64, 255 = void, which is left out. Returns a scalar tensor, 0 where all
    is void. The classifier comes before the upsampling, as both are linear, and images come one by one, so that at no
    time more than one image's C x H x W logits exist.
    """
    valid = distributed.all_reduce((labels != VOID).sum()).clamp(min=1)
    total = features.new_zeros(())
    for feature, label in zip(features.split(1), labels.split(1), strict=True):
        logits = resize(classifier(feature), label.shape[-2:])                      # 1 x C x H x W
        loss = F.cross_entropy(logits, label, ignore_index=VOID, reduction='sum') / valid
        loss.backward()
        total += loss.detach()
    return total


def predicted_classes(grid, size):
    """B x C x h x w class logits -> B x H x W uint8 array, the class of each pixel at (H, W) = size."""
    return torch.cat([resize(one, size).argmax(1).to(torch.uint8) for one in grid.split(1)]).cpu().numpy()


@torch.no_grad()
def class_logits(classifier, features, ids):
    """B x 256 x h x w -> B x C x h x w, float32. ids: B names, for messages. Raises `UserError` when they are not finite."""
    grid = classifier(features)
    finite = torch.isfinite(grid).flatten(1).all(1)
    if not finite.all():
        raise UserError(f'the network gives no finite logits for {ids[int(finite.int().argmin())]}: try --amp none, or other '
                        'weights')
    return grid


def online_iou(classifier, batches, classes):
    """IoU of each class in percent, at the network's resolution, over all processes. batches: `ValidationFeatures`."""
    confusion = np.zeros((classes, classes), np.int64)
    with distributed.watched():
        for ids, features, labels in batches:
            distributed.note(f'validation, image {ids[0]}')
            predictions = predicted_classes(class_logits(classifier, features, ids), labels.shape[-2:])
            for name, prediction, label in zip(ids, predictions, labels, strict=True):
                confusion += confusion_matrix(prediction, label, classes, name)
        distributed.all_reduce(torch.from_numpy(confusion))
    return class_iou(confusion) * 100


class LinearTrainer(Trainer):
    """Trains the classifier of a frozen `LinearNetwork` on batches of `TrainingViews`, and keeps the best one.

    best_model: path of its plain state dict. best_epoch (counted from 0) and best_iou (percent) are in the checkpoints too.
    """

    def __init__(self, *arguments, best_model, **named):
        super().__init__(*arguments, **named)
        self.best_model, self.best_epoch, self.best_iou = best_model, 0, 0.0

    def own_state(self):
        return {'best_epoch': self.best_epoch, 'best_iou': self.best_iou}

    def resume(self, state, source, **options):
        super().resume(state, source, **options)
        self.best_epoch, self.best_iou = state.get('best_epoch', 0), state.get('best_iou', 0.0)
        if self.step == 0 and self.best_iou and self.best_epoch == self.epoch - 1:
            self._save_best()  # it may have been killed just before that

    def train_step(self, batch):
        features = frozen_features(self.model, batch['image'], self.device, self.precision)
        labels = batch['labels'].to(self.device, non_blocking=True).long()
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward_loss(self.model.classifier, features, labels)
        distributed.sum_gradients(self.model.classifier.parameters())
        self.optimizer.step()
        return loss.unsqueeze(0) * distributed.world_size()  # whose mean over the processes is the loss

    def score(self, validation, classes):
        """Online mIoU in percent. validation: `ValidationFeatures`. It may take long, and a request to stop doesn't wait."""
        self.save()
        if not validation.keep:
            distributed.broadcast_state(self.model)  # batch norms that are not frozen have seen different images
        with preemption.at_once():
            return float(online_iou(self.model.classifier, validation, classes).mean())

    def save_epoch(self, iou):
        """Write the checkpoint after `run_epoch`, and the best model if `iou` (percent) is higher than in all epochs before.

        In this order: of a best model that was not written, the checkpoint has the weights.
        """
        better = iou > self.best_iou
        if better:
            self.best_epoch, self.best_iou = self.epoch, iou
        self.end_epoch()
        if better:
            self._save_best()
            distributed.barrier()

    def _save_best(self):
        if distributed.is_main():
            save_checkpoint(self.model.state_dict(), self.best_model)
