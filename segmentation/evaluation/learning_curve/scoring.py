"""The scores of one network: K-means, retrieval, neighbours and a quick linear classifier, all from one pass over each split.

Scores equal those of `kmeans.py` and `retrieval.py`, for two kinds of features at once: those of the whole network, and those
of its backbone alone (`head: none`).

Axes: M images of a split, D embedding, C classes, B batch.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.label_space import LabelSpace
from data.normalization import to_images
from evaluation.clustering import cluster_all, whiten
from evaluation.evaluation_images import resize_labels
from evaluation.learning_curve.quick_linear import CellSample
from evaluation.linear_probe import class_logits, predicted_classes
from evaluation.metrics import class_iou, confusion_matrix, segment_confusion
from evaluation.prototypes import object_weights, prototypes
from evaluation.retrieval import NO_CLASS, mask_classes, nearest_neighbours
from models.networks import PretrainingNetwork
from utils.cli.progress import progress
from utils.errors import UserError
from utils.training.precision import autocast

NETWORK, BACKBONE = 'network', 'backbone'
GIVEN, OWN = 'given', 'own'  # masks: of the data set, and of the network

Scores = dict[str, float | None]


@dataclass
class Segments:
    """The objects of a split in one sort of masks. vectors: of each sort of features, M x D unit rows (zero for an empty
    mask). at_size, at_resolution: M x 2 x C pixels outside and inside the masks by label, at the images' own size and at the
    network's resolution."""
    vectors: dict[str, np.ndarray]
    at_size: np.ndarray
    at_resolution: np.ndarray


@dataclass
class _Gathered:
    vectors: dict[str, list[np.ndarray]] = field(default_factory=dict)
    at_size: list[np.ndarray] = field(default_factory=list)
    at_resolution: list[np.ndarray] = field(default_factory=list)

    def segments(self):
        return Segments({name: np.concatenate(parts) for name, parts in self.vectors.items()}, np.stack(self.at_size),
                        np.stack(self.at_resolution))


@dataclass
class Grids:
    """What a network gives for a batch, by sort of features. embedded: the grids that are summed over masks, B x D x h x w.
    linear: those that a linear classifier sees, the decoder's channels, if there is one, and the backbone's. saliency: logits,
    B x h x w, or None."""
    embedded: dict[str, Tensor]
    linear: dict[str, Tensor]
    saliency: Tensor | None


def network_grids(network: PretrainingNetwork, images: Tensor) -> Grids:
    """B x 3 x H x W normalised images -> all grids, in one pass."""
    backbone = network.backbone(images)
    decoded = backbone if network.decoder is None else network.decoder(backbone)
    head = network.classification_head
    return Grids({NETWORK: network.head(decoded), BACKBONE: backbone},
                 {BACKBONE: backbone} if decoded is backbone else {NETWORK: decoded, BACKBONE: backbone},
                 head(decoded).squeeze(1) if head is not None else None)


@torch.no_grad()
def read_segments(network: PretrainingNetwork, loader: DataLoader, device: torch.device, precision: str, space: LabelSpace,
                  each: Callable[[dict[str, Tensor], dict[str, list]], None]) -> dict[str, Segments]:
    """Run `network` once over a loader of `EvaluationImages` with labels: `Segments` in the given masks (the loader's, or
    without any the objects of the labels), and in the network's own if it predicts any.

    each: called with every batch's `Grids.linear`, float32, and the batch. Raises `UserError` for unreadable images, labels
    that name no class, and outputs that are not finite.
    """
    gathered: dict[str, _Gathered] = {}
    for batch in progress(loader, 'Scoring'):
        images = to_images(batch['image'], device, network.backbone.normalization)
        with autocast(device, precision):
            grids = network_grids(network, images)
        each({name: grid.float() for name, grid in grids.linear.items()}, batch)
        size = batch['image'].shape[1:3]
        given = torch.from_numpy(np.stack(batch.get('saliency') or _objects(batch['labels'], size, space))).to(device)
        for name, masks in ((GIVEN, given), *(((OWN, None),) if grids.saliency is not None else ())):
            part = gathered.setdefault(name, _Gathered())
            inside, weights = object_weights(grids.saliency, size, masks)
            for features, grid in grids.embedded.items():
                vectors = prototypes(grid, weights).cpu().numpy()
                if not np.isfinite(vectors).all():
                    raise UserError(f'the network gives no finite embedding for {batch["id"][0]} or the next: try --amp none')
                part.vectors.setdefault(features, []).append(vectors)
            for image, mask, labels in zip(batch['id'], inside.to(torch.uint8).cpu().numpy(), batch['labels'], strict=True):
                part.at_resolution.append(confusion_matrix(mask, resize_labels(labels, mask.shape), len(space), image, ids=2))
                part.at_size.append(confusion_matrix(resize_labels(mask, labels.shape), labels, len(space), image, ids=2))
    return {name: part.segments() for name, part in gathered.items()}


def _objects(labels: Sequence[np.ndarray], size: Sequence[int], space: LabelSpace):
    """Masks of all that is labelled as a class but background, at `size`: uint8, 1 = object."""
    return [np.isin(resize_labels(label, size), space.objects).astype(np.uint8) for label in labels]


def score_network(network: PretrainingNetwork, database: DataLoader, queries: DataLoader, device: torch.device, precision: str,
                  space: LabelSpace, seeds: Sequence[int]) -> dict[str, Scores]:
    """Scores in percent, by sort of features and name; None if there is nothing to score.

    database, queries: loaders of `EvaluationImages` with labels, and with masks or without: the images for lookup and fitting,
    and the images to score. seeds: of K-means; the first also chooses the linear classifier's cells.

    kmeans, retrieval, linear: mIoU on the queries. neighbours: share of the database's objects whose nearest other one is of
    their class. `..._own_masks` are in the network's masks, all others in the given ones.
    """
    samples: dict[str, CellSample] = {}

    def gather(grids: dict[str, Tensor], batch: dict[str, list]):
        for name, grid in grids.items():
            if name not in samples:
                samples[name] = CellSample(len(database.dataset), seeds[0])  # type: ignore[arg-type]
            samples[name].add(grid, batch['labels'])

    known = read_segments(network, database, device, precision, space, gather)
    classifiers = {name: sample.fit(len(space)) for name, sample in samples.items()}
    samples.clear()
    confusions = {name: np.zeros((len(space), len(space)), np.int64) for name in classifiers}

    def classify(grids: dict[str, Tensor], batch: dict[str, list]):
        for name, grid in grids.items():
            confusions[name] += _confusion(classifiers[name], grid, batch, len(space))

    asked = read_segments(network, queries, device, precision, space, classify)
    scores: dict[str, Scores] = {}
    for name in (NETWORK, BACKBONE):
        scores[name] = {'kmeans': kmeans_iou(asked[GIVEN], name, space, seeds),
                        'retrieval': retrieval_iou(known[GIVEN], asked[GIVEN], name, space),
                        'neighbours': neighbours_of_same_class(known[GIVEN], name, space),
                        'linear': float(class_iou(confusions.get(name, confusions[BACKBONE])).mean() * 100)}
    if OWN in asked:
        scores[NETWORK]['kmeans_own_masks'] = kmeans_iou(asked[OWN], NETWORK, space, seeds)
        scores[NETWORK]['retrieval_own_masks'] = retrieval_iou(known[OWN], asked[OWN], NETWORK, space)
    return scores


def point_text(point: Mapping[str, Any], start: Scores | None) -> str:
    """A point of a `Curve` in a line: each score of the whole network and, in parentheses, of its backbone alone and of the
    `start`."""
    parts = []
    for name, score in point['scores'][NETWORK].items():
        others = {'backbone': point['scores'][BACKBONE].get(name), 'start': (start or {}).get(name)}
        shown = 'none' if score is None else f'{score:.1f}'
        known = ', '.join(f'{part} {value:.1f}' for part, value in others.items() if value is not None)
        parts.append(f'{name.replace("_", " ")} {shown}' + (f' ({known})' if known else ''))
    return f'Epoch {point["epoch"]}, {point["steps"]} steps: {", ".join(parts)}'


def _confusion(classifier: nn.Conv2d, grid: Tensor, batch: dict[str, list], classes: int):
    """C x C, of the classifier's predictions at the network's resolution."""
    size = batch['image'][0].shape[:2]
    predictions = predicted_classes(class_logits(classifier, grid, batch['id']), size)
    return sum(confusion_matrix(prediction, resize_labels(labels, size), classes, image)
               for prediction, labels, image in zip(predictions, batch['labels'], batch['id'], strict=True))


def kmeans_iou(segments: Segments, features: str, space: LabelSpace, seeds: Sequence[int]) -> float | None:
    """As `kmeans.py` without other settings: mean mIoU in percent of as many clusters as classes. None for fewer images."""
    vectors = segments.vectors[features]
    if len(vectors) < space.n_clusters - 1:
        return None
    if vectors.any():  # otherwise all masks are empty
        vectors = whiten(vectors)
    clusterings = cluster_all(vectors, segments.at_size, space.n_clusters, seeds, space.background is not None)
    return float(np.mean([class_iou(one.confusion).mean() for one in clusterings if one.confusion is not None]) * 100)


def retrieval_iou(database: Segments, queries: Segments, features: str, space: LabelSpace) -> float | None:
    """As `retrieval.py` over all classes: mIoU in percent. None where the database has no labelled object."""
    labels = mask_classes(database.at_resolution, space.background)
    members = np.flatnonzero(labels != NO_CLASS)
    if not len(members):
        return None
    found = members[nearest_neighbours(queries.vectors[features], database.vectors[features][members], 1)[:, 0]]
    confusion = segment_confusion(queries.at_resolution, labels[found], space.outside, len(space))
    return float(class_iou(confusion).mean() * 100)


def neighbours_of_same_class(segments: Segments, features: str, space: LabelSpace) -> float | None:
    """Percentage of the labelled objects whose nearest other one (cosine) has their class. None for fewer than two objects."""
    labels = mask_classes(segments.at_resolution, space.background)
    members = np.flatnonzero(labels != NO_CLASS)
    if len(members) < 2:
        return None
    vectors = segments.vectors[features][members].astype(np.float64)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    return float((labels[members] == labels[members[products.argmax(1)]]).mean() * 100)
