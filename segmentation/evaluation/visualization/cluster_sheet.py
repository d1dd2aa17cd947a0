"""A picture of a clustering: a row for each cluster, in its colour, its most typical images first."""
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from data.label_space import VOID, LabelSpace
from evaluation.visualization.pictures import FONT, overlay, save_picture, thumbnail

SHEET = 'clusters.png'
COLUMNS, CELL = 8, (120, 150)  # CELL: height and width of a thumbnail
TITLE = 140  # width of a row's title
MOST_ROWS = 100


class _Objects(Protocol):
    @property
    def unit(self) -> str: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class _Clustering(Protocol):
    clusters: np.ndarray
    classes_of: np.ndarray


def save_cluster_sheet(path: str | Path, objects: _Objects, clustering: _Clustering, order: np.ndarray, space: LabelSpace,
                       shown: Collection[int] | None = None) -> None:
    """Write the sheet of a `Clustering` of N `Objects`: of the first 100 clusters.

    order: N values; the objects of the smallest come first. space: of what `clustering.classes_of` gives. shown: clusters,
    counted from 0, that have a row; None for all.
    """
    rows: list[np.ndarray] = []
    for cluster, label in enumerate(clustering.classes_of[1:]):
        if shown is not None and cluster not in shown or len(rows) == MOST_ROWS:
            continue
        members = np.flatnonzero(clustering.clusters == cluster)
        typical = members[np.argsort(order[members], kind='stable')][:COLUMNS]
        title = dict.fromkeys((f'cluster {cluster + 1}', space.names[label], f'{len(members)} {objects.unit}s'))
        pictures = [overlay(sample['image'], np.where(sample['saliency'], np.uint8(label), VOID), space)
                    for sample in map(objects.__getitem__, typical.tolist())]
        rows.append(_row(title, space.colours[label], pictures))
    save_picture(path, np.concatenate(rows))


def _row(title: Iterable[str], colour: np.ndarray, pictures: Iterable[np.ndarray]):
    """A bar in the colour, lines of text, and the pictures. RGB uint8."""
    row = np.full((CELL[0], TITLE + COLUMNS * CELL[1], 3), 255, np.uint8)
    row[3:-3, :10] = colour
    for number, line in enumerate(title):
        cv2.putText(row, line, (16, 24 + 20 * number), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    for column, picture in enumerate(pictures):
        small = thumbnail(picture, CELL)
        left = TITLE + column * CELL[1] + 3
        row[3:3 + small.shape[0], left:left + small.shape[1]] = small
    return row
