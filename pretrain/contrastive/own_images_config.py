"""Settings of a pre-training for a number of images and a device, where nobody has chosen them."""
from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.dataset import SegmentationDataset
from data.files import MASK
from utils.errors import UserError

if TYPE_CHECKING:
    import torch

IMAGENET = 'imagenet_classification'
MANY = 2000  # images: from here on a larger network has enough to learn from
NARROW = 500  # images: below, an embedding of more channels would hold noise
STEPS, EPOCHS = {'cpu': 600, 'other': 4000}, 10  # at least: of all, and over each image
TIMEOUT = 20  # seconds to wait for a server


def training_settings(name: str, saliency: str, images: int, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    """The content of an experiment file for main.py, but for what depends on the initial weights, and lines that say why.

    name: the data set. saliency: its masks. images: with masks. device: a torch.device.
    Raises `UserError` for fewer than 2 images.
    """
    if images < 2:
        raise UserError(f'{name}: {images} images with masks are too few to contrast: give more photographs')
    on_cpu = device.type == 'cpu'
    batch = min(16 if on_cpu else 64, images)
    steps = STEPS['cpu' if on_cpu else 'other']
    epochs = max(EPOCHS, math.ceil(steps / (images // batch)))
    settings: dict[str, Any] = {
        'train_db_name': name, 'train_db_kwargs': {'saliency': saliency}, 'train_batch_size': batch,
        'num_workers': 2 if on_cpu else 8, 'transformation_kwargs': {'crop_size': 96 if on_cpu else 224},
        'on_bad_image': 'skip',
        'backbone': 'resnet50' if images >= MANY and not on_cpu else 'resnet18',
        'model_kwargs': {'ndim': 16 if images < NARROW else 32, 'head': 'linear', 'upsample': True,
                         'use_classification_head': True},
        'head': 'deeplab', 'epochs': epochs, 'scheduler': 'poly', 'seed': 1,
        # An image's own prototype of the last epoch in the queue is a negative that it can't be told from: there should be
        # few, so the queue is one batch, or up to four where that is no more than a quarter of the images.
        'moco_kwargs': {'K': batch * min(max(1, images // (4 * batch)), 4)},
    }
    crop, ndim = settings['transformation_kwargs']['crop_size'], settings['model_kwargs']['ndim']
    return settings, [
        f'{images} images on {device.type}: {settings["backbone"]}, views of {crop} pixels, batches of {batch}, '
        f'embeddings of {ndim} channels',
        f'{epochs} epochs, {epochs * (images // batch)} steps: at least {steps} steps and {EPOCHS} epochs']


def initial_weights(asked: str, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """What `settings` lack: the keys that depend on the initial weights; and a line about these.

    asked: 'none', IMAGENET or 'auto', which takes those of ImageNet where they can be had. earlier: settings of an earlier run
    that this one may go on from, or None: it keeps its choice.
    """
    line = {'none': 'training starts from random weights', IMAGENET: 'training starts from ImageNet weights'}.get(asked)
    if line:
        return _settings_for(asked == IMAGENET, settings), line
    for imagenet in (False, True):
        more = _settings_for(imagenet, settings)
        if earlier == {**settings, **more}:
            return more, 'initial weights: as the run began'
    if not _can_have_weights(settings['backbone']):
        return _settings_for(False, settings), (
            'no ImageNet weights (neither on disk nor to be fetched): training starts from random ones, which find less; to '
            f'start over with them, ask for {IMAGENET}')
    return _settings_for(True, settings), 'training starts from ImageNet weights'


def _settings_for(imagenet: bool, settings: Mapping[str, Any]):
    """From pre-trained weights the published settings hold, but for a key network that follows within the shorter training;
    from random ones, for a few hundred steps, those of the demo."""
    backbone = {'dilated': True, 'pretraining': IMAGENET if imagenet else None}
    contrast = {'T': 0.5, 'm': 0.99} if imagenet else {'T': 0.2, 'm': 0.9}
    sgd = {'lr': 0.004, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False}
    return {'backbone_kwargs': backbone, 'freeze_layers': imagenet, 'moco_kwargs': {**settings['moco_kwargs'], **contrast},
            'optimizer': 'sgd' if imagenet else 'adam',
            'optimizer_kwargs': sgd if imagenet else {'lr': 0.001, 'weight_decay': 0.0001}}


def _can_have_weights(backbone: str):
    """Whether torchvision's weights are on disk or can be fetched, which is then done."""
    from models.backbone_weights import backbone_weights  # here, as it loads torchvision
    from models.backbones import find_backbone
    imagenet = find_backbone(backbone).imagenet
    if imagenet is None:
        return False
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub has none of its own
    try:
        backbone_weights(imagenet, backbone)
    except UserError:
        return False
    finally:
        socket.setdefaulttimeout(before)
    return True


def earlier_settings(experiment: str | Path, seen: str | Path) -> tuple[dict[str, Any] | None, str | None]:
    """Content of an experiment file, and of the file `seen` with the `fingerprint` of its images; None, None without both."""
    try:
        return yaml.safe_load(Path(experiment).read_text(encoding='utf-8')), Path(seen).read_text(encoding='utf-8').strip()
    except (OSError, ValueError, yaml.YAMLError):
        return None, None


def fingerprint(dataset: SegmentationDataset) -> str:
    """A hash of which images a data set has, and what their masks are: others would not be the same training."""
    assert dataset.masks is not None
    digest = hashlib.sha256()
    for name in dataset.ids:
        digest.update(name.encode() + b'\0' + dataset.path_of(MASK, name).read_bytes())
    return digest.hexdigest()
