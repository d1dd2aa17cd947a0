"""One pass of the pre-training network over a split: per image a prototype, a mask, and the labels in and out of it.

Axes: M images, D embedding, C classes. What is kept of an image does not grow with its pixels but for the mask, which is
compressed.
"""
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.contents import Contents, merged
from data.normalization import to_images
from evaluation.evaluation_images import resize_labels
from evaluation.metrics import confusion_matrix
from evaluation.prototypes import CompressedMask, object_weights, prototypes
from models.networks import BackboneNetwork, PretrainingNetwork
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel import distributed
from utils.training.precision import autocast


@dataclass
class ImagePrototypes:
    """ids: M names. prototypes: M x D float32, unit rows (zero for an empty mask). masks: M `CompressedMask`s.
    histograms: M x 2 x C int64, pixels outside and inside the mask by label, or None without labels. Masks and histograms are
    at the images' size, or at the network's resolution. contents: what was seen of the images, with these masks."""
    ids: list[str]
    prototypes: np.ndarray
    masks: list[CompressedMask]
    histograms: np.ndarray | None
    contents: Contents = field(default_factory=Contents)


@torch.no_grad()
def extract_prototypes(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                       classes: int, at_resolution: bool = False, hide_background: bool = False) -> ImagePrototypes | None:
    """Run `network` (a `PretrainingNetwork` or `BackboneNetwork` in eval mode) once over a loader of `EvaluationImages`.

    classes: how many there are. at_resolution: masks and histograms at the network's resolution instead of the images' size.
    hide_background: the network sees the mean colour of the backbone's normalisation outside the data set's masks.

    All processes call this, each for its part of the images. Returns `ImagePrototypes` of all of them on rank 0, and
    None elsewhere.
    The object mask is the network's own (saliency logit above 0.5) or, where the loader gives masks, the data set's.
    Raises `UserError` for unreadable images, labels that are no class, and a network whose output is not finite.
    """
    with distributed.watched():
        parts = distributed.gather_objects(_embed_part(network, loader, device, precision, classes, at_resolution,
                                                       hide_background))
    if parts is None:
        return None
    *lists, seen = zip(*parts, strict=True)
    ids, vectors, masks, histograms = (list(itertools.chain.from_iterable(each)) for each in lists)
    return ImagePrototypes(ids, np.concatenate(vectors), masks, np.stack(histograms) if histograms else None, merged(seen))


def _embed_part(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                classes: int, at_resolution: bool, hide_background: bool):
    """Lists of ids, B x D arrays, masks and histograms, and contents, as in `ImagePrototypes`, of this process's part of the
    images."""
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    masks: list[CompressedMask] = []
    histograms: list[np.ndarray] = []
    seen = Contents()
    for batch, found, inside in embedded_batches(network, loader, device, precision, hide_background):
        vectors.append(found)
        given_labels = batch.get('labels', [None] * len(inside))
        for name, size, mask, labels, counted in zip(batch['id'], batch['size'], inside, given_labels, batch['contents'],
                                                     strict=True):
            counted.add_mask(name, not mask.any())
            seen.add(counted)
            if not at_resolution:
                mask = resize_labels(mask, size)
            masks.append(CompressedMask(mask))
            if labels is not None:
                histograms.append(confusion_matrix(mask, resize_labels(labels, mask.shape), classes, name, ids=2))
        ids += batch['id']
    return ids, vectors, masks, histograms, seen


@torch.no_grad()
def embedded_batches(network: PretrainingNetwork | BackboneNetwork, loader: DataLoader, device: torch.device, precision: str,
                     hide_background: bool = False) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yield the batches of a loader of `EvaluationImages`, each with its prototypes (B x D float32, unit rows) and its masks at
    the network's resolution (B x H x W uint8, 1 = object). Arguments and errors as of `extract_prototypes`."""
    for batch in progress(loader, 'Embedding'):
        distributed.note(f'embedding, image {batch["id"][0]}')
        images = to_images(batch['image'], device, network.backbone.normalization)
        given = torch.from_numpy(np.stack(batch['saliency'])).to(device) if 'saliency' in batch else None
        if hide_background:
            assert given is not None  # kmeans.py asks for masks
            images = images * given.unsqueeze(1)  # they are normalised: the mean colour is 0
        with autocast(device, precision):
            grid, saliency = network.grid(images)
        inside, weights = object_weights(saliency, batch['image'].shape[1:3], given)
        vectors = prototypes(grid, weights).cpu().numpy()
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            raise UserError(f'the network gives no finite embedding for {batch["id"][int(np.argmin(finite))]}: try --amp none, '
                            'or another checkpoint')
        yield batch, vectors, inside.to(torch.uint8).cpu().numpy()
