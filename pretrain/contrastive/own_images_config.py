"""Whether to train on a folder of photographs, and the settings by default."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from contrastive.own_weights import Weights
from data.dataset import SegmentationDataset
from data.files import MASK
from models.backbones import grid_kwargs
from utils.config import path_text
from utils.errors import UserError

if TYPE_CHECKING:
    import torch

# Images with masks from which on a network is trained although there are weights: clusters of its backbone's features gained
# over the initial weights with 4,000 photographs, and lost with 400 and with 241 (docs/learning-curves.md).
TRAIN_FROM = 4000
MANY = 2000  # images: from this number on there are enough for a larger network
NARROW = 500  # images: below, an embedding of more channels would hold noise
STEPS, EPOCHS = {'cpu': 600, 'other': 4000}, 13  # the least of a training; 13 epochs are those of TRAIN_FROM


def trains(asked: str, images: int, weights: Weights) -> tuple[bool, str]:
    """Whether to pre-train on this number of images with masks, and a line with the reason.

    asked: '1', '0', or 'auto': with at least `TRAIN_FROM` images, or without weights.
    Raises `UserError` if there is then no way to tell objects apart.
    """
    if asked == '1':
        return True, 'a network is trained, as requested'
    if asked == '0' and weights.source is None:
        raise UserError('--train 0: random weights cannot tell objects apart: give --weights, or allow training')
    if asked == '0':
        return False, 'no training, as requested'
    if weights.source is None:
        return True, 'a network is trained, since there are no weights'
    if images >= TRAIN_FROM:
        return True, f'a network is trained, since there are {TRAIN_FROM} images or more'
    return False, f'no training: these weights tell {images} images apart better without it (from {TRAIN_FROM} on, or TRAIN=1)'


def training_settings(name: str, saliency: str, images: int, device: torch.device, backbone: str | None = None,
                      instances: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The content of an experiment file for main.py, except for the keys that depend on the initial weights, and lines with the
    reasons.

    name: the data set. saliency: its masks. images: with masks. backbone: its name; None for one that suits their number.
    instances: whether the masks are those of single objects. Raises `UserError` for fewer than 2 images.
    """
    if images < 2:
        raise UserError(f'{name}: {images} images with masks are too few to contrast: give more photographs')
    on_cpu = device.type == 'cpu'
    batch = min(16 if on_cpu else 64, images)
    steps = STEPS['cpu' if on_cpu else 'other']
    epochs = max(EPOCHS, math.ceil(steps / (images // batch)))
    settings: dict[str, Any] = {
        'train_db_name': name, 'train_db_kwargs': _masks(saliency, instances), 'train_batch_size': batch,
        'num_workers': 2 if on_cpu else 8, 'transformation_kwargs': {'crop_size': 96 if on_cpu else 224},
        'on_bad_image': 'skip',
        'backbone': backbone or ('resnet50' if images >= MANY and not on_cpu else 'resnet18'),
        'model_kwargs': {'ndim': 16 if images < NARROW else 32, 'head': 'linear', 'upsample': True,
                         'use_classification_head': True},
        'head': 'deeplab', 'epochs': epochs, 'scheduler': 'poly', 'seed': 1,
        # An image's own prototype of the last epoch in the queue is a negative that it can't be told from: there should be
        # few, so the queue is one batch, or up to four where that is at most a quarter of the images.
        'moco_kwargs': {'K': batch * min(max(1, images // (4 * batch)), 4)},
    }
    crop, ndim = settings['transformation_kwargs']['crop_size'], settings['model_kwargs']['ndim']
    return settings, [
        f'{images} images on {device.type}: {settings["backbone"]}, views of {crop} pixels, batches of {batch}, '
        f'embeddings of {ndim} channels',
        f'{epochs} epochs, {epochs * (images // batch)} steps: at least {steps} steps and {EPOCHS} epochs']


def initial_settings(weights: Weights, settings: Mapping[str, Any],
                     earlier: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The remaining keys, which depend on the initial weights, and a line about these.

    earlier: settings of an earlier run whose choice between these weights and random ones is kept, or None.
    """
    for one in (Weights(weights.backbone, None, ''), weights):
        more = _settings_for(one, settings)
        if earlier == {**settings, **more}:
            return more, 'initial weights: those of the start of the run'
    return _settings_for(weights, settings), f'training starts from {weights.source or "random weights"}'


def _settings_for(weights: Weights, settings: Mapping[str, Any]):
    """From pre-trained weights the published settings hold, but for a key network that follows within the shorter training;
    from random ones, for a few hundred steps, those of the demo."""
    given = weights.source is not None
    contrast = {'T': 0.5, 'm': 0.99} if given else {'T': 0.2, 'm': 0.9}
    sgd = {'lr': 0.004, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False}
    return {'backbone_kwargs': {'dilated': True, **weights.initial()}, 'freeze_layers': given,
            'moco_kwargs': {**settings['moco_kwargs'], **contrast}, 'optimizer': 'sgd' if given else 'adam',
            'optimizer_kwargs': sgd if given else {'lr': 0.001, 'weight_decay': 0.0001}}


def _masks(saliency: str, instances: bool):
    return {'saliency': saliency, **({'instances': True} if instances else {})}


def network_settings(name: str, saliency: str, device: torch.device, weights: Weights, instances: bool) -> dict[str, Any]:
    """The content of network.yml, from which own_clusters.py takes its network: weights of others, untrained."""
    return {'train_db_name': name, 'train_db_kwargs': _masks(saliency, instances),
            'num_workers': 2 if device.type == 'cpu' else 8, 'backbone': weights.backbone, 'head': 'none',
            'pretraining': weights.source and path_text(weights.source)}


def trained_settings(settings: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """The same for a network that was trained with `settings`. checkpoint: its path."""
    kept = ('train_db_name', 'train_db_kwargs', 'num_workers', 'transformation_kwargs', 'backbone', 'head', 'model_kwargs')
    return {**{key: settings[key] for key in kept}, 'backbone_kwargs': grid_kwargs(settings['backbone_kwargs']),
            'pretraining': path_text(checkpoint), 'from_random_weights': not settings['freeze_layers']}


def earlier_settings(experiment: str | Path, seen: str | Path) -> tuple[dict[str, Any] | None, str | None]:
    """Content of an experiment file, and of the file `seen` with the `fingerprint` of its images; None, None without both."""
    try:
        return yaml.safe_load(Path(experiment).read_text(encoding='utf-8')), Path(seen).read_text(encoding='utf-8').strip()
    except (OSError, ValueError, yaml.YAMLError):
        return None, None


def fingerprint(dataset: SegmentationDataset) -> str:
    """A hash of the images of a data set and their masks, which identifies the training."""
    assert dataset.masks is not None
    digest = hashlib.sha256()
    for name in dataset.ids:
        digest.update(name.encode() + b'\0' + dataset.path_of(MASK, name).read_bytes())
    return digest.hexdigest()
