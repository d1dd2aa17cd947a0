"""Objects by repeated normalised cuts of a backbone's grid, without training.

MaskCut: Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR 2023, arXiv 2301.11320,
section 3.2. It repeats the cut of `saliency.tokencut`, each time without the patches that were found before.

N patches of an image, C channels of their features, h w patches in height and width, H W space.
"""
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from data.instances import consecutive
from saliency.feature_cues import FeatureCues
from saliency.grabcut import refine, whole_objects
from saliency.mask_generation import OBJECT, SMALLEST, object_mask, parts
from saliency.resizing import resize_probability
from saliency.tokencut import EPSILON, TokenCut, alike_patches, all_cuts_are_equal, second_eigenvector

MOST, TAU = 3, 0.15  # cuts of an image, and the cosine above which patches are alike (as published)
OVERLAP = 0.5  # IoU of a cut and of what edges make of it, below which the object is left out; of two objects, above which
CORNERS = 2  # of the grid, that an object may hold
INSIDE_TAU, APART = 0.4, 0.1  # of `split`: patches are similar above the first, and cuts are made up to the second


class MaskCut:
    """find(image): H x W x 3 uint8 RGB -> H x W int32, 0 background, 1 to n the objects, in the order in which they were found.

    estimator: the network, of whose keys the cuts are made. It makes its own mask, whatever is given.
    """

    def __init__(self, estimator: TokenCut):
        self.estimator = estimator

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        keys, shape = self.estimator.keys(image)
        height, width = image.shape[:2]
        found = np.zeros((height, width), np.int32)
        for number, rough in enumerate(repeated_cuts(keys, shape), 1):
            soft = resize_probability(rough, height, width)
            inside = whole_objects(refine(image, soft, OBJECT) > OBJECT)
            others = [_overlap(inside, found == other) for other in range(1, number)]
            if _overlap(inside, soft > OBJECT) >= OVERLAP and max(others, default=0) <= OVERLAP:
                found[object_mask(inside & (found == 0)) > 0] = number
        return consecutive(found)


class SplitCues:
    """find(image), as of `MaskCut`: the mask of the feature cues, each segment of which is split where its patches differ.

    Cuts of the whole picture find less with the features of a network that was trained to classify.
    """

    def __init__(self, estimator: FeatureCues):
        self.estimator = estimator

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if mask is None:
            mask = object_mask(self.estimator(image))
        grid = self.estimator.features(image)[1]
        features = torch.from_numpy(grid).flatten(1).T                  # N x C
        features = features - features.mean(0)  # outputs of ReLU are alike everywhere, around their mean they are not
        segments, count = parts(mask), 0
        found = np.zeros_like(segments)
        for number in range(1, segments.max() + 1):
            segment = segments == number
            patches = cv2.resize(segment.astype(np.float32), grid.shape[:0:-1], interpolation=cv2.INTER_AREA) > OBJECT
            inside = nearest_group(segment, split(features, patches))
            found[segment] = inside[segment] + count
            count += inside.max()
        return found


def repeated_cuts(keys: torch.Tensor, shape: tuple[int, int], most: int = MOST) -> list[np.ndarray]:
    """Keys, N x C -> at most `most` grids, h x w bool, one for each object. shape: (h, w).

    Of each cut the foreground is the side with the largest absolute entry of the eigenvector, or the other one where that side
    holds more than two corners; of it the object is the segment (connected by sides) of the side's largest entry. In the next
    cut the object's patches are similar to none.
    """
    alike, left, found = alike_patches(keys, TAU), np.ones(len(keys), bool), list[np.ndarray]()
    while len(found) < most:
        alike &= left[:, None] & left
        if all_cuts_are_equal(alike):
            break
        vector = second_eigenvector(alike)
        inside = vector > vector.mean()
        if not inside[np.abs(vector).argmax()]:
            inside = ~inside
        if np.count_nonzero(inside.reshape(shape)[[0, 0, -1, -1], [0, -1, 0, -1]]) > CORNERS:
            inside = ~inside
        seed = np.where(inside & left, np.abs(vector), -1).argmax()
        segments = cv2.connectedComponents((inside & left).reshape(shape).astype(np.uint8), connectivity=4)[1].ravel()
        if not segments[seed]:
            break
        patches = segments == segments[seed]
        left &= ~patches
        found.append(patches.reshape(shape))
    return found


def split(features: torch.Tensor, inside: np.ndarray, depth: int = MOST) -> list[np.ndarray]:
    """The patches of a part of the grid in groups whose features differ: a list of h x w bool, one or more.

    features: N x C. inside: h x w bool, the part. It is cut in two, and each half again, `depth` times at most, as long as the
    normalised cut is worth it: edges between the halves over all edges of a half, summed over both, are at most `APART` (Shi
    and Malik, IEEE TPAMI 2000).
    """
    chosen = np.flatnonzero(inside)
    if len(chosen) < 2 or not depth:
        return [inside]
    alike = alike_patches(features[torch.from_numpy(chosen)], INSIDE_TAU)
    vector = second_eigenvector(alike)
    first = vector > vector.mean()
    edges = np.where(alike, 1, EPSILON)
    between = edges[first][:, ~first].sum()
    if not first.any() or between / edges[first].sum() + between / edges[~first].sum() > APART:
        return [inside]
    halves = [np.zeros(inside.size, bool) for _ in range(2)]
    for half, members in zip(halves, (chosen[first], chosen[~first]), strict=True):
        half[members] = True
    return [group for half in halves for group in split(features, half.reshape(inside.shape), depth - 1)]


def nearest_group(mask: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels of a mask as objects, each of them the pixels that are nearest to a group: H x W int32, 0 outside, 1 to n.

    mask: H x W bool. groups: h x w bool, of which those under 1% are left out. The mask is a single object where only one is
    left, and where an object would come to less than 1%.
    """
    groups = [group for group in groups if group.mean() >= SMALLEST]
    if len(groups) < 2:
        return mask.astype(np.int32)
    size = mask.shape[::-1]
    away = [cv2.distanceTransform((cv2.resize(group.astype(np.float32), size) <= OBJECT).astype(np.uint8), cv2.DIST_L2, 5)
            for group in groups]
    found = np.where(mask, np.argmin(away, 0) + 1, 0).astype(np.int32)
    areas = np.bincount(found.ravel(), minlength=len(groups) + 1)[1:]
    return mask.astype(np.int32) if areas.min() < SMALLEST * mask.size else found


def _overlap(one: np.ndarray, other: np.ndarray):
    return int((one & other).sum()) / max(int((one | other).sum()), 1)
