"""The linear classifier on a frozen network: its training step and its online score (paper section 4).

Axes: B batch, C classes, H W the input's height and width, h w the network's grid.
"""
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.label_space import VOID
from data.normalization import to_images
from evaluation.metrics import class_iou, confusion_matrix
from models.interpolation import resize
from models.networks import LinearNetwork
from utils.errors import UserError
from utils.parallel import distributed
from utils.training.precision import autocast


@torch.no_grad()
def frozen_features(network: LinearNetwork, images: Tensor, device: torch.device, precision: str) -> Tensor:
    """The input of the classifier of a `LinearNetwork` for B x H x W x 3 uint8 images: B x 256 x h x w float32, without a
    graph."""
    with autocast(device, precision):
        features = network.features(to_images(images, device, network.backbone.normalization))
    return features.float()


def backward_loss(classifier: nn.Module, features: Tensor, labels: Tensor, scale: float = 1) -> Tensor:
    """Mean cross-entropy over the valid pixels of a batch; its gradients are added to those of `classifier`.

    With several processes, the mean is over the batches of all; each process gets its share of the mean and of the gradients.

    features: B x 256 x h x w; where they have a graph, gradients go on to what made them. labels: B x H x W int64; VOID is
    left out. scale: of the gradients (float16's). Returns a scalar tensor, 0 where all is void. The classifier comes before
    the upsampling, as both are linear, and images come one by one, so that at no time more than one image's C x H x W logits
    exist.
    """
    valid = distributed.all_reduce((labels != VOID).sum()).clamp(min=1)
    total = features.new_zeros(())
    grids = [feature.detach().requires_grad_(features.requires_grad) for feature in features.split(1)]
    for feature, label in zip(grids, labels.split(1), strict=True):
        logits = resize(classifier(feature), label.shape[-2:])                      # 1 x C x H x W
        loss = F.cross_entropy(logits, label, ignore_index=VOID, reduction='sum') / valid
        (loss * scale).backward()
        total += loss.detach()
    if features.requires_grad:
        features.backward(torch.cat([feature.grad for feature in grids if feature.grad is not None]))
    return total


def predicted_classes(grid: Tensor, size: Sequence[int]) -> np.ndarray:
    """B x C x h x w class logits -> B x H x W uint8 array, the class of each pixel at (H, W) = size."""
    return torch.cat([resize(one, size).argmax(1).to(torch.uint8) for one in grid.split(1)]).cpu().numpy()


@torch.no_grad()
def class_logits(classifier: nn.Module, features: Tensor, ids: Sequence[str]) -> Tensor:
    """B x 256 x h x w -> B x C x h x w, float32. ids: B names, for messages. Raises `UserError` if they are not finite."""
    grid = classifier(features)
    finite = torch.isfinite(grid).flatten(1).all(1)
    if not finite.all():
        raise UserError(f'the network gives no finite logits for {ids[int(finite.int().argmin())]}: try --amp none, or other '
                        'weights')
    return grid


def online_iou(classifier: nn.Module, batches: Iterable[tuple[Sequence[str], Tensor, np.ndarray]], classes: int) -> np.ndarray:
    """IoU of each class in percent, at the network's resolution, over all processes. batches: `FeatureCache`."""
    confusion = np.zeros((classes, classes), np.int64)
    with distributed.watched():
        for ids, features, labels in batches:
            distributed.note(f'validation, image {ids[0]}')
            predictions = predicted_classes(class_logits(classifier, features, ids), labels.shape[-2:])
            for name, prediction, label in zip(ids, predictions, labels, strict=True):
                confusion += confusion_matrix(prediction, label, classes, name)
        distributed.all_reduce(torch.from_numpy(confusion))
    return class_iou(confusion) * 100
