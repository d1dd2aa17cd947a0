"""Pre-training on single objects: each pair of views is of one of them, drawn by the pair's own random numbers."""
import shutil

import numpy as np
import pytest
import torch
from helpers.checks import refusal
from helpers.experiments import PRETRAINING
from PIL import Image

from contrastive.augmentations import render, sample_view
from contrastive.view_pairs import COVER, TRIES, ViewPairs
from data.check import main as check
from data.dataset import SegmentationDataset
from data.instances import read_instances, write_instances
from data.loaders import item_rng
from main import main

MASKS, SEED, SIZE = 'supervised_model', 3, 32
PARTS = ('query', 'key', 'query_mask', 'key_mask')


@pytest.fixture
def root(shapes_root, tmp_path):
    """A db_root with `Shapes` and two objects in each image: the upper and the lower half of its mask."""
    folder = tmp_path / 'data' / 'Shapes'
    shutil.copytree(shapes_root / 'Shapes', folder)
    for path in (folder / f'saliency_{MASKS}').iterdir():
        mask = np.array(Image.open(path)) > 0
        middle = np.flatnonzero(mask.any(1)).mean()
        write_instances(folder / f'instances_{MASKS}' / path.name,
                        mask * np.where(np.arange(len(mask)) < middle, 1, 2)[:, None])
    return folder.parent


def pairs_of(root, instances=True):
    return ViewPairs(SegmentationDataset(root / 'Shapes', 'trainaug', MASKS, instances=instances), SEED, SIZE)


def plain_pair(dataset, epoch, index, draw):
    """The key and the query view with their masks, or None where another image takes the image's place. draw: gives the mask
    of an item from the random numbers."""
    sample, rng = dataset[index], item_rng(SEED, epoch, dataset.ids[index])
    for _ in range(TRIES):
        mask = draw(rng, sample)
        pair = [render(sample['image'], mask, sample_view(rng, *mask.shape), SIZE) for _ in range(2)]
        if all(COVER[0] < view.mean() < COVER[1] for _, view in pair):
            return pair
    return None


def one_of_two(rng, sample):
    return (sample['instances'] == 1 + rng.integers(2)).astype(np.uint8)


@pytest.mark.parametrize('instances, draw', [(True, one_of_two), (False, lambda rng, sample: sample['saliency'])],
                         ids=['instances', 'as before'])
def test_a_pair_is_of_one_object(root, instances, draw):
    """Both views have the mask of the same object, before they are cropped; without instances nothing more is drawn."""
    pairs, first = pairs_of(root, instances), 0
    for epoch in range(6):
        for index in range(len(pairs)):
            expected, item = plain_pair(pairs.dataset, epoch, index, draw), pairs[epoch, index]
            if expected is not None:
                (key, key_mask), (query, query_mask) = expected
                for part, array in zip(PARTS, (query, key, query_mask, key_mask), strict=True):
                    assert np.array_equal(item[part].numpy(), array)
                first += 1
    assert first > 40
    again = pairs_of(root, instances)  # in another order
    assert all(torch.equal(again[5, index][part], pairs[5, index][part]) for index in (7, 2) for part in PARTS)


def test_objects_have_their_turns(root):
    """Of 40 pairs of an image some are of each of its objects: the union of a pair's views never is both."""
    dataset = pairs_of(root).dataset
    sample, drawn = dataset[0], []
    for epoch in range(40):
        mask = ViewPairs._object(item_rng(SEED, epoch, dataset.ids[0]), sample)
        assert mask.dtype == np.uint8 and mask.shape == sample['saliency'].shape
        drawn += [number for number in (1, 2) if np.array_equal(mask, sample['instances'] == number)]
    assert len(drawn) == 40 and 10 < drawn.count(1) < 30


def test_images_without_objects_are_replaced(root):
    pairs = pairs_of(root)
    folder, ids = root / 'Shapes' / f'instances_{MASKS}', pairs.dataset.ids
    empty = read_instances(folder / f'{ids[2]}.png') * 0
    write_instances(folder / f'{ids[2]}.png', empty)
    assert all(pairs[epoch, 2]['id'] != ids[2] for epoch in range(5))
    for name in ids:
        write_instances(folder / f'{name}.png', read_instances(folder / f'{name}.png') * 0)
    assert refusal(lambda: pairs[0, 2]).endswith('(objects are numbered from 1)')


@pytest.mark.slow
def test_a_run_with_instances(experiment, root, tmp_path, capsys, user_error):
    changes = {'train_db_kwargs.instances': True, 'epochs': 1}
    arguments = experiment(changes, db_root=root, base=PRETRAINING)
    main([*arguments, '--world-size', '1'])
    assert f'12 images with masks from instances_{MASKS} (0 ids' in capsys.readouterr().out
    state = torch.load(tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', weights_only=True)
    assert state['config']['train_db_kwargs'] == {'saliency': MASKS, 'instances': True}
    check(arguments[:4])
    assert 'Problems: 0' in capsys.readouterr().out
    ids = (root / 'Shapes' / 'sets' / 'trainaug.txt').read_text().split()
    path = root / 'Shapes' / f'instances_{MASKS}' / f'{ids[3]}.png'
    Image.fromarray((read_instances(path) * 2).astype(np.uint16)).save(path)
    with pytest.raises(SystemExit):
        check(arguments[:4])
    assert f'{path}: there is an object 4, but none with the number 1' in capsys.readouterr().out
    shutil.rmtree(path.parent)
    assert f'{path.parent}: the folder is missing from the data set' in user_error(
        lambda: main([*arguments, '--world-size', '1', '--fresh']))
