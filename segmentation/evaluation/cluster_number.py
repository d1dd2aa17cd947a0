"""The number of clusters: the one whose clusters are most compact and separate, by their silhouette (Rousseeuw, 1987).

Axes: M vectors, D features.
"""
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import pairwise_distances, silhouette_score

from evaluation.clustering import cluster_all, most_compact
from evaluation.own_images_config import MOST_CLUSTERS, clusters_for
from evaluation.visualization.silhouette_figure import FIGURE, save_silhouette_figure
from utils.cli.progress import progress
from utils.errors import UserError

SAMPLE = 2000  # vectors that the silhouette is taken of: its time grows with their square
NEARLY = 0.01  # difference of silhouettes that hardly matters
EXACT = 20  # every number up to here is tried; from then on in steps of a tenth
AUTO = 'auto'

log = logging.getLogger('maskcontrast')


def how_many(asked: int | str | None, named: int | None, points: np.ndarray, seeds: Sequence[int], output: Path,
             unit: str) -> int:
    """The number of clusters, which the log explains in a line.

    asked: a number, 'auto' or None. named: the number of earlier clusters with names, which is the default. points: M x D.
    output: the folder for the figure of 'auto'. unit: what the points are of, image or object. Raises `UserError` for more
    clusters than points.
    """
    if isinstance(asked, int):
        if asked > len(points):
            raise UserError(f'--clusters {asked}: only {len(points)} of the images have masks' if unit == 'image' else
                            f'--clusters {asked}: there are only {len(points)} {unit}s')
        log.info('%d clusters, as requested', asked)
        return asked
    if asked is None and named:
        log.info('%d clusters, as before, since these have names', min(named, len(points)))
        return min(named, len(points))
    counts = counts_to_try(len(points), MOST_CLUSTERS) if asked == AUTO else []
    if not counts:
        log.info('%d clusters: the square root of %d %ss', clusters_for(len(points)), len(points), unit)
        return clusters_for(len(points))
    scores = silhouettes(points, counts, seeds)
    best = best_count(counts, scores)
    save_silhouette_figure(output / FIGURE, counts, scores, best)
    highest = scores[counts.index(best)]
    log.info('%d clusters: of %d to %d this number has the highest silhouette, %.3f (from -1 to 1; higher is better '
             'separated), see %s', best, counts[0], counts[-1], highest, output / FIGURE)
    nearly = next((count for count, score in zip(counts, scores, strict=True) if score >= highest - NEARLY), best)
    if nearly < best:
        log.info('%d clusters are nearly as good: their silhouette is at most %g lower', nearly, NEARLY)
    return best


def counts_to_try(images: int, most: int) -> list[int]:
    """Numbers of clusters from 2 to `most`, with at least two images per cluster on average, in increasing steps."""
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
    """The number with the highest silhouette, the smallest on a tie and if none has one."""
    if np.isnan(scores).all():
        return counts[0]
    return int(counts[int(np.nanargmax(scores))])
