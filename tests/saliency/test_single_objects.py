"""Single objects: cuts against a plain computation, and what `generate_masks.py --objects` leaves."""
import json
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.own import own_weights  # noqa: F401 - a fixture
from helpers.photographs import contents, ids_of, make_masks, times
from PIL import Image
from test_tokencut import weights  # noqa: F401 - a fixture

import generate_masks
from data.decoding import read_saliency
from data.instances import read_instances, write_instances
from saliency import feature_cues, tokencut
from saliency.estimators import get_estimator
from saliency.mask_generation import object_mask, parts
from saliency.maskcut import MaskCut, SplitCues, nearest_group, repeated_cuts, split
from saliency.objects import get_finder

NAME = 'robust_background'


def discs(centres=((24, 16), (24, 48)), seed=0, radius=11):
    """Discs on a noisy gradient: H x W x 3 uint8, and H x W, which disc a pixel is of."""
    y, x = np.mgrid[:48, :64]
    image = np.stack([60 + 60 * x / 64, 90 + 40 * y / 48, np.full((48, 64), 120)], axis=2)
    truth = np.zeros((48, 64), int)
    for number, (row, column) in enumerate(centres, 1):
        inside = (y - row) ** 2 + (x - column) ** 2 < radius ** 2
        truth[inside] = number
        image[inside] = (200, 120, 30) if number % 2 else (250, 235, 60)
    image += np.random.default_rng(seed).normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8), truth


@pytest.fixture(autouse=True)
def small_grids(monkeypatch):
    """The time of a cut grows with the number of patches cubed."""
    monkeypatch.setattr(feature_cues, 'SIDE', 128)
    monkeypatch.setattr(tokencut, 'LONGER_SIDE', 256)


@pytest.fixture
def images(tmp_path):
    (tmp_path / 'photographs').mkdir()
    for seed, name in enumerate('abc'):
        Image.fromarray(discs(seed=seed)[0]).save(tmp_path / 'photographs' / f'{name}.png')
    return tmp_path / 'photographs'


def check(out, name=NAME):
    """Every mask is all of its objects; returns how many each has."""
    found = {}
    for image_id in ids_of(out, 'trainaug'):
        instances = read_instances(out / f'instances_{name}' / f'{image_id}.png')
        assert np.array_equal(instances > 0, read_saliency(out / f'saliency_{name}' / f'{image_id}.png'))
        assert min(np.bincount(instances.ravel())[1:]) >= 0.01 * instances.size
        found[image_id] = int(instances.max())
    return found


@pytest.mark.slow
def test_parts_of_photographs(tmp_path, images, user_error):
    """Made at once, or later beside masks that are there; as before when nothing is said; and what is missing alone."""
    out, later = tmp_path / 'mine', tmp_path / 'later'
    results = make_masks(images, out, '--objects', 'parts')
    assert check(out) == {'a': 2, 'b': 2, 'c': 2} == results['objects'] and results['masks'] == 3
    instances = read_instances(out / f'instances_{NAME}' / 'a.png')
    for number in (1, 2):
        mine, truth = instances == number, discs()[1] == number
        assert (mine & truth).sum() / (mine | truth).sum() > 0.8
    assert 'objects' not in make_masks(images, later) and not (later / f'instances_{NAME}').exists()
    masks = contents(later, f'saliency_{NAME}')
    make_masks(images, later, '--objects', 'parts')
    assert contents(later, f'saliency_{NAME}') == masks
    assert contents(later, f'instances_{NAME}') == contents(out, f'instances_{NAME}')
    before = times(out)
    Image.fromarray(discs(((24, 32),), seed=9)[0]).save(images / 'd.png')
    results = make_masks(images, out)
    assert check(out) == {'a': 2, 'b': 2, 'c': 2, 'd': 1} == results['objects']
    assert before.items() <= times(out).items()
    (out / f'instances_{NAME}' / 'b.png').unlink()
    make_masks(images, out)
    assert check(out) == {'a': 2, 'b': 2, 'c': 2, 'd': 1}
    Image.new('RGB', (64, 48)).save(images / 'a.png')  # no object any more
    make_masks(images, out)
    assert not (out / f'instances_{NAME}' / 'a.png').exists() and list(check(out)) == ['b', 'c', 'd']


@pytest.mark.slow
def test_corrected_objects_stay(tmp_path, images):
    """Their mask becomes all of them; where they can't be read, a line says so."""
    out = tmp_path / 'mine'
    make_masks(images, out, '--objects', 'parts')
    made, mask = (out / f'{kind}_{NAME}' / 'a.png' for kind in ('instances', 'saliency'))
    found = read_instances(made)
    write_instances(made, np.where(found == 1, 1, 0))
    os.utime(made, ns=(mask.stat().st_mtime_ns + 10 ** 9,) * 2)
    assert make_masks(images, out)['objects'] == check(out) == {'a': 1, 'b': 2, 'c': 2}
    assert np.array_equal(read_instances(made), found == 1)
    Image.fromarray(np.where(found == 2, 2, 0).astype(np.uint16)).save(made)
    os.utime(made, ns=(mask.stat().st_mtime_ns + 10 ** 9,) * 2)
    content = made.read_bytes()
    assert f'{made}: there is an object 2, but none with the number 1' in make_masks(images, out)['skipped']['a']
    assert made.read_bytes() == content
    os.utime(made, ns=(mask.stat().st_mtime_ns - 10 ** 9,) * 2)  # damaged: the mask is divided again
    make_masks(images, out)
    assert np.array_equal(read_instances(made), found == 1) and check(out) == {'a': 1, 'b': 2, 'c': 2}


@pytest.mark.slow
@pytest.mark.parametrize('way, flags', [('parts', ()), ('cuts', ('--model', 'feature_cues', '--weights'))])
def test_a_corrected_mask_is_divided_as_it_is(tmp_path, images, own_weights, way, flags):  # noqa: F811
    """Objects that are asked for later are those of the mask on disk, not of one made anew."""
    out, flags = tmp_path / 'mine', (*flags, str(own_weights)) if flags else ()
    name = 'feature_cues' if flags else NAME
    make_masks(images, out, *flags)
    mask = np.zeros((48, 64), np.uint8)
    mask[4:12, 4:30] = mask[30:44, 40:60] = 255  # where no object is
    Image.fromarray(mask).save(out / f'saliency_{name}' / 'a.png')
    assert make_masks(images, out, *flags, '--objects', way)['objects']['a'] in ((2,) if way == 'parts' else (2, 3, 4))
    assert np.array_equal(read_saliency(out / f'saliency_{name}' / 'a.png') * 255, mask)
    instances = out / f'instances_{name}' / 'a.png'
    assert np.array_equal(read_instances(instances) > 0, mask > 0)
    mask[30:44] = 0  # corrected again, beside objects of before
    Image.fromarray(mask).save(out / f'saliency_{name}' / 'a.png')
    assert make_masks(images, out, *flags)['objects']['a'] >= 1
    assert np.array_equal(read_saliency(out / f'saliency_{name}' / 'a.png') * 255, mask)
    assert np.array_equal(read_instances(instances) > 0, mask > 0)


@pytest.mark.slow
def test_ways_that_do_not_fit(tmp_path, images, own_weights, user_error):  # noqa: F811
    def run(*flags):
        return user_error(lambda: generate_masks.main(['--images', str(images), '--out', str(tmp_path / 'mine'),
                                                       '--device', 'cpu', '--num_workers', '0', *flags]))
    assert '--objects cuts cuts the features of a backbone, and --model robust_background has none' in run('--objects', 'cuts')
    assert not (tmp_path / 'mine').exists()
    cues = ['--model', 'feature_cues', '--weights', str(own_weights)]
    for name in 'bc':
        (images / f'{name}.png').unlink()
    make_masks(images, tmp_path / 'mine', *cues, '--objects', 'parts')
    assert 'masks of this name were made with another --objects' in run(*cues, '--objects', 'cuts')
    instances = tmp_path / 'mine' / 'instances_feature_cues'
    instances.rename(tmp_path / 'away')
    make_masks(images, tmp_path / 'mine', *cues, '--objects', 'cuts')
    assert check(tmp_path / 'mine', 'feature_cues').keys() == set(ids_of(tmp_path / 'mine', 'trainaug'))


def test_parts_by_hand():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], np.uint8)
    assert parts(mask).tolist() == [[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 3, 0, 0]]  # also over corners
    assert not parts(mask * 0).any()


# Cuts


def plain_cuts(keys, shape, most):
    """Of each cut the object's patches, as the paper says it, with loops and the general eigenvalue problem."""
    count, left, found = len(keys), [True] * len(keys), []
    for _ in range(most):
        graph = np.full((count, count), 1e-5)
        for i in range(count):
            for j in range(count):
                cosine = keys[i] @ keys[j] / np.sqrt((keys[i] @ keys[i]) * (keys[j] @ keys[j]))
                if left[i] and left[j] and cosine > 0.15:
                    graph[i, j] = 1
        degrees = np.diag(graph.sum(1))
        vector = scipy.linalg.eigh(degrees - graph, degrees)[1][:, 1]
        side = vector > vector.mean()
        if not side[np.argmax(np.abs(vector))]:
            side = ~side
        corners = [0, shape[1] - 1, count - shape[1], count - 1]
        if sum(side[corner] for corner in corners) > 2:
            side = ~side
        strength = [abs(value) if inside and free else -1 for value, inside, free in zip(vector, side, left, strict=True)]
        seed = int(np.argmax(strength))
        reached, todo = {seed}, [seed]
        while todo:
            row, column = divmod(todo.pop(), shape[1])
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                place = r * shape[1] + c
                if 0 <= r < shape[0] and 0 <= c < shape[1] and side[place] and left[place] and place not in reached:
                    reached.add(place)
                    todo.append(place)
        for place in reached:
            left[place] = False
        found.append(reached)
    return found


def regions(seed, shape=(8, 10)):
    """Features of a grid with two objects of their own kinds on a background, noisy: N x C; and h x w, 0 to 2."""
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, int)
    truth[1:5, 1:4], truth[3:7, 5:9] = 1, 2
    kinds = np.linalg.qr(random.normal(size=(6, 6)))[0][:3]
    return torch.tensor(kinds[truth.ravel()] + random.normal(0, 0.12, (truth.size, 6))), truth


@pytest.mark.parametrize('seed', range(4))
def test_repeated_cuts_against_plain_ones(seed):
    keys, truth = regions(seed)
    found = repeated_cuts(keys, truth.shape, 2)
    assert [set(np.flatnonzero(mask)) for mask in found] == plain_cuts(keys.numpy(), truth.shape, 2)
    assert not (found[0] & found[1]).any() and (seed or [np.unique(truth[mask]).tolist() for mask in found] == [[2], [1]])


def test_cuts_of_what_has_no_objects():
    assert repeated_cuts(torch.ones(12, 3), (3, 4)) == [] and repeated_cuts(torch.eye(12), (3, 4)) == []


def test_a_part_is_split_where_its_patches_differ():
    keys, truth = regions(0)
    inside = truth > 0
    inside[4, 4] = True  # they touch
    groups = sorted(split(keys, inside), key=np.count_nonzero)
    assert sum(map(np.count_nonzero, groups)) == inside.sum() and not np.logical_and.reduce(groups[-2:]).any()
    assert {np.unique(truth[group & (truth > 0)]).tolist()[0] for group in groups[-2:]} == {1, 2}
    for number in (1, 2):  # but one of a kind is not
        same, = split(keys, truth == number)
        assert np.array_equal(same, truth == number)
    alone = np.zeros_like(inside)
    alone[2, 2] = True
    assert np.array_equal(*split(keys, alone), alone)


def test_pixels_go_to_the_nearest_group():
    groups = [np.arange(10).reshape(1, -1).repeat(8, 0) < 4, np.arange(10).reshape(1, -1).repeat(8, 0) > 6]
    mask = np.zeros((80, 100), bool)
    mask[20:60, 10:90] = True
    found = nearest_group(mask, groups)
    expected = np.where(np.arange(100) < 55, 1, 2) * mask  # half-way between columns 40 and 70
    assert np.array_equal(found > 0, mask) and (found != expected).mean() < 0.02
    assert np.array_equal(nearest_group(mask, groups[:1]), mask)
    mask[:, 56:] = False
    assert np.array_equal(nearest_group(mask, groups), mask)  # the other one would have no more than a few pixels


@pytest.mark.slow
def test_cues_are_split_within_their_mask(own_weights):  # noqa: F811
    estimator = get_estimator('feature_cues', weights=own_weights)
    finder, image = get_finder('cuts', 'feature_cues', estimator), discs()[0]
    assert isinstance(finder, SplitCues)
    found, mask = finder(image), object_mask(estimator(image))
    assert mask.any() and np.array_equal(found > 0, mask) and np.array_equal(finder(image), found)
    assert set(np.unique(found)) == set(range(found.max() + 1))
    for number in range(1, found.max() + 1):  # an object is in one of the mask's parts
        assert len(np.unique(parts(mask)[found == number])) == 1


@pytest.mark.slow
def test_maskcut_of_a_transformer(weights, tmp_path, images, user_error):  # noqa: F811
    estimator = get_estimator('tokencut', vit='test_vit', weights=weights('test_vit'))
    finder = get_finder('cuts', 'tokencut', estimator)
    assert isinstance(finder, MaskCut)
    image, truth = discs(((24, 30),), radius=16)
    Image.fromarray(image).save(images / 'a.png')
    found = finder(image)
    assert found.dtype == np.int32 and set(np.unique(found)) == set(range(found.max() + 1))
    best = max((np.sum((found == number) & (truth > 0)) / np.sum((found == number) | (truth > 0))
                for number in range(1, found.max() + 1)), default=0)
    assert best > 0.7
    for name in 'bc':
        (images / f'{name}.png').unlink()
    flags = ['--model', 'tokencut', '--vit', 'test_vit', '--weights', weights('test_vit')]
    make_masks(images, tmp_path / 'mine', *flags, '--objects', 'cuts')
    results = json.loads((tmp_path / 'mine' / 'results_tokencut.json').read_text())
    assert results['objects'] == check(tmp_path / 'mine', 'tokencut') == {'a': found.max()}
    for path in images / 'd.png', tmp_path / 'mine' / 'images' / 'd.jpg':
        Image.new('RGB', (64, 48)).save(path)  # without object: skipped, and a mask drawn by hand stays
    drawn = tmp_path / 'mine' / 'saliency_tokencut' / 'd.png'
    Image.fromarray(np.uint8(255 * (truth > 0))).save(drawn)
    before = drawn.read_bytes()
    assert 'less than 1%' in make_masks(images, tmp_path / 'mine', *flags)['skipped']['d'] and drawn.read_bytes() == before
    line = user_error(lambda: make_masks(images, tmp_path / 'mine', *flags, '--objects', 'parts'))
    assert 'were made with another --objects: give' in line and f'move {tmp_path}/mine/saliency_tokencut away' in line
