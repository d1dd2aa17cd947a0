"""Pairs of views: what they depend on, which images are passed over, and the order of batches."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive.augmentations import render, sample_view
from contrastive.view_pairs import ViewPairs
from data.dataset import SegmentationDataset
from data.loaders import EpochBatchSampler, epoch_loader
from utils.errors import UserError

PARTS = ('query', 'key', 'query_mask', 'key_mask')


class Counted(SegmentationDataset):
    """A data set that knows which of its items were read."""
    reads = ()

    def __getitem__(self, index):
        self.reads = (*self.reads, index)
        return super().__getitem__(index)


@pytest.fixture
def shapes(shapes_root):
    return SegmentationDataset(shapes_root / 'Shapes', 'trainaug', saliency='supervised_model')


@pytest.fixture
def data(tmp_path, shapes_root):
    """data(masks) copies the small Shapes and puts masks[i] (an array, or a function of the old one) in place i."""
    def make(masks=None):
        folder = tmp_path / 'Shapes'
        shutil.copytree(shapes_root / 'Shapes', folder)
        dataset = Counted(folder, 'trainaug', saliency='supervised_model')
        for index, change in (masks or {}).items():
            path = dataset.masks / f'{dataset.ids[index]}.png'
            Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)
        return dataset
    return make


def truncate(dataset, *indices):
    for index in indices:
        path = dataset.images / f'{dataset.ids[index]}.jpg'
        path.write_bytes(path.read_bytes()[:300])
    return path


def same(a, b):
    return a['id'] == b['id'] and all(torch.equal(a[part], b[part]) for part in PARTS)


def batches_of(pairs, workers, epoch=0, batch=4):
    loader = epoch_loader(pairs, batch, 1, workers, torch.device('cpu'))
    loader.batch_sampler.epoch = epoch
    return list(loader)


def test_items(shapes):
    item = ViewPairs(shapes, 3, 48)[0, 2]
    assert item['id'] == shapes.ids[2] and item['skipped'] == []
    for view in ('query', 'key'):
        assert item[view].shape == (48, 48, 3) and item[view].dtype == torch.uint8
        mask = item[f'{view}_mask']
        assert mask.shape == (48, 48) and mask.dtype == torch.uint8 and set(mask.unique().tolist()) == {0, 1}
    assert not torch.equal(item['query'], item['key'])


def test_items_depend_on_seed_epoch_and_id_only(shapes, shapes_root):
    first = [ViewPairs(shapes, 3, 48)[1, index] for index in range(6)]
    pairs = ViewPairs(shapes, 3, 48)
    for index in (5, 0, 3):
        pairs[0, index]  # what was drawn before makes no difference
        np.random.seed(index)
        assert same(pairs[1, index], first[index])
    assert not any(same(pairs[2, index], first[index]) for index in range(6))
    assert not any(same(ViewPairs(shapes, 4, 48)[1, index], first[index]) for index in range(6))
    # The id counts, not its place in the split.
    turned = SegmentationDataset(shapes_root / 'Shapes', 'trainaug', saliency='supervised_model')
    turned.ids.reverse()
    assert same(ViewPairs(turned, 3, 48)[1, len(turned) - 1 - 2], first[2])


def test_workers_make_no_difference(shapes):
    pairs = ViewPairs(shapes, 3, 48)
    alone, workers = batches_of(pairs, 0), batches_of(pairs, 2)
    assert len(alone) == len(workers) == 3
    for a, b in zip(alone, workers, strict=True):
        assert a['id'] == b['id'] and a['query'].shape == (4, 48, 48, 3) and a['key_mask'].shape == (4, 48, 48)
        assert all(torch.equal(a[part], b[part]) for part in PARTS)


@pytest.mark.parametrize('size, grid', [(48, 6), (36, 5), (33, 5), (32, 4)])
def test_masks_at_the_size_of_the_grid(shapes, size, grid):
    full, strided = ViewPairs(shapes, 3, size), ViewPairs(shapes, 3, size, mask_stride=8)
    equal = 0
    for index in range(len(shapes)):
        a, b = full[0, index], strided[0, index]
        assert b['query'].shape == (size, size, 3) and b['query_mask'].shape == b['key_mask'].shape == (grid, grid)
        if torch.equal(a['query'], b['query']):  # both took their first try
            assert torch.equal(b['query_mask'], a['query_mask'][::8, ::8])
            equal += 1
    assert equal >= 6


def test_cover_is_tested_on_the_masks_that_forward_gets(shapes):
    def uncovered(pairs, step):
        masks = [item[part][::step, ::step] for epoch in range(5) for item in (pairs[epoch, i] for i in range(12))
                 for part in ('query_mask', 'key_mask')]
        return sum(mask.float().mean().item() in (0, 1) for mask in masks)

    assert uncovered(ViewPairs(shapes, 3, 16), 8) > 0  # tested at full size, 2 x 2 masks are sometimes empty or full
    assert uncovered(ViewPairs(shapes, 3, 16, mask_stride=8), 1) == 0


@pytest.mark.parametrize('value', [0, 255])
def test_masks_of_nothing_and_everything_are_replaced(data, value):
    dataset = data({4: lambda mask: np.full_like(mask, value)})
    for epoch in range(5):
        item = ViewPairs(dataset, 3, 32)[epoch, 4]
        assert item['id'] != dataset.ids[4] and item['skipped'] == []  # a rule of the method, not a bad file
        assert all(0.01 < item[part].float().mean() < 0.99 for part in ('query_mask', 'key_mask'))
    assert len({ViewPairs(dataset, 3, 32)[epoch, 4]['id'] for epoch in range(20)}) > 5
    assert ViewPairs(dataset, 3, 32)[0, 5]['id'] == dataset.ids[5]


@pytest.mark.slow
def test_three_tries_then_another_image(data):
    def corner(mask):
        out = np.zeros_like(mask)
        out[:14, :14] = 255
        return out

    dataset = data({4: corner})
    sample, rng = dataset[4], np.random.default_rng(0)

    def covered():
        mask = render(sample['image'], sample['saliency'], sample_view(rng, *sample['saliency'].shape), 16)[1]
        return 0.01 < mask.mean() < 0.99

    fails = 1 - np.mean([covered() and covered() for _ in range(2000)])
    assert 0.4 < fails < 0.8  # so that two, three and four tries are far apart
    pairs = ViewPairs(dataset, 3, 16)
    replaced = np.mean([pairs[epoch, 4]['id'] != dataset.ids[4] for epoch in range(600)])
    # A few replacements are the image itself again, 1 in 12.
    expected = {tries: fails ** tries * (1 - (1 - fails) / 12) for tries in (2, 3, 4)}
    assert abs(replaced - expected[3]) < min(abs(replaced - expected[2]), abs(replaced - expected[4]), 0.07)


def test_a_data_set_whose_views_never_pass_is_an_error(data):
    dataset = data(dict.fromkeys(range(12), lambda mask: mask // 255))
    for pairs in (ViewPairs(dataset, 3, 32), ViewPairs(dataset, 3, 32, skip_unreadable=True)):
        dataset.reads = ()
        with pytest.raises(UserError) as error:
            pairs[0, 4]
        line = error.value.line()
        assert line.startswith(f'{dataset.masks}: ') and 'largest value' in line and ' is 1;' in line
        assert dataset.reads[0] == 4 and len(dataset.reads) == 51  # the image and 50 replacements
    truncate(dataset, 4)
    with pytest.raises(UserError, match='largest value in .* is 1;'):  # the masks are at fault, not the one bad file
        ViewPairs(dataset, 3, 32, skip_unreadable=True)[0, 4]


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_errors(data, workers):
    dataset = data()
    path = truncate(dataset, 4)
    line = None
    try:
        batches_of(ViewPairs(dataset, 3, 32), workers)
    except UserError as error:
        line = error.line()
        error.__traceback__ = None  # frees the workers, which would take seconds to end in the garbage collector
    assert line.startswith(f'{path} is not a complete image') and '\n' not in line and 'Traceback' not in line


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_passed_over_on_request(data, workers):
    dataset = data()
    path = truncate(dataset, 4)
    batches = batches_of(ViewPairs(dataset, 3, 32, skip_unreadable=True), workers)
    ids = [name for batch in batches for name in batch['id']]
    lines = [line for batch in batches for lines in batch['skipped'] for line in lines]
    assert len(ids) == 12 and dataset.ids[4] not in ids and set(ids) == {*dataset.ids} - {dataset.ids[4]}
    assert lines and all(line.startswith(f'{path} is not a complete image') for line in lines)


def test_a_data_set_without_a_readable_image_is_an_error(data):
    dataset = data()
    truncate(dataset, *range(12))
    with pytest.raises(UserError) as error:
        ViewPairs(dataset, 3, 32, skip_unreadable=True)[0, 4]
    assert str(dataset.images / f'{dataset.ids[4]}.jpg') in error.value.line() and len(dataset.reads) == 51


# Order


def ids_of(batches):
    return [index for batch in batches for _, index in batch]


def test_batches_of_an_epoch():
    batches = EpochBatchSampler(11, 4, seed=5)
    first = list(batches)
    assert len(batches) == len(first) == 2 and [len(batch) for batch in first] == [4, 4]
    assert len(set(ids_of(first))) == 8 and set(ids_of(first)) <= set(range(11))
    assert {epoch for batch in first for epoch, _ in batch} == {0}
    assert list(batches) == first == list(EpochBatchSampler(11, 4, seed=5))
    assert ids_of(EpochBatchSampler(11, 4, seed=6)) != ids_of(first)


def test_every_epoch_has_an_order_of_its_own():
    batches, left_out = EpochBatchSampler(11, 4, seed=5), []
    orders = []
    for batches.epoch in range(30):
        assert {epoch for batch in batches for epoch, _ in batch} == {batches.epoch}
        orders.append(tuple(ids_of(batches)))
        left_out += {*range(11)} - {*orders[-1]}
    assert len(set(orders)) == 30
    assert set(left_out) == set(range(11))  # not always the same ones


@pytest.mark.parametrize('world_size', [2, 3])
def test_shares_of_processes_make_up_the_global_batch(world_size):
    shares = [EpochBatchSampler(26, 6, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = EpochBatchSampler(26, 6, seed=5)
    for epoch in range(3):
        for batches in (whole, *shares):
            batches.epoch = epoch
        assert [sum(parts, []) for parts in zip(*shares, strict=True)] == list(whole)
        assert all(len(batches) == 4 for batches in shares)


def test_start_skips_exactly():
    batches = EpochBatchSampler(22, 4, seed=5)
    whole = list(batches)
    for batches.start in range(6):
        assert list(batches) == whole[batches.start:]
    assert len(batches) == 5
