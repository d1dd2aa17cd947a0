"""Saved clusters: centres, projection and the settings of the features, in a file without pickles.

Axes: M images, D features, E of them after a projection, K clusters.
"""
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from evaluation.clustering import COMPONENTS, cluster_all, fit, most_compact, unit_rows
from utils.errors import UserError
from utils.storage.atomic import atomic_file

FILE = 'clusters.npz'


@dataclass(frozen=True)
class Projection:
    """PCA to E components, which are whitened, or without whitening scaled to vectors of unit length (`unit`). mean: D. axes:
    D x E; (x - mean) @ axes are the components."""
    mean: np.ndarray
    axes: np.ndarray
    unit: bool

    @classmethod
    def fit(cls, vectors: np.ndarray, whiten: bool) -> Self:
        """That of vectors M x D, to min(32, D, M) components, as `clustering.reduced` has it."""
        pca = PCA(min(COMPONENTS, *vectors.shape), whiten=whiten, svd_solver='full').fit(vectors.astype(np.float64))
        if not whiten:
            return cls(pca.mean_, pca.components_.T, unit=True)
        # With as many components as images, the last one has no variance except rounding.
        scale = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(np.float64).eps))
        return cls(pca.mean_, pca.components_.T / scale, unit=False)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """M x D -> M x E."""
        components = (vectors.astype(np.float64) - self.mean) @ self.axes
        return unit_rows(components) if self.unit else components


@dataclass(frozen=True)
class SavedClusters:
    """settings: of `feature_settings`. centres: K x E. projection: or None. keys: M x 32 uint8, which images or objects they
    were made from (`object_keys`). clusters: M integers in [0, K), the cluster of each of these. data: `name` of the data set,
    `saliency`, that of its masks, and `instances` where these are those of single objects."""
    settings: dict[str, Any]
    centres: np.ndarray
    projection: Projection | None
    keys: np.ndarray
    clusters: np.ndarray
    data: dict[str, Any]

    def __len__(self):
        return len(self.centres)

    @property
    def id(self) -> str:
        """12 hexadecimal digits that identify the clustering."""
        order = np.lexsort(self.keys.T[::-1])
        digest = hashlib.sha256(self.keys[order].tobytes() + self.clusters[order].astype('<i8').tobytes())
        return digest.hexdigest()[:12]

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """Euclidean distance of each vector, M x D before the projection, to each centre: M x K."""
        return cdist(self.projection(vectors) if self.projection else vectors, self.centres)

    def save(self, path: str | Path) -> None:
        """Write the file."""
        projection: dict[str, Any] = {} if self.projection is None else {
            'mean': self.projection.mean, 'axes': self.projection.axes, 'unit': np.array(self.projection.unit)}
        text = json.dumps({'settings': self.settings, 'data': self.data})
        with atomic_file(path) as file:
            np.savez(file, description=np.array(text), centres=self.centres, keys=self.keys, clusters=self.clusters,
                     **projection)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises `UserError` for a file that is missing, damaged or something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
            described = json.loads(str(content['description']))
            projection = (Projection(content['mean'], content['axes'], bool(content['unit']))
                          if 'mean' in content else None)
            return cls(dict(described['settings']), content['centres'], projection, content['keys'], content['clusters'],
                       dict(described['data']))
        except FileNotFoundError as error:
            raise UserError(f'{path} is missing: make clusters first (make mine)') from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f'{path} could not be read ({error}): make the clusters again (make mine)') from error


def most_compact_clusters(points: np.ndarray, clusters: int, seeds: Sequence[int], projection: Projection | None,
                          settings: dict[str, Any], keys: Sequence[bytes], data: dict[str, Any]) -> tuple[SavedClusters, int]:
    """The most compact of the clusterings that K-means finds from `seeds`, as kmeans.py has it, and its seed.

    points: M x E, projected. clusters: how many. The others: as in `SavedClusters`, keys as M times 32 bytes.
    """
    best = seeds[most_compact(points, cluster_all(points, None, clusters + 1, seeds))]
    centres = fit(points, clusters, best).cluster_centers_
    return SavedClusters(settings, centres, projection, np.frombuffer(b''.join(keys), np.uint8).reshape(len(keys), -1),
                         cdist(points, centres).argmin(1), data), best


def nearest(distances: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label of the nearest centre, and of the nearest centre with another label (-1 where there is none), of each image.

    distances: M x K. labels: K integers, the same for clusters that count as one. Returns two arrays of M.
    """
    first = labels[distances.argmin(1)]
    others = np.where(labels == first[:, None], np.inf, distances)
    second = np.where(np.isinf(others.min(1)), -1, labels[others.argmin(1)])
    return first, second


def earlier_clusters(path: str | Path) -> SavedClusters | None:
    """Those in a file, or None where there is none that can be read."""
    try:
        return SavedClusters.load(path)
    except UserError:
        return None
