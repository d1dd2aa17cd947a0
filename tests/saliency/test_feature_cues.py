"""The feature cues of a random network: against the same computation in loops, on drawn images, and a user's mistakes."""
import math

import numpy as np
import pytest
import torch
from helpers.checks import refusal
from helpers.photographs import disc, make_masks, mask_ids, photograph

from models.backbones import build_backbone
from saliency import feature_cues
from saliency.feature_cues import FeatureCues, component, contrast, votes
from saliency.grabcut import whole_objects


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """The state dict of a random ResNet-18."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'resnet18.pth'
    torch.save({**build_backbone('resnet18', {}).state_dict(), 'fc.bias': torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope='module')
def estimator(weights):
    return FeatureCues('resnet18', weights)


def plain_votes(finer, grid, colour):
    """finer, grid: C x h x w. colour: h x w."""
    channels, height, width = grid.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    border = [(y, x) for y, x in places if y in (0, height - 1) or x in (0, width - 1)]

    def standard(values):
        mean = sum(values[place] for place in places) / len(places)
        deviation = math.sqrt(sum((values[place] - mean) ** 2 for place in places) / len(places))
        return {place: (values[place] - mean) / deviation for place in places}
    mean = sum(grid[:, y, x] for y, x in places) / len(places)
    direction = np.linalg.svd(np.stack([grid[:, y, x] - mean for y, x in places]), full_matrices=False)[2][0]
    main = {place: float(direction @ (grid[:, place[0], place[1]] - mean)) for place in places}
    if sum(main[place] for place in border) > 0:  # of all places together it is 0
        main = {place: -value for place, value in main.items()}

    unit = {(y, x): finer[:, y, x] / np.linalg.norm(finer[:, y, x]) for y, x in places}
    near = {(y, x): math.exp(-(((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2) / 0.08) for y, x in places}
    centre = sum(near[place] * unit[place] for place in places) / sum(near.values())
    edge = sum(unit[place] for place in border) / len(border)
    like = {place: unit[place] @ centre - unit[place] @ edge for place in places}
    active = {(y, x): sum(abs(grid[:, y, x])) for y, x in places}

    cues = [(1, standard(main)), (1, standard(like)), (0.5, standard(active)),
            (1, standard({(y, x): colour[y, x] for y, x in places}))]
    total = np.array([sum(weight * cue[place] for weight, cue in cues) for place in places]).reshape(height, width)
    return (total - total.min()) / (total.max() - total.min())


@pytest.mark.parametrize('shape', [(5, 6, 7), (60, 4, 5), (3, 3, 9)], ids=str)
def test_votes_against_plain_ones(shape):
    """With more cells than channels, and more channels than cells."""
    rng = np.random.default_rng(0)
    grid, finer = (rng.exponential(size=(channels, *shape[1:])).astype(np.float32) for channels in (shape[0], 4))
    grid[:, shape[1] // 2, 2:4] += rng.exponential(2, (shape[0], 1))
    colour = rng.random(shape[1:], np.float32)
    found = votes(finer, grid, colour)
    assert found.dtype == np.float32 and (found.min(), found.max()) == (0, 1)
    np.testing.assert_allclose(found, plain_votes(*(each.astype(float) for each in (finer, grid, colour))), atol=1e-5)


def test_votes_of_grids_of_two_sizes():
    """The means of what is finer than the last grid."""
    rng = np.random.default_rng(0)
    finer, last, colour = (rng.random(shape, np.float32) for shape in ((3, 4, 6), (5, 2, 3), (8, 9)))
    cues = [component(last), contrast(finer).reshape(2, 2, 3, 2).mean((1, 3)), last.sum(0),
            colour.reshape(2, 4, 3, 3).mean((1, 3))]
    total = sum((cue - cue.mean()) / cue.std() / (2 if index == 2 else 1) for index, cue in enumerate(cues))
    np.testing.assert_allclose(votes(finer, last, colour), (total - total.min()) / np.ptp(total), atol=1e-5)


def test_votes_where_nothing_differs():
    one, ones = np.ones((4, 1, 1), np.float32), np.ones((4, 5, 6), np.float32)
    assert (votes(ones, ones, np.zeros((10, 12), np.float32)) == 0).all()
    assert votes(one, one, np.ones((2, 2), np.float32)).tolist() == [[0]]


def test_cues_by_hand():
    """A cross of one kind of cells on a ground of another: it is the component's upper side, and what the contrast likes."""
    inside = np.zeros((5, 5), bool)
    inside[2, 1:4] = inside[1:4, 2] = True
    grid = np.stack([np.where(inside, 3, 0), np.where(inside, 0, 1), np.full((5, 5), 2)]).astype(np.float32)
    values = component(grid)
    np.testing.assert_allclose(values, np.where(inside, 20, -5) * math.sqrt(10) / 25, atol=1e-5)
    unit = {True: np.array([3, 0, 2]) / math.sqrt(13), False: np.array([0, 1, 2]) / math.sqrt(5)}
    near = np.array([[math.exp(-((y - 2) ** 2 + (x - 2) ** 2) / 25 / 0.08) for x in range(5)] for y in range(5)])
    share = near[inside].sum() / near.sum()
    direction = share * (unit[True] - unit[False])
    np.testing.assert_allclose(contrast(grid), np.where(inside, direction @ unit[True], direction @ unit[False]), atol=1e-6)


def test_features(estimator):
    """Longer side 256, stride 8, in ImageNet's normalisation."""
    for size, grid in (((300, 512, 3), (19, 32)), ((2000, 3, 3), (32, 1))):
        assert [each.shape for each in estimator.features(np.zeros(size, np.uint8))] == [(256, *grid), (512, *grid)]
    image = disc(256, 192)[0]
    batch = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
             ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        for found, stage in zip(estimator.features(image), ('layer3', 'layer4'), strict=True):
            np.testing.assert_allclose(found, estimator.network.grid(batch, stage)[0].numpy(), atol=1e-4)


@pytest.mark.parametrize('seed', range(2))
def test_a_disc_is_found(estimator, seed):
    image, inside = disc(90, 120, seed)
    probability = estimator(image)
    assert probability.shape == (90, 120) and probability.dtype == np.float32
    assert probability.min() == 0 and probability.max() == 1
    found = probability > 0.5
    assert (found & inside).sum() / (found | inside).sum() > 0.8
    np.testing.assert_array_equal(estimator(image), probability)


def test_images_of_any_size(estimator):
    for height, width in ((1, 1), (2, 300), (300, 2), (7, 7)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        probability = estimator(image)
        assert probability.shape == (height, width) and 0 <= probability.min() <= probability.max() <= 1
    assert not estimator(np.full((40, 60, 3), 90, np.uint8)).any()  # of one colour


def test_an_object_that_the_cut_loses(estimator, monkeypatch):
    """Then the map's own threshold decides."""
    monkeypatch.setattr(feature_cues, 'refine', lambda image, *more: np.zeros(image.shape[:2], np.float32))
    assert 0.01 < (estimator(disc(60, 80)[0]) > 0.5).mean() < 0.9


def plain_whole_objects(inside):
    """Flood fill: what the border can reach outside is outside, all else is segments, of which small ones go."""
    height, width = inside.shape

    def parts(left, steps):
        found = []
        while left:
            ahead, part = [left.pop()], set()
            while ahead:
                y, x = ahead.pop()
                part.add((y, x))
                around = {(y + i, x + j) for i, j in steps} & left
                left -= around
                ahead.extend(around)
            found.append(part)
        return found
    straight = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    rest = parts({(y, x) for y in range(height) for x in range(width) if not inside[y, x]}, straight)
    outside = set().union(*(part for part in rest if any(y in (0, height - 1) or x in (0, width - 1) for y, x in part)))
    segments = parts({(y, x) for y in range(height) for x in range(width)} - outside,
                     [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    whole = np.zeros((height, width), bool)
    for segment in segments:
        if 5 * len(segment) >= max(map(len, segments)):
            whole[tuple(np.transpose(list(segment)))] = True
    return whole


@pytest.mark.parametrize('share', [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1])
def test_whole_objects_against_plain_ones(share):
    inside = np.random.default_rng(1).random((24, 31)) < share
    inside[5:12, 8:16] = True
    inside[7:9, 10:13] = share == 1
    found = whole_objects(inside)
    assert found.dtype == bool and np.array_equal(found, plain_whole_objects(inside))
    assert not whole_objects(np.zeros((3, 4), bool)).any() and whole_objects(np.ones((3, 4), bool)).all()


# What a user can do wrong


def test_weights(tmp_path, weights):
    assert refusal(FeatureCues, 'resnet18', tmp_path / 'absent.pth') == (
        f'{tmp_path / "absent.pth"}: this checkpoint file does not exist')
    assert 'do not fit this network: missing ' in refusal(FeatureCues, 'resnet50', weights)
    state = torch.load(weights, weights_only=True)
    state['layer4.1.bn2.bias'].fill_(math.nan)
    torch.save(state, tmp_path / 'damaged.pth')
    assert refusal(FeatureCues('resnet18', tmp_path / 'damaged.pth'), disc()[0]) == (
        f'{tmp_path / "damaged.pth"}: the features of this network are not finite: its weights are damaged')
    assert refusal(FeatureCues, 'resnet81').startswith('backbone must be one of resnet18, ')


def test_script(tmp_path, weights, user_error):
    photograph(tmp_path / 'photographs' / 'a.jpg')
    photograph(tmp_path / 'photographs' / 'b.png', 60, 60, 1)
    flags = '--model', 'feature_cues', '--weights', weights
    results = make_masks(tmp_path / 'photographs', tmp_path / 'mine', *flags)
    assert results['model'] == 'feature_cues' and mask_ids(tmp_path / 'mine', 'feature_cues') == {'a', 'b'}
    assert make_masks(tmp_path / 'photographs', tmp_path / 'mine', *flags, '--num_workers', 1)['masks'] == 2
    line = user_error(lambda: make_masks(tmp_path / 'photographs', tmp_path / 'mine', '--model', 'feature_cues', '--weights',
                                         tmp_path / 'other.pth'))
    assert line.startswith(f'error: {tmp_path}/mine/config_feature_cues.yml: masks of this name were made with another --w')
