"""The linear classifier's training views against a plain warp, and what they depend on."""
import math
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import SegmentationDataset
from data.label_space import label_space
from data.loaders import epoch_loader
from evaluation.training_views import TrainingViews, View, render, sample_view, view_figure
from utils.errors import UserError

CLASSES = 9


def plain_sources(height, width, degrees, scale):
    """Where each pixel of the view comes from, as (y, x) arrays: the inverse of turning and scaling about (w/2, h/2).

    Counter-clockwise on a screen, whose y axis points down.
    """
    y, x = np.mgrid[:height, :width].astype(float)
    angle = math.radians(degrees)
    dx, dy = (x - width / 2) / scale, (y - height / 2) / scale
    return (height / 2 + math.sin(angle) * dx + math.cos(angle) * dy,
            width / 2 + math.cos(angle) * dx - math.sin(angle) * dy)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('degrees, scale', [(5, 1), (-5, 0.75), (3.3, 1.25), (0, 0.8), (-1.7, 1.1)])
def test_labels_are_those_of_a_plain_warp(flip, degrees, scale):
    height, width = 60, 90
    labels = cv2.resize(np.random.default_rng(0).integers(1, CLASSES, (6, 9)).astype(np.uint8), (width, height),
                        interpolation=cv2.INTER_NEAREST)
    labels[28:33, 40:48] = 255
    image = np.repeat(labels[..., None], 3, axis=2)
    _, found = render(image, labels, View(flip, degrees, scale), (height, width), 0)
    source = labels[:, ::-1] if flip else labels
    y, x = (np.rint(axis).astype(int) for axis in plain_sources(height, width, degrees, scale))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    plain = np.where(inside, source[y.clip(0, height - 1), x.clip(0, width - 1)], 0)  # uncovered: background, not void
    assert (found == plain).mean() > 0.985  # borders between labels may round otherwise
    assert set(np.unique(found)) <= {0, *range(1, CLASSES), 255} and (found == 255).any()
    if scale < 1:
        assert not found[0].any() and not found[:, -1].any()


@pytest.mark.parametrize('degrees, scale', [(4, 1.2), (-5, 0.75)])
def test_image_moves_with_its_labels_and_is_smooth(degrees, scale):
    y, x = np.mgrid[:80, :100]
    image = np.stack([40 + 2 * y, 30 + x, 220 - y - x // 2], axis=2).astype(np.uint8)  # planes: cubic interpolation is exact
    found, _ = render(image, image[..., 0], View(False, degrees, scale), (80, 100), 0)
    y, x = plain_sources(80, 100, degrees, scale)
    inside = (y > 3) & (y < 76) & (x > 3) & (x < 96)
    plain = np.stack([40 + 2 * y, 30 + x, 220 - y - x // 2], axis=2)
    assert np.abs(found[inside] - plain[inside]).max() < 2.5
    outside = (y < -2) | (y > 82) | (x < -2) | (x > 102)
    assert not found[outside].any() and outside.any() == (scale < 1)


def test_resized_after_the_warp():
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 256, (33, 47, 3)).astype(np.uint8), rng.integers(0, 9, (33, 47)).astype(np.uint8)
    still = View(False, 0.0, 1.0)
    found, found_labels = render(image, labels, still, (24, 40), 0)
    assert np.array_equal(found, cv2.resize(image, (40, 24), interpolation=cv2.INTER_CUBIC))
    assert np.array_equal(found_labels, cv2.resize(labels, (40, 24), interpolation=cv2.INTER_NEAREST))
    flipped = render(image, labels, View(True, 0.0, 1.0), (33, 47), 0)
    assert np.array_equal(flipped[0], image[:, ::-1]) and np.array_equal(flipped[1], labels[:, ::-1])


def test_draws_fill_their_ranges():
    rng = np.random.default_rng(0)
    views = [sample_view(rng) for _ in range(4000)]
    assert 0.46 < np.mean([view.flip for view in views]) < 0.54
    for values, low, high in (([view.degrees for view in views], -5, 5), ([view.scale for view in views], 0.75, 1.25)):
        assert low <= min(values) < low + 0.01 * (high - low) and high - 0.01 * (high - low) < max(values) <= high
        quarters = np.histogram(values, bins=4, range=(low, high))[0]
        assert quarters.min() > 850  # uniform: 1000 each


# The data set


@pytest.fixture
def own(tmp_path, shapes_root):
    """A copy of the small Shapes that a test may damage."""
    shutil.copytree(shapes_root / 'Shapes', tmp_path / 'Shapes')
    return SegmentationDataset(tmp_path / 'Shapes', 'trainaug', labels=True)


def views_of(dataset, seed=1, **options):
    return TrainingViews(dataset, label_space(dataset.folder), seed, (40, 32), **options)


def same(a, b):
    return a['id'] == b['id'] and torch.equal(a['image'], b['image']) and torch.equal(a['labels'], b['labels'])


def test_items_depend_on_seed_epoch_and_id_only(shapes_root):
    dataset = SegmentationDataset(shapes_root / 'Shapes', 'trainaug', labels=True)
    views = views_of(dataset)
    item = views[0, 3]
    assert item['image'].shape == (40, 32, 3) and item['labels'].shape == (40, 32) and item['skipped'] == []
    assert item['image'].dtype == item['labels'].dtype == torch.uint8
    views[0, 1]
    assert same(views[0, 3], item) and same(views_of(dataset)[0, 3], item)
    assert not same(views[1, 3], item) and not same(views_of(dataset, seed=2)[0, 3], item)
    batches = {workers: list(epoch_loader(views, 4, 1, workers, torch.device('cpu')))
               for workers in (0, 2)}
    assert len(batches[0]) == 3 and all(same(*pair) for pair in zip(batches[0], batches[2], strict=True))
    figure = view_figure(views.space, batches[0][0])
    assert figure.shape == (4 * 40, 2 * 32, 3) and np.array_equal(figure[:40, :32], batches[0][0]['image'][0].numpy())
    labels = batches[0][0]['labels'][0].numpy()
    coloured = (figure[:40, 32:] != figure[:40, :32]).any(2)
    assert not coloured[(labels == 0) | (labels == 255)].any() and coloured[(labels > 0) & (labels < 255)].mean() > 0.9


def test_bad_files_stop_or_are_passed_over(own):
    image = own.images / f'{own.ids[0]}.jpg'
    image.write_bytes(image.read_bytes()[:300])
    labels = own.labels / f'{own.ids[1]}.png'
    Image.fromarray(np.full((64, 64), 37, np.uint8)).save(labels)
    views = views_of(own)
    with pytest.raises(UserError, match=f'^{image} is not a complete image'):
        views[0, 0]
    with pytest.raises(UserError, match=f'^{labels}: label 37 .* only 9 classes'):
        views[0, 1]
    views = views_of(own, skip_unreadable=True)
    for index, path in enumerate((image, labels)):
        item = views[0, index]
        assert item['skipped'] and all(str(image) in line or str(labels) in line for line in item['skipped'])
        assert str(path) in item['skipped'][0] and item['id'] not in own.ids[:2]
    assert views[0, 2]['skipped'] == []


def test_nothing_readable_ends_in_an_error(own):
    for name in own.ids:
        (own.labels / f'{name}.png').unlink()
    with pytest.raises(UserError, match='^51 images in a row could not be used, beginning with: .*train_'):
        views_of(own, skip_unreadable=True)[0, 0]
