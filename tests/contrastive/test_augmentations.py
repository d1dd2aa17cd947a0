"""Views: their pixels against torchvision on PIL images with the same parameters, and the rules of their draws."""
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from contrastive import augmentations as views
from contrastive.augmentations import View, render, sample_crop, sample_view
from data.normalization import to_images
from models.backbones import IMAGENET

SIZES = [(60, 80), (97, 131), (333, 211), (375, 500)]  # height, width: smaller and larger than the output, odd and even


def picture(height, width, seed=0):
    """Something like a photograph: smooth colours, edges and texture. Image H x W x 3 and mask H x W (0 or 1)."""
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    blobs = cv2.resize(rng.normal(size=(9, 12)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    mask = (blobs > 0.2).astype(np.uint8)
    image = np.where(mask[..., None] == 1, 255 - 0.7 * image, image) + rng.normal(0, 12, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def crops(height, width, count):
    rng = np.random.default_rng(count)
    return [(0, 0, height, width), *(sample_crop(rng, height, width) for _ in range(count))]


def difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))


# Pixels


@pytest.mark.parametrize('size', [96, 224])
@pytest.mark.parametrize('shape', SIZES)
def test_crop_and_resize(shape, size):
    image, mask = picture(*shape)
    for crop in crops(*shape, 8):
        ours, our_mask = render(image, mask, View(crop), size)
        theirs = TF.resized_crop(Image.fromarray(image), *crop, [size, size], InterpolationMode.BILINEAR)
        their_mask = TF.resized_crop(Image.fromarray(mask), *crop, [size, size], InterpolationMode.NEAREST)
        assert ours.shape == (size, size, 3) and ours.dtype == np.uint8 and our_mask.dtype == np.uint8
        assert difference(ours, theirs).max() <= 1
        assert np.array_equal(our_mask, np.asarray(their_mask))


@pytest.mark.parametrize('size', [32, 96, 224])
def test_nearest_takes_the_same_pixel_as_pil_for_every_length(size):
    for length in range(1, 700):
        line = np.arange(length, dtype=np.int32)[None]
        theirs = np.asarray(Image.fromarray(line).resize((size, 1), Image.Resampling.NEAREST))
        ours = views.resize_mask(line.repeat(2, 0), size)
        assert np.array_equal(ours[0], theirs[0]), length


def test_nearest_is_not_opencvs():
    line = np.arange(300, dtype=np.uint16)[None].repeat(300, 0)
    ours = views.resize_mask(line, 224)[0]
    assert not np.array_equal(ours, cv2.resize(line, (224, 224), interpolation=cv2.INTER_NEAREST)[0])
    assert np.array_equal(ours, [int((x + 0.5) * 300 / 224) for x in range(224)])


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
@pytest.mark.parametrize('shape', SIZES)
def test_jitter_within_two_levels(name, shape):
    image, _ = picture(*shape)
    for factor in (0.6, 0.613, 0.8, 0.999, 1.0, 1.001, 1.2, 1.387, 1.4):
        ours = getattr(views, f'adjust_{name}')(image, factor)
        theirs = getattr(TF, f'adjust_{name}')(Image.fromarray(image), factor)
        assert ours.dtype == np.uint8 and difference(ours, theirs).max() <= 2, factor
        if factor in (0.6, 1.4):  # and it does something
            assert difference(ours, image).mean() > 4


@pytest.mark.parametrize('shape', SIZES)
def test_hue_and_grayscale(shape):
    image, _ = picture(*shape)
    for factor in (-0.1, -0.063, -0.02, 0.0, 0.004, 0.05, 0.1):
        theirs = TF.adjust_hue(Image.fromarray(image), factor)
        assert difference(views.adjust_hue(image, factor), theirs).mean() <= 0.6, factor
    assert difference(views.adjust_hue(image, 0.1), views.adjust_hue(image, -0.1)).mean() > 10
    theirs = np.asarray(TF.rgb_to_grayscale(Image.fromarray(image)))
    assert difference(views.gray(image), theirs).max() <= 2


def through_pil(image, mask, view, size):
    """The same view by torchvision on PIL images."""
    image = TF.resized_crop(Image.fromarray(image), *view.crop, [size, size], InterpolationMode.BILINEAR)
    mask = TF.resized_crop(Image.fromarray(mask), *view.crop, [size, size], InterpolationMode.NEAREST)
    for name, factor in view.jitter:
        image = getattr(TF, f'adjust_{name}')(image, factor)
    if view.grayscale:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if view.flip:
        image, mask = TF.hflip(image), TF.hflip(mask)
    return np.asarray(image), np.asarray(mask)


@pytest.mark.parametrize('size', [96, 224])
def test_whole_views(size):
    rng, seen, differences = np.random.default_rng(5), set(), []
    for number in range(40):
        shape = SIZES[number % len(SIZES)]
        image, mask = picture(*shape, seed=number)
        view = sample_view(rng, *shape)
        ours, theirs = render(image, mask, view, size), through_pil(image, mask, view, size)
        differences.append(difference(ours[0], theirs[0]).mean())
        assert np.array_equal(ours[1], theirs[1])
        seen.add((bool(view.jitter), view.grayscale, view.flip))
    assert len(seen) >= 6  # of 8 combinations
    assert max(differences) < 1.75 and np.mean(differences) < 0.95  # a late contrast enlarges what an early hue left


def test_jitter_is_applied_in_its_order():
    image, mask = picture(120, 160)
    factors = (('contrast', 1.4), ('brightness', 0.6), ('saturation', 1.4), ('hue', 0.1))
    forward, backward = (View((0, 0, 120, 160), order) for order in (factors, factors[::-1]))
    ours = render(image, mask, forward, 96)[0]
    assert difference(ours, through_pil(image, mask, forward, 96)[0]).mean() < 1.5
    assert difference(ours, through_pil(image, mask, backward, 96)[0]).mean() > 3


def test_rendering_leaves_its_input_alone():
    image, mask = picture(60, 80)
    before = image.copy(), mask.copy()
    jitter = (('brightness', 1.3), ('hue', 0.1), ('saturation', 0.7), ('contrast', 0.8))
    for size in (60, 96):
        render(image, mask, View((0, 0, 60, 60), jitter, grayscale=True, flip=True), size)
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


def test_normalisation():
    image, _ = picture(60, 80)
    ours = to_images(torch.from_numpy(image)[None], torch.device('cpu'), IMAGENET)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    theirs = normalise(transforms.functional.to_tensor(image))
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-5)


# Draws


@pytest.fixture(scope='module')
def drawn():
    """4000 views of one size, drawn from one generator."""
    rng = np.random.default_rng(11)
    return [sample_view(rng, 300, 400) for _ in range(4000)]


def share(values):
    return np.mean(list(values))


def test_probabilities(drawn):
    # Four standard deviations of a share of 4000 draws are at most 0.032.
    assert abs(share(bool(view.jitter) for view in drawn) - 0.8) < 0.026
    assert abs(share(view.grayscale for view in drawn) - 0.2) < 0.026
    assert abs(share(view.flip for view in drawn) - 0.5) < 0.032
    assert abs(share(view.grayscale and view.flip and bool(view.jitter) for view in drawn) - 0.08) < 0.018


@pytest.mark.parametrize('name, low, high', [('brightness', 0.6, 1.4), ('contrast', 0.6, 1.4), ('saturation', 0.6, 1.4),
                                             ('hue', -0.1, 0.1)])
def test_factors_are_uniform(drawn, name, low, high):
    factors = np.array([dict(view.jitter)[name] for view in drawn if view.jitter])
    assert low <= factors.min() and factors.max() <= high
    quarters = np.histogram(factors, bins=4, range=(low, high))[0] / len(factors)
    assert np.abs(quarters - 0.25).max() < 0.031


def test_order_of_jitter_is_uniform(drawn):
    orders = [tuple(name for name, _ in view.jitter) for view in drawn if view.jitter]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24 and all(len(set(order)) == 4 for order in counts)
    assert all(0.6 < count * 24 / len(orders) < 1.4 for count in counts.values())


def plain_crop(rng, height, width):
    """torchvision's rule, written down again: ten attempts, then the central crop."""
    for _ in range(10):
        target = rng.uniform(0.2, 1.0) * (height * width)
        aspect = math.exp(rng.uniform(math.log(0.75), math.log(4 / 3)))
        w, h = int(round((target * aspect) ** 0.5)), int(round((target / aspect) ** 0.5))
        if w <= 0 or h <= 0 or w > width or h > height:
            continue
        top = rng.integers(0, height - h + 1)
        left = rng.integers(0, width - w + 1)
        return top, left, h, w
    if width < 0.75 * height:
        w, h = width, int(round(width * 4 / 3))
    elif width > 4 / 3 * height:
        w, h = int(round(height * 4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('shape', [(300, 400), (400, 300), (224, 224), (97, 400), (400, 97), (101, 52), (3, 2), (1, 1)])
def test_crops_follow_the_rule(shape):
    ours, plain = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(400):
        top, left, height, width = crop = sample_crop(ours, *shape)
        assert crop == plain_crop(plain, *shape) and all(isinstance(value, int) for value in crop)
        assert top >= 0 and left >= 0 and height > 0 and width > 0
        assert top + height <= shape[0] and left + width <= shape[1]


@pytest.mark.parametrize('height, width', [(10, 1000), (1000, 10), (11, 999), (998, 13), (5, 64), (100, 1), (1, 100)])
def test_extreme_images_get_the_central_crop(height, width):
    # No crop of a fifth of such an image fits its short side, so both sides are certain.
    theirs = transforms.RandomResizedCrop.get_params(torch.zeros(3, height, width), (0.2, 1.0), (3 / 4, 4 / 3))
    assert sample_crop(np.random.default_rng(0), height, width) == tuple(theirs)


@pytest.mark.parametrize('shape', [(300, 400), (200, 420)])
def test_crops_are_distributed_as_torchvisions(shape):
    def statistics(rows):
        top, left, h, w = np.array(rows, float).T
        values = [h * w / (shape[0] * shape[1]), np.log(w / h), top / shape[0], left / shape[1]]
        return np.array([[value.mean(), value.std(), *np.quantile(value, (0.1, 0.5, 0.9))] for value in values])

    torch.manual_seed(0)
    rng, image = np.random.default_rng(3), torch.zeros(1, *shape)
    ours = statistics([sample_crop(rng, *shape) for _ in range(4000)])
    theirs = statistics([transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
                         for _ in range(4000)])
    assert np.abs(ours - theirs).max() < 0.03
