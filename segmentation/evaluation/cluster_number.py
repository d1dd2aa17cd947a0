"""How many clusters: the number whose clusters are most compact and apart, by their silhouette (Rousseeuw, 1987).

Axes: M vectors, D features.
"""
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import pairwise_distances, silhouette_score

from evaluation.clustering import cluster_all, most_compact
from utils.cli.progress import progress

SAMPLE = 2000  # vectors that the silhouette is taken of: its time grows with their square
EXACT = 20  # numbers up to here are all tried, then every tenth part more


def counts_to_try(images: int, most: int) -> list[int]:
    """Numbers of clusters from 2 to `most`, but with two images in each or more on average, in ever larger steps."""
    counts, count = [], 2
    while count <= min(most, images // 2):
        counts.append(count)
        count += 1 if count < EXACT else count // 10
    return counts


def silhouettes(vectors: np.ndarray, counts: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """The mean silhouette, from -1 to 1, of K-means with each of `counts` clusters, the most compact of those of `seeds`.

    vectors: M x D. NaN where all vectors are the same, and so in one cluster.
    """
    chosen = np.random.default_rng(seeds[0]).permutation(len(vectors))[:SAMPLE]
    between = pairwise_distances(vectors[chosen])
    np.fill_diagonal(between, 0)
    found = []
    for count in progress(counts, 'Numbers of clusters'):
        clusterings = cluster_all(vectors, None, count + 1, seeds)
        found.append(_silhouette(between, clusterings[most_compact(vectors, clusterings)].clusters[chosen]))
    return np.array(found)


def _silhouette(between: np.ndarray, clusters: np.ndarray):
    if not 1 < len(np.unique(clusters)) < len(clusters):
        return np.nan
    return float(silhouette_score(between, clusters, metric='precomputed'))


def best_count(counts: Sequence[int], scores: np.ndarray) -> int:
    """The number with the highest silhouette, the smallest of equal ones, and of numbers without any."""
    if np.isnan(scores).all():
        return counts[0]
    return int(counts[int(np.nanargmax(scores))])
