"""Salient objects without training or weights: what differs from the image's background, whose regions reach the border.

Zhu et al., "Saliency Optimization from Robust Background Detection", CVPR 2014, with the constants of the authors' code. It
differs from that code in minor points: places are measured in longer sides, superpixels at the border count as neighbours
before their neighbours' neighbours are added, and the constant part of smoothness holds for all of these. The map is then cut
along the image's edges (`saliency.grabcut`).

Axes: H W space, N superpixels, E pairs of them.
"""
import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path
from skimage.segmentation import slic

from saliency.grabcut import refine
from saliency.mask_generation import shrink
from saliency.resizing import resize_probability

SIDE = 400  # pixels: longer side of the image that is looked at
SUPERPIXELS, COMPACTNESS, ITERATIONS = 250, 20, 5  # of SLIC; a finer division gained 0.4 points of IoU for twice the time
COLOUR, SPACE, BOUNDARY = 10.0, 0.25, 1.0  # widths of the paper's Gaussians: in CIELAB units, longer sides, connectivity
BACKGROUND, SMOOTHNESS = 5.0, 0.1  # weights in the cost function, where the foreground's is 1


def robust_background(image: np.ndarray) -> np.ndarray:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], above 0.5 on the salient object."""
    height, width = image.shape[:2]
    small = shrink(image, SIDE)
    return resize_probability(refine(small, saliency_map(small)), height, width)


def saliency_map(image: np.ndarray) -> np.ndarray:
    """The paper's map before any threshold: H x W x 3 uint8 RGB -> H x W float32 in [0, 1]."""
    regions = slic(image, SUPERPIXELS, COMPACTNESS, max_num_iter=ITERATIONS, start_label=0)
    colours, places = _means(image, regions)
    neighbours = _neighbours(regions)
    border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    if len(border) == len(colours):  # nothing is inside
        return np.zeros(regions.shape, np.float32)
    distance = np.linalg.norm(colours[:, None] - colours, axis=2)        # N x N
    linked = np.zeros(distance.shape, bool)                              # N x N
    linked[neighbours[0], neighbours[1]] = linked[neighbours[1], neighbours[0]] = True
    linked[np.ix_(border, border)] = True                                # all of the border is one neighbourhood
    np.fill_diagonal(linked, False)

    background = background_probability(distance, linked, neighbours, border)
    near = np.exp(-((places[:, None] - places) ** 2).sum(2) / (2 * SPACE ** 2))
    foreground = _stretch((distance * near * background).sum(1))         # contrast with the background (paper eq. 7)
    values = _optimise(distance, linked, background, foreground)
    return _stretch(values).astype(np.float32)[regions]


def background_probability(distance: np.ndarray, linked: np.ndarray, neighbours: np.ndarray, border: np.ndarray) -> np.ndarray:
    """How likely each superpixel is background (paper eqs. 1 to 5 and 8): N values in [0, 1).

    A region is the superpixels of like colour that a path of small steps leads to. It is background where it holds much of
    the image's border for its size. distance: N x N of colours. linked: N x N bool. neighbours: 2 x E that touch.
    border: indices.
    """
    steps = distance[neighbours[0], neighbours[1]]
    smallest = np.full(len(distance), np.inf)
    for end in neighbours:
        np.minimum.at(smallest, end, steps)
    # Steps of the size of the image's own noise are none; without this small ones would add up (authors' implementation).
    noise = smallest[np.isfinite(smallest)].mean()
    first, second = np.nonzero(np.triu(linked))
    lengths = np.maximum(distance[first, second] - noise, 0) + 1e-6      # a stored zero would be no step
    geodesic = shortest_path(csr_matrix((lengths, (first, second)), distance.shape), directed=False)
    alike = np.exp(-geodesic ** 2 / (2 * COLOUR ** 2))
    connectivity = alike[:, border].sum(1) / np.sqrt(alike.sum(1))
    return 1 - np.exp(-connectivity ** 2 / (2 * BOUNDARY ** 2))


def _optimise(distance: np.ndarray, linked: np.ndarray, background: np.ndarray, foreground: np.ndarray):
    """The values of least cost: near 0 on background, near 1 on foreground, alike where colours are (paper eqs. 9 and 10)."""
    linked = linked.astype(np.float32)
    second = (linked @ linked + linked) > 0
    np.fill_diagonal(second, False)
    smooth = (np.exp(-distance ** 2 / (2 * COLOUR ** 2)) + SMOOTHNESS) * second
    system = np.diag(smooth.sum(1) + BACKGROUND * background + foreground) - smooth
    return np.linalg.solve(system, foreground)


def _means(image: np.ndarray, regions: np.ndarray):
    """Mean colour in CIELAB (N x 3) and mean place in longer sides (N x 2) of each superpixel."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    rows, columns = np.indices(regions.shape) / max(regions.shape)
    values = np.dstack([lab, rows, columns]).reshape(-1, 5)
    labels = regions.ravel()
    sums = np.stack([np.bincount(labels, values[:, channel]) for channel in range(5)], axis=1)
    means = sums / np.bincount(labels)[:, None]
    return means[:, :3], means[:, 3:]


def _neighbours(regions: np.ndarray):
    """Pairs of superpixels that touch, 2 x E, each once."""
    pairs = np.concatenate([np.stack([regions[:, :-1], regions[:, 1:]]).reshape(2, -1),
                            np.stack([regions[:-1], regions[1:]]).reshape(2, -1)], axis=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    return np.unique(np.sort(pairs, axis=0), axis=1)


def _stretch(values: np.ndarray):
    """To [0, 1]."""
    values = values - values.min()
    return values / max(values.max(), 1e-9)
