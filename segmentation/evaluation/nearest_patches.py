"""Nearest neighbours of dense features: a memory of patches of labelled images classifies the patches of others (Balažević et
al., "Towards In-context Scene Understanding", arXiv 2306.01667, section 3).

Axes: B images, D embedding, h w the network's grid (a patch is a cell of it), H W its input, P patches of an image, N of the
memory, Q queries, K neighbours, C classes.
"""
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.contents import Contents
from data.loaders import item_rng
from data.normalization import to_images
from evaluation.evaluation_images import resize_labels
from evaluation.linear_probe import predicted_classes
from models.networks import BackboneNetwork, PretrainingNetwork
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel import distributed
from utils.training.precision import autocast

Network = PretrainingNetwork | BackboneNetwork


def patch_histograms(labels: np.ndarray, grid: Sequence[int], classes: int) -> np.ndarray:
    """Pixels of each class in each patch, void left out: (h * w) x C int64. labels: H x W uint8, class indices and VOID.
    grid: (h, w)."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(labels.shape, grid, strict=True))
    cells = (rows[:, None] * grid[1] + columns) * 256 + labels
    return np.bincount(cells.ravel(), minlength=math.prod(grid) * 256).reshape(-1, 256)[:, :classes]


def sample_patches(histograms: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Indices, in order, of the patches of an image that the memory keeps: at most `most` (None: all) of those with a label.

    histograms: P x C, as `patch_histograms` gives them. Those with rare classes go first (appendix of the paper): each patch
    has the score u * (sum of the image's shares of the classes that are in it), u uniform in [0, 1]; the lowest stay.
    """
    labelled = np.flatnonzero(histograms.any(1))
    if most is None or len(labelled) <= most:
        return labelled
    scores = (histograms[labelled] > 0) @ (histograms.sum(0) / histograms.sum()) * rng.random(len(labelled))
    return labelled[np.sort(np.argsort(scores, kind='stable')[:most])]


class PatchMemory:
    """features: N x D float32, unit rows. labels: N x C float32, rows that sum up to 1. Both on one device.

    k: K. temperature: of the softmax over similarities. block: how many queries and how many patches are compared at once.
    """

    def __init__(self, features: Tensor, labels: Tensor, k: int, temperature: float, block: int):
        self.features, self.labels = features, labels
        self.k, self.temperature, self.block = min(k, len(features)), temperature, block

    def soft_labels(self, queries: Tensor) -> Tensor:
        """Q x C: the mean of the labels of each query's K nearest patches (cosine similarity), weighted by the softmax of the
        similarities over the temperature. queries: Q x D, unit rows."""
        return torch.cat([self._soft_labels(part) for part in queries.split(self.block)])

    def _soft_labels(self, queries: Tensor):
        values = queries.new_empty((len(queries), 0))
        indices = torch.empty_like(values, dtype=torch.int64)
        for first in range(0, len(self.features), self.block):
            products = queries @ self.features[first:first + self.block].t()
            best = products.topk(min(self.k, products.shape[1]))
            values, indices = torch.cat([values, best.values], 1), torch.cat([indices, best.indices + first], 1)
            values, kept = values.topk(min(self.k, values.shape[1]))
            indices = indices.gather(1, kept)                                       # Q x K
        weights = (values / self.temperature).softmax(1)
        return torch.bmm(weights.unsqueeze(1), self.labels[indices]).squeeze(1)


@torch.no_grad()
def remember(network: Network, loader: DataLoader, classes: int, most: int | None, seed: int, device: torch.device,
             precision: str, seen: Contents) -> tuple[Tensor, Tensor]:
    """Features N x D and labels N x C of a `PatchMemory`, of the images of a loader of `EvaluationImages` with labels.

    most: patches of an image, see `sample_patches`. seed: of that choice, which depends on it and the image's id alone. What
    is read is added to `seen`. All processes call this, each for its part of the images; each gets all. Raises `UserError`
    for a split without any label, and as `unit_patches` does.
    """
    features: list[Tensor] = []
    labels = [torch.zeros(0, classes)]
    with distributed.watched():
        for batch in progress(loader, 'Memory'):
            distributed.note(f'memory, image {batch["id"][0]}')
            for contents in batch['contents']:
                seen.add(contents)
            patches, grid = unit_patches(network, batch, device, precision)
            for name, vectors, truth in zip(batch['id'], patches, batch['labels'], strict=True):
                histograms = patch_histograms(resize_labels(truth, batch['image'].shape[1:3]), grid, classes)
                kept = sample_patches(histograms, most, item_rng(seed, 0, name))
                features.append(vectors[torch.from_numpy(kept).to(device)])
                labels.append(torch.from_numpy(histograms[kept]).float())
        width = max(distributed.all_gather(torch.tensor([features[0].shape[1] if features else 0])).tolist())
        vectors = _gather(torch.cat([torch.zeros(0, width, device=device), *features]))  # a process may have no images
        counts = _gather(torch.cat(labels).to(device))
    if not len(vectors):
        raise UserError('none of the images of the memory has a labelled pixel')
    return vectors, counts / counts.sum(1, keepdim=True)


def _gather(rows: Tensor):
    """The rows of all processes, in rank order, on each of them."""
    counts = distributed.all_gather(torch.tensor([len(rows)])).tolist()
    padded = distributed.all_gather(F.pad(rows, (0, 0, 0, max(counts) - len(rows))))
    return torch.cat([part[:count] for part, count in zip(padded.split(max(1, max(counts))), counts, strict=False)])


@torch.no_grad()
def unit_patches(network: Network, batch: Mapping[str, Any], device: torch.device,
                 precision: str) -> tuple[Tensor, tuple[int, int]]:
    """Embeddings of the patches of a batch of `EvaluationImages`, B x (h * w) x D float32, unit vectors, and (h, w).

    Raises `UserError` if the network's output is not finite.
    """
    with autocast(device, precision):
        grid = network.grid(to_images(batch['image'], device, network.backbone.normalization))[0]
    patches = F.normalize(grid.float().flatten(2).transpose(1, 2), dim=2)
    finite = torch.isfinite(patches).flatten(1).all(1)
    if not finite.all():
        raise UserError(f'the network gives no finite embedding for {batch["id"][int(finite.int().argmin())]}: try --amp none, '
                        'or another checkpoint')
    return patches, (grid.shape[2], grid.shape[3])


@torch.no_grad()
def segment_by_memory(network: Network, memory: PatchMemory, loader: DataLoader, device: torch.device,
                      precision: str, seen: Contents) -> Iterator[np.ndarray]:
    """Predictions at the images' own size, H x W uint8 each, of this process's images in order: soft labels of the patches,
    upsampled bilinearly, argmax. What is read is added to `seen`."""
    for batch in loader:
        distributed.note(f'neighbours, image {batch["id"][0]}')
        for contents in batch['contents']:
            seen.add(contents)
        patches, grid = unit_patches(network, batch, device, precision)
        for vectors, size in zip(patches, batch['size'], strict=True):
            soft = memory.soft_labels(vectors).t().unflatten(1, grid)               # C x h x w
            yield predicted_classes(soft.unsqueeze(0), size)[0]
