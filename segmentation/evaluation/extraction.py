"""One pass of the pre-training network over a split: for each image, or with instances for each object, a prototype, a mask,
and the labels inside and outside it.

Axes: M images, N objects (M of them where each image's mask is one), D embedding, C classes. The data kept for an image do not
grow with its pixels, except for the mask, which is compressed.
"""
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.contents import Contents, merged
from data.normalization import to_images
from evaluation.evaluation_images import resize_labels
from evaluation.metrics import confusion_matrix
from evaluation.prototypes import CompressedMask, object_prototypes, object_weights, prototypes
from models.networks import BackboneNetwork, PretrainingNetwork
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel import distributed
from utils.training.precision import autocast


@dataclass
class ImagePrototypes:
    """ids: M names. prototypes: N x D float32, unit rows (zero for an empty mask). masks: M `CompressedMask`s, which hold the
    numbers of objects where these are known. histograms: N x 2 x C int64, pixels outside and inside the mask by label, or None
    without labels; pixels outside all objects of an image are counted once, with the first of them (of images without any, with
    the first of all). Masks and histograms are at the images' size, or at the network's resolution. contents: the summary of
    the images, with these masks. counts: objects of each image."""
    ids: list[str]
    prototypes: np.ndarray
    masks: list[CompressedMask]
    histograms: np.ndarray | None
    contents: Contents = field(default_factory=Contents)
    counts: list[int] = field(default_factory=list)


@torch.no_grad()
def extract_prototypes(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                       classes: int, at_resolution: bool = False, hide_background: bool = False) -> ImagePrototypes | None:
    """Run `network` (a `PretrainingNetwork` or `BackboneNetwork` in eval mode) once over a loader of `EvaluationImages`.

    classes: how many there are. at_resolution: masks and histograms at the network's resolution instead of the images' size.
    hide_background: the network sees the mean colour of the backbone's normalisation outside the data set's masks.

    The object mask is the network's own (saliency logit above 0.5) or, where the loader gives masks, the data set's.
    All processes call this, each for its part of the images. Returns `ImagePrototypes` of all of them on rank 0, and None
    elsewhere.
    Raises `UserError` for unreadable images, labels that name no class, and a network whose output is not finite.
    """
    with distributed.watched():
        parts = distributed.gather_objects(_embed_part(network, loader, device, precision, classes, at_resolution,
                                                       hide_background))
    if parts is None:
        return None
    *lists, around, seen = zip(*parts, strict=True)
    ids, vectors, masks, counted, counts = (list(itertools.chain.from_iterable(each)) for each in lists)
    histograms = np.stack(counted) if counted else None
    if histograms is not None:
        histograms[0, 0] += sum(around)
    stacked = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
    return ImagePrototypes(ids, stacked, masks, histograms, merged(seen), counts)


def _embed_part(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                classes: int, at_resolution: bool, hide_background: bool):
    """Of this process's part of the images: lists of ids, B x D arrays, masks, histograms and numbers of objects, as in
    `ImagePrototypes`; C pixels of images without objects; and contents."""
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    masks: list[CompressedMask] = []
    histograms: list[np.ndarray] = []
    counts: list[int] = []
    around, seen = np.zeros(classes, np.int64), Contents()
    for batch, found, inside in embedded_batches(network, loader, device, precision, hide_background):
        vectors += [found] if len(found) else []
        numbers = batch.get('objects', [1] * len(inside))
        given_labels = batch.get('labels', [None] * len(inside))
        for name, size, mask, labels, objects, counted in zip(batch['id'], batch['size'], inside, given_labels, numbers,
                                                              batch['contents'], strict=True):
            counted.add_mask(name, not mask.any())
            seen.add(counted)
            if not at_resolution:
                mask = resize_labels(mask, size)
            masks.append(CompressedMask(mask))
            if labels is None:
                continue
            outside, *inner = confusion_matrix(mask, resize_labels(labels, mask.shape), classes, name, ids=objects + 1)
            histograms += [np.stack([np.zeros_like(outside) if index else outside, own]) for index, own in enumerate(inner)]
            around += 0 if inner else outside
        ids += batch['id']
        counts += numbers
    return ids, vectors, masks, histograms, counts, around, seen


@torch.no_grad()
def embedded_batches(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                     hide_background: bool) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yield the batches of a loader of `EvaluationImages`, each with its prototypes (B x D float32, unit rows) and its masks at
    the network's resolution (B x H x W uint8, 1 = object); where the loader gives instances, with a prototype for each object,
    in their order, and with masks of the objects' numbers (int32). Arguments and errors as of `extract_prototypes`."""
    for batch in progress(loader, 'Embedding'):
        distributed.note(f'embedding, image {batch["id"][0]}')
        images = to_images(batch['image'], device, network.backbone.normalization)
        if 'instances' in batch:
            maps = torch.from_numpy(np.stack(batch['instances'])).to(device)
            vectors = _object_vectors(network, images, maps, batch['objects'], precision, hide_background).cpu().numpy()
            _check_finite(vectors, [name for name, count in zip(batch['id'], batch['objects'], strict=True)
                                    for _ in range(count)])
            yield batch, vectors, maps.cpu().numpy()
            continue
        given = torch.from_numpy(np.stack(batch['saliency'])).to(device) if 'saliency' in batch else None
        if hide_background:
            assert given is not None  # kmeans.py asks for masks
            images = images * given.unsqueeze(1)  # they are normalised: the mean colour is 0
        with autocast(images.device, precision):
            grid, saliency = network.grid(images)
        inside, weights = object_weights(saliency, batch['image'].shape[1:3], given)
        vectors = prototypes(grid, weights).cpu().numpy()
        _check_finite(vectors, batch['id'])
        yield batch, vectors, inside.to(torch.uint8).cpu().numpy()


def _object_vectors(network: PretrainingNetwork | BackboneNetwork, images: torch.Tensor, maps: torch.Tensor,
                    counts: Sequence[int], precision: str, hide_background: bool):
    """The prototype of each object: N x D. images: B x 3 x H x W. maps: B x H x W. counts: objects of each image.

    An image goes through the network once or, as hiding the background gives another image for each object, once for each of
    them, in batches no larger than `images`.
    """
    grid, found = None, []
    if not hide_background:
        with autocast(images.device, precision):
            grid = network.grid(images)[0]
    for image, (instances, count) in enumerate(zip(maps, counts, strict=True)):
        for numbers in torch.arange(1, count + 1, device=images.device).split(len(images)):
            if grid is not None:
                own = grid[image:image + 1]
            else:
                with autocast(images.device, precision):
                    own = network.grid(images[image] * (instances == numbers.view(-1, 1, 1)).unsqueeze(1))[0]
            found.append(object_prototypes(own, instances, numbers))
    return torch.cat(found) if found else torch.zeros(0, 1)


def _check_finite(vectors: np.ndarray, names: Sequence[str]):
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise UserError(f'the network gives no finite embedding for {names[int(np.argmin(finite))]}: try --amp none, '
                        'or another checkpoint')
