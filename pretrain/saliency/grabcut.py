"""From a rough saliency map to a mask that ends at the object's edges (GrabCut: Rother et al., SIGGRAPH 2004)."""
import cv2
import numpy as np

from saliency.estimators import Estimator

SIDE = 320  # pixels: longer side at which colours are modelled and the cut is made
ROUNDS = 3
# Shares of the way from 0 to the threshold, and from there to the map's maximum. Below and above, pixels are certain.
SURELY_OUT, SURELY_IN = 0.15, 0.6
SMALL = 0.2  # share of the largest segment's area below which others are left out of `whole_objects`


def refine(image: np.ndarray, saliency: np.ndarray, threshold: float | None = None,
           rounds: int = ROUNDS) -> np.ndarray:
    """Cut the object out: H x W float32, above 0.5 inside.

    The colours inside and outside a thresholded map give two mixture models, and the cut between them runs along edges.
    image: H x W x 3 uint8 RGB. saliency: H x W float32 in [0, 1]. threshold: None for one that fits the map. rounds: of
    colour models and cuts.
    """
    height, width = saliency.shape
    threshold = adaptive_threshold(saliency) if threshold is None else threshold
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    saliency = cv2.resize(saliency, size, interpolation=cv2.INTER_AREA)
    mask = np.where(saliency > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[saliency < SURELY_OUT * threshold] = cv2.GC_BGD
    mask[saliency > threshold + SURELY_IN * (saliency.max() - threshold)] = cv2.GC_FGD
    inside = saliency > threshold
    if inside.any() and not inside.all():  # otherwise there is nothing to tell apart
        cv2.setRNGSeed(0)  # the mixtures begin with random centres: the same image gives the same mask
        cv2.grabCut(image, mask, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
        inside = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    return cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def otsu_threshold(saliency: np.ndarray) -> float:
    """The threshold between the two most different groups of values (Otsu, 1979). saliency: H x W float32 in [0, 1]."""
    return cv2.threshold((saliency * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0] / 255


def adaptive_threshold(saliency: np.ndarray) -> float:
    """Between Otsu's threshold and twice the mean (Achanta et al., CVPR 2009): the latter alone is too low for large objects,
    the former too high for faint ones. saliency: H x W float32 in [0, 1]."""
    return (otsu_threshold(saliency) + min(2 * float(saliency.mean()), 0.9)) / 2


def whole_objects(inside: np.ndarray) -> np.ndarray:
    """Without holes, and without segments that are small beside the largest: H x W bool -> H x W bool.

    A hole is a part of the background that doesn't reach the image border. Segments are connected over corners, the background
    is not.
    """
    _, parts, statistics, _ = cv2.connectedComponentsWithStats((~inside).astype(np.uint8), connectivity=4)
    outside = np.zeros(len(statistics), bool)
    for side in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        outside[side] = True
    outside[0] = False  # the segments
    inside = ~outside[parts]
    _, segments, statistics, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the rest
    return (inside & (areas >= SMALL * areas.max())[segments]).astype(bool)


class Refined:
    """An estimator's maps, refined. threshold: of `refine`."""

    def __init__(self, estimator: Estimator, threshold: float | None):
        self.estimator, self.threshold = estimator, threshold

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return refine(image, self.estimator(image), self.threshold)
