"""From an image to a mask without weights: segments, the cut along edges, and robust background detection."""
import math

import cv2
import numpy as np
import pytest
from helpers.photographs import disc
from skimage.segmentation import slic

from saliency.grabcut import adaptive_threshold, refine
from saliency.mask_generation import object_mask, shrink
from saliency.robust_background import robust_background, saliency_map


def plain_object_mask(probability):
    """Flood fill from every pixel that no segment has yet."""
    height, width = probability.shape
    left = {(y, x) for y in range(height) for x in range(width) if probability[y, x] > 0.5}
    mask = np.zeros((height, width), np.uint8)
    while left:
        segment, ahead = [], [left.pop()]
        while ahead:
            y, x = ahead.pop()
            segment.append((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            ahead.extend(around)
        if 100 * len(segment) >= height * width:
            mask[tuple(np.transpose(segment))] = 1
    return mask


@pytest.mark.parametrize('seed', range(8))
def test_object_mask_against_a_plain_one(seed):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((50, 70)).astype(np.float32), (0, 0), 0.3 + 0.2 * seed)
    probability = (noise - noise.min()) / np.ptp(noise)
    mask = object_mask(probability)
    assert mask.dtype == np.uint8 and np.array_equal(mask, plain_object_mask(probability))


def test_segments_of_one_percent():
    """Of 2,000 pixels, 20 are kept and 19 dropped. Pixels that touch at a corner are one segment; 0.5 is not object."""
    probability = np.zeros((40, 50), np.float32)
    kept = probability.copy()
    probability[np.arange(20), np.arange(20)] = kept[np.arange(20), np.arange(20)] = 0.75
    probability[30, 10:29] = 1
    probability[33, 10:30] = 0.5
    probability[36, 10:30] = kept[36, 10:30] = np.nextafter(np.float32(0.5), np.float32(1))
    assert np.array_equal(object_mask(probability), kept > 0)
    assert not object_mask(np.zeros((3, 4), np.float32)).any() and object_mask(np.ones((3, 4), np.float32)).all()
    assert object_mask(np.ones((1, 1), np.float32)).tolist() == [[1]]


def test_shrink():
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, ::3] = 90
    assert shrink(image, 0) is image and shrink(image, 90) is image and shrink(image, 1000) is image
    assert shrink(image, 30).shape == (10, 30, 3) and (shrink(image, 30) == 30).all()  # means of 3 x 3 pixels
    assert shrink(image, 1).shape == (1, 1, 3)


def plain_otsu(values):
    """The threshold that splits values in 0..255 into the two groups whose means differ most, by their shares."""
    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0
    return max(range(256), key=between)


def test_adaptive_threshold():
    values = np.random.default_rng(0).beta(1, 3, (30, 40)).astype(np.float32)
    otsu = plain_otsu((values * 255).astype(np.uint8))
    assert adaptive_threshold(values) == pytest.approx((otsu / 255 + 2 * values.mean()) / 2, abs=1e-6)
    halves = np.repeat(np.float32([0, 1]), 600).reshape(30, 40)
    assert adaptive_threshold(halves) == pytest.approx(0.45)  # Otsu's is 0, twice the mean more than 0.9
    assert adaptive_threshold(np.zeros((3, 4), np.float32)) == 0


def test_refine_finds_the_edges():
    image, inside = disc()
    y, x = np.mgrid[:48, :64]
    rough = np.exp(-((y - 24) ** 2 + (x - 32) ** 2) / 200).astype(np.float32)
    for threshold in None, 0.5:
        found = refine(image, rough, threshold)
        assert found.shape == (48, 64) and found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
        assert (found > 0.5)[inside].mean() > 0.98 and (found > 0.5)[~inside].mean() < 0.02


def test_refine_repeats_whatever_ran_before():
    image, rough = disc(seed=1)[0], np.random.default_rng(1).random((48, 64)).astype(np.float32)
    first = refine(image, rough)
    assert 0 < first.mean() < 1
    for seed in 1, 2, 3:
        cv2.setRNGSeed(seed)
        refine(disc(40, 40, seed)[0], rough[:40, :40], 0.3)
        assert np.array_equal(refine(image, rough), first)
    assert np.array_equal(robust_background(image), robust_background(image))


def test_refine_of_maps_that_tell_nothing_apart():
    image = disc()[0]
    assert (refine(image, np.zeros((48, 64), np.float32)) == 0).all()
    assert (refine(image, np.zeros((48, 64), np.float32), 0.5) == 0).all()
    assert (refine(image, np.ones((48, 64), np.float32), 0.5) == 1).all()
    assert (refine(image, np.ones((48, 64), np.float32)) == 1).all()


def test_refine_of_tiny_images():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = rng.integers(1, 8, 2)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8) if rng.random() < 0.5 else np.full((*size, 3), 70, np.uint8)
        rough = (rng.random(size) ** rng.integers(1, 9)).astype(np.float32)
        for threshold in None, 0.5:
            found = refine(image, rough, threshold)
            assert found.shape == tuple(size) and set(np.unique(found)) <= {0, 1}


def plain_saliency_map(image):
    """Zhu et al., CVPR 2014, region by region."""
    height, width = image.shape[:2]
    regions = slic(image, 250, 20, max_num_iter=5, start_label=0)
    n = regions.max() + 1
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    pixels = [np.argwhere(regions == i) for i in range(n)]
    colour = [lab[regions == i].mean(axis=0, dtype=float) for i in range(n)]
    place = [pixels[i].mean(axis=0) / max(height, width) for i in range(n)]
    touching = {frozenset((regions[y, x], regions[y + i, x + j])) for y in range(height) for x in range(width)
                for i, j in ((0, 1), (1, 0)) if y + i < height and x + j < width and regions[y, x] != regions[y + i, x + j]}
    touching = [tuple(pair) for pair in touching]
    border = {regions[y, x] for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)}
    apart = np.array([[math.dist(a, b) for b in colour] for a in colour])

    # All-pairs shortest paths (Floyd, Warshall), where the mean of everybody's smallest step is taken off each step
    noise = np.mean([min(apart[i, j] for pair in touching for i, j in (pair, pair[::-1]) if i == k) for k in range(n)])
    linked = np.zeros((n, n), bool)
    for i, j in [*touching, *((i, j) for i in border for j in border if i != j)]:
        linked[i, j] = linked[j, i] = True
    path = np.where(linked, np.maximum(apart - noise, 0), np.inf)
    np.fill_diagonal(path, 0)
    for k in range(n):
        path = np.minimum(path, path[:, k, None] + path[k])

    background, foreground = np.zeros(n), np.zeros(n)
    for i in range(n):
        alike = [math.exp(-path[i, j] ** 2 / 200) for j in range(n)]                              # eqs. 2 and 3
        background[i] = 1 - math.exp(-(sum(alike[j] for j in border) / math.sqrt(sum(alike))) ** 2 / 2)  # eqs. 4 and 5
    for i in range(n):
        foreground[i] = sum(apart[i, j] * math.exp(-math.dist(place[i], place[j]) ** 2 / (2 * 0.25 ** 2)) * background[j]
                            for j in range(n))                                                    # eq. 6
    foreground = (foreground - foreground.min()) / np.ptp(foreground)

    # Eq. 9: sum of background s^2 + foreground (s - 1)^2 + half of smooth (s - s')^2, by sweeps to its minimum
    near = [{j for j in range(n) if linked[i, j]} for i in range(n)]
    near = [near[i].union(*(near[j] for j in near[i])) - {i} for i in range(n)]
    smooth = [{j: math.exp(-apart[i, j] ** 2 / 200) + 0.1 for j in near[i]} for i in range(n)]
    value = np.zeros(n)
    for _ in range(500):
        before = value.copy()
        for i in range(n):
            value[i] = (foreground[i] + sum(weight * value[j] for j, weight in smooth[i].items())) / (
                5 * background[i] + foreground[i] + sum(smooth[i].values()))
        if np.abs(value - before).max() < 1e-10:
            break
    return ((value - value.min()) / np.ptp(value))[regions]


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_saliency_map_against_a_plain_one(seed):
    image = disc(60, 80)[0]
    if seed:  # two objects, one of them cut by the border, on smooth noise
        image = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8), (0, 0), 4)
        image[20:40, 15:35] = (20, 160, 60)
        image[35:, 55:70] = (200, 40, 40)
    found = saliency_map(image)
    assert found.dtype == np.float32 and found.min() == 0 and found.max() == 1
    np.testing.assert_allclose(found, plain_saliency_map(image), atol=1e-4)


@pytest.mark.parametrize('size', [(60, 80), (120, 90), (450, 600)])
def test_robust_background_finds_the_disc(size):
    image, inside = disc(*size)
    probability = robust_background(image)
    assert probability.shape == size and probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() <= 1
    found = object_mask(probability) > 0
    assert (found & inside).sum() / (found | inside).sum() > 0.8


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (3, 200), (200, 3), (5, 5), (48, 64)])
def test_images_of_one_colour_have_no_object(size):
    for value in 0, 90, 255:
        assert (robust_background(np.full((*size, 3), value, np.uint8)) == 0).all()


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (3, 200), (200, 3), (2, 2), (4, 5)])
def test_odd_sizes(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    probability = robust_background(image)
    assert probability.shape == size and np.isfinite(probability).all()
    assert min(size) > 2 or not probability.any()  # all is border, and nothing inside
