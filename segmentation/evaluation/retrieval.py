"""Segment retrieval: nearest neighbours in a database of object masks, and the classes that they carry over (paper section 4).

Axes: M images of a split, N of the database, Q queries, D embedding, C classes.
"""
import numpy as np

NO_CLASS = -1
CHUNK = 64  # queries at a time, whose products are held at once


def mask_classes(histograms: np.ndarray, background: int | None) -> np.ndarray:
    """The class of each mask: the most frequent one inside, background and void left out, the highest of equally frequent ones.

    histograms: M x 2 x C, pixels outside and inside the masks by label. background: its class, or None. Returns M integers;
    NO_CLASS for an empty mask, and where no labelled object is inside it.
    """
    objects = histograms[:, 1].copy()
    if background is not None:
        objects[:, background] = 0
    highest = objects.shape[1] - 1 - objects[:, ::-1].argmax(1)
    return np.where(objects.any(1), highest, NO_CLASS)


def nearest_neighbours(queries: np.ndarray, database: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` (or all N) database prototypes of largest inner product, best first: Q x count.

    queries: Q x D, database: N x D, float32. Products that are equal in float32 count as equal: the lower index comes first.
    """
    found, columns = [], database.astype(np.float64).T
    for first in range(0, len(queries), CHUNK):
        products = (queries[first:first + CHUNK].astype(np.float64) @ columns).astype(np.float32)
        found.append(np.argsort(-products, axis=1, kind='stable')[:, :count])
    return np.concatenate(found)
