"""K-means on the prototypes of a split, and its score (paper section 4).

Axes: M images, D embedding, C classes. Predicted ids: 0 outside the masks, cluster + 1 inside.
"""
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from data.dataset import SegmentationDataset
from data.label_space import VOID
from evaluation import metrics
from evaluation.results import print_iou
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

COMPONENTS = 32
BATCH_SIZE = 1000
N_INIT = 3  # the default of the scikit-learn that the published numbers came from


@dataclass
class Clustering:
    """clusters: M integers. by_id: (clusters + 1) x C confusion matrix of the predicted ids. classes_of: the class that each
    id was matched with. confusion: C x C, of these classes. Without labels `classes_of` gives the ids themselves, and the
    matrices are None."""
    clusters: np.ndarray
    by_id: np.ndarray | None
    classes_of: np.ndarray
    confusion: np.ndarray | None

    def prediction(self, index: int | slice, mask: np.ndarray) -> np.ndarray:
        """An image's predicted classes, H x W uint8. index: its place among the rows that were clustered, or those of its
        objects. mask: H x W, 0 or 1, or 1 to n for these objects."""
        return self.classes_of[[0, *(np.atleast_1d(self.clusters[index]) + 1)]].astype(np.uint8)[mask]


def cluster_all(vectors: np.ndarray, histograms: np.ndarray | None, n_clusters: int, seeds: Iterable[int],
                has_background: bool = True) -> list[Clustering]:
    """A `Clustering` for each seed. n_clusters counts background, so K-means itself gets one less. has_background: of
    `score`."""
    return [score(histograms, cluster(vectors, n_clusters - 1, seed), n_clusters, has_background) for seed in seeds]


def most_compact(vectors: np.ndarray, clusterings: Sequence[Clustering]) -> int:
    """Index of the smallest sum of squared distances, which is what K-means minimises: the best clustering without labels."""
    return int(np.argmin([(distances(vectors, clustering.clusters) ** 2).sum() for clustering in clusterings]))


def whiten(prototypes: np.ndarray) -> np.ndarray:
    """PCA with whitening to min(32, D, M) components. prototypes: M x D. Returns M x components."""
    components = min(COMPONENTS, *prototypes.shape)
    return PCA(n_components=components, whiten=True, svd_solver='full').fit_transform(prototypes)


def reduced(prototypes: np.ndarray, whitened: bool, pca: bool) -> np.ndarray:
    """The vectors for clustering: the whitened prototypes, or with `pca` alone min(32, D, M) components as unit vectors, or
    themselves.

    prototypes: M x D. Returns M x components."""
    if whitened:
        return whiten(prototypes)
    if not pca:
        return prototypes
    components = min(COMPONENTS, *prototypes.shape)
    return unit_rows(PCA(n_components=components, svd_solver='full').fit_transform(prototypes.astype(np.float64)))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length; rows of zeros stay. M x D -> M x D."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each row of `vectors`: M integers in [0, count)."""
    return fit(vectors, count, seed).labels_


def fit(vectors: np.ndarray, count: int, seed: int) -> MiniBatchKMeans:
    """K-means of the rows of `vectors`: its `labels_` are M integers in [0, count), its `cluster_centers_` count x D."""
    return MiniBatchKMeans(count, batch_size=BATCH_SIZE, n_init=N_INIT, random_state=seed).fit(vectors)


def distances(vectors: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Euclidean distance of each vector to the mean of its cluster. vectors: M x D. clusters: M integers. Returns M values."""
    members = clusters == np.unique(clusters)[:, None]                  # k x M
    means = members @ vectors / members.sum(1, keepdims=True)
    return np.linalg.norm(vectors - means[members.argmax(0)], axis=1)


def score(histograms: np.ndarray | None, clusters: np.ndarray, n_clusters: int, has_background: bool = True) -> Clustering:
    """Match the clusters with the classes. histograms: M x 2 x C, pixels outside and inside the mask by label, or None.
    has_background: whether one of the classes is outside the masks."""
    if histograms is None:
        return Clustering(clusters, None, np.arange(n_clusters), None)
    by_id = metrics.clustering_confusion(histograms, clusters, n_clusters - 1)
    classes_of = metrics.match_clusters(by_id, has_background)
    return Clustering(clusters, by_id, classes_of, metrics.remap_to_classes(by_id, classes_of))


def check_clusters(n_clusters: int | None, dataset: SegmentationDataset) -> None:
    """Raise a `UserError` for a number of clusters (background counted; None: not given) that `dataset` can't have."""
    if n_clusters is None:
        raise UserError(f'{dataset.folder} has no labels, so choose the number of clusters: give --n_clusters, or '
                        'kmeans_kwargs.n_clusters (background is one of them)')
    if n_clusters < 2:
        raise UserError(f'--n_clusters must be at least 2 (background is one of them), not {n_clusters}')
    if not dataset.labels and n_clusters > VOID:
        raise UserError(f'--n_clusters must be at most {VOID} without labels (predictions are 8-bit images), not {n_clusters}')
    if not dataset.instances:  # otherwise they are counted when they are read
        check_enough(n_clusters, len(dataset), dataset)


def check_enough(n_clusters: int, found: int, dataset: SegmentationDataset) -> None:
    """Raise a `UserError` if `found` images, or objects of a data set with instances, are too few for the clusters."""
    if found < n_clusters - 1:
        what = 'objects' if dataset.instances else 'images'
        raise UserError(f'{dataset.split_file}: {found} {what} are too few for {n_clusters - 1} clusters of objects: '
                        'set kmeans_kwargs.n_clusters or --n_clusters lower')


def seed_scores(clusterings: Sequence[Clustering], seeds: Sequence[int], names: Sequence[str],
                more: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Print the score of each clustering, given labels; with `more`, accuracy, NMI and ARI too.

    Returns the mean IoU of each class over the seeds (C values in percent), and further values for the results."""
    confusions = [clustering.confusion for clustering in clusterings if clustering.confusion is not None]
    iou = np.stack([metrics.class_iou(confusion) for confusion in confusions]) * 100
    for seed, row in zip(seeds, iou, strict=True):
        log.info('Seed %d', seed)
        print_iou(log, names, row)
    others = {name: float(np.mean([metric(clustering.by_id, clustering.classes_of) for clustering in clusterings])) * 100
              for name, metric in metrics.CLUSTERING_METRICS.items()} if more else {}
    for name, value in others.items():
        log.info('%s is %.2f', name, value)
    return iou.mean(0), {'mIoU_per_seed': iou.mean(1).tolist(), 'IoU_per_seed': iou.tolist(), **others}
