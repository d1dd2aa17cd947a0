"""A figure of how well each number of clusters fits."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.storage.atomic import atomic_file

FIGURE = 'silhouette.png'


def save_silhouette_figure(path: str | Path, counts: Sequence[int], scores: np.ndarray, chosen: int) -> None:
    """Draw the mean silhouette (`scores`) of each of `counts` clusters, and mark the number that was chosen."""
    from matplotlib.figure import Figure  # imported here, since it takes half a second
    figure = Figure(figsize=(7, 3.5), dpi=110, layout='constrained')
    axes = figure.subplots()
    axes.plot(counts, scores, marker='o', markersize=4, color='#555555')
    axes.axvline(chosen, color='#c0392b', linewidth=1)
    axes.annotate(f'{chosen} clusters', (chosen, scores[list(counts).index(chosen)]), xytext=(6, 6),
                  textcoords='offset points', color='#c0392b')
    axes.set_xlabel('clusters')
    axes.set_ylabel('mean silhouette')
    axes.spines[['top', 'right']].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, format='png')
