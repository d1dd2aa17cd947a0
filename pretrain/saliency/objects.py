"""Single objects instead of one mask, by the name of the method. A finder takes an image, H x W x 3 uint8 RGB, and its
mask, H x W uint8, 1 = object, or None to make it, and gives H x W int32: 0 for background, 1 to n for the objects."""
from __future__ import annotations

import numpy as np

from saliency.estimators import PARTS, TOKENCUT, Estimator, ObjectFinder, check_way
from saliency.mask_generation import object_mask, parts


def get_finder(way: str | None, model: str, estimator: Estimator) -> ObjectFinder | None:
    """The finder called `way`, or None for None. model: the name of the estimator.

    `parts`: the connected segments of the model's mask are the objects. `cuts`: repeated normalised cuts of the features of its
    backbone: MaskCut for tokencut, which by itself finds one object; for the feature cues they divide the mask.
    """
    if way is None:
        return None
    check_way(way, model)
    if way == PARTS:
        return Parts(estimator)
    from saliency.maskcut import MaskCut, SplitCues  # here, as it brings packages along that the other way doesn't need
    finder = MaskCut if model == TOKENCUT else SplitCues
    return finder(getattr(estimator, 'estimator', estimator))  # type: ignore[arg-type] # without its refinement


class Parts:
    """The connected segments of an estimator's mask, which are at least 1% of the image each."""

    def __init__(self, estimator: Estimator):
        self.estimator = estimator

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return parts(object_mask(self.estimator(image)) if mask is None else mask)
