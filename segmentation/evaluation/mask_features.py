"""The vectors of photographs with masks: their network, and those still to be computed.

Axes: M images, N objects (see `evaluation.objects`), D features.
"""
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from easydict import EasyDict
from torch.utils.data import Subset

from data.dataset import SegmentationDataset
from data.files import IMAGE, MASK
from data.loaders import make_loader
from evaluation.evaluation_images import EvaluationImages
from evaluation.extraction import embedded_batches
from evaluation.model_loading import StageNetwork, embedding_network
from evaluation.objects import Objects
from evaluation.prototype_cache import PrototypeCache, content_key
from models.networks import BackboneNetwork, PretrainingNetwork
from utils.cli.progress import progress
from utils.config.create import plain
from utils.config.keys import EMBEDDING
from utils.errors import UserError
from utils.model_zoo.zoo import sha256
from utils.training.device import on_device

BATCH = 4  # images; small, so that little is lost when the work is interrupted

log = logging.getLogger('maskcontrast')


def feature_settings(p: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """All settings on which a vector depends besides the image and its mask, as plain values. p: the configuration of a
    kmeans.py run."""
    weights = str(p['pretraining'])
    return {**{key: plain(p[key]) for key in ('backbone', 'backbone_kwargs', 'head', 'model_kwargs')},
            'resolution': plain(p['transformation_kwargs']['resolution']), 'features': p['kmeans_kwargs']['features'],
            'hide_background': p['val_db_kwargs']['hide_background'], 'precision': precision, 'weights': weights,
            'weights_sha256': None if '://' in weights else sha256(weights)}


def feature_network(settings: Mapping[str, Any], device: torch.device) -> PretrainingNetwork | BackboneNetwork:
    """The network of `feature_settings`, in eval mode. Raises `UserError` if its weights are missing or have changed."""
    weights, digest = settings['weights'], settings['weights_sha256']
    if digest and sha256(weights) != digest:
        raise UserError(f'{weights} does not hold the weights with which the clusters were made: make the clusters again '
                        '(make mine)')
    network = embedding_network(EasyDict({**settings, 'kmeans_eval': True}), weights)
    if settings['features'] != EMBEDDING:
        network = StageNetwork(network, settings['features'])
    return on_device(network, device).eval()


def image_keys(dataset: SegmentationDataset) -> list[bytes]:
    """Keys that identify each image and its mask: M times 32 bytes."""
    return [content_key(dataset.path_of(IMAGE, name), dataset.path_of(MASK, name))
            for name in progress(dataset.ids, 'Looking for new ones')]


def object_keys(keys: Sequence[bytes], objects: Objects) -> list[bytes]:
    """Keys that identify each object: N times 32 bytes. keys: of `image_keys`, which are used without instances."""
    if not objects.dataset.instances:
        return list(keys)
    return [hashlib.sha256(keys[image] + name.rpartition('#')[2].encode()).digest()
            for image, name in zip(objects.image.tolist(), objects.ids, strict=True)]


def compute_missing(cache: PrototypeCache, objects: Objects, keys: Sequence[bytes], settings: Mapping[str, Any],
                    device: torch.device, workers: int) -> int:
    """Add the missing vectors of the objects to `cache`, batch by batch. Returns the number of their images.

    keys: of `object_keys`. settings: of `feature_settings`. workers: processes that read images.
    """
    dataset = objects.dataset
    of_image = [tuple(keys[objects.of_image(index)]) for index in range(len(dataset))]
    first = {own: index for index, own in reversed(list(enumerate(of_image))) if any(key not in cache for key in own)}
    missing = sorted(first.values())
    if len(missing) < len(dataset):
        log.info('features of %d of %d images are already saved', len(dataset) - len(missing), len(dataset))
    if not missing:
        return 0
    network = feature_network(settings, device)
    images = Subset(EvaluationImages(dataset, settings['resolution'], 0), missing)
    loader = make_loader(images, min(workers, len(missing)), device, batch_size=BATCH)
    done = 0
    for batch, vectors, _ in embedded_batches(network, loader, device, settings['precision'], settings['hide_background']):
        cache.add([key for index in missing[done:done + len(batch['id'])] for key in of_image[index]], vectors)
        done += len(batch['id'])
    return done
