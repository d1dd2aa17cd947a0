"""Instance maps: files of 16 bits with the numbers of objects, and data sets whose masks are those of single objects."""
import os
import shutil

import numpy as np
import pytest
from helpers.checks import refusal
from helpers.files import cut, save
from helpers.mini import NAMES, SHAPE, each, labels_of
from PIL import Image

from data.dataset import SegmentationDataset
from data.instances import MOST, consecutive, object_names, read_instances, write_instances
from utils.errors import UserError

MAP = np.zeros((6, 9), np.int64)
MAP[1:3, 1:4], MAP[4:, 5:] = 1, 2


def test_what_was_written_is_read(tmp_path):
    for path, numbers in ((tmp_path / 'a' / 'two.png', MAP), (tmp_path / 'none.png', MAP * 0),
                          (tmp_path / 'many.png', np.arange(1000).reshape(20, 50))):
        write_instances(path, numbers)
        found = read_instances(path)
        assert found.dtype == np.int32 and np.array_equal(found, numbers)
        with Image.open(path) as image:
            assert image.mode == 'I;16' and image.format == 'PNG'
    assert sorted(os.listdir(tmp_path)) == ['a', 'many.png', 'none.png']


def test_other_tools_files(tmp_path):
    """8 bits are read, palette images by index; numbers that are not the objects of one image are refused."""
    assert np.array_equal(read_instances(save(tmp_path / 'gray.png', MAP.astype(np.uint8))), MAP)
    image = Image.fromarray(MAP.astype(np.uint8))
    image.putpalette([9, 9, 9, 0, 0, 0, 255, 0, 0])
    image.save(tmp_path / 'palette.png')
    assert np.array_equal(read_instances(tmp_path / 'palette.png'), MAP)
    path = save(tmp_path / 'gap.png', (MAP * 3).astype(np.uint16))
    assert refusal(read_instances, path).startswith(f'{path}: there is an object 6, but none with the number 1')
    path = save(tmp_path / 'later.png', (MAP + (MAP == 2)).astype(np.uint16))
    assert 'an object 3, but none with the number 2' in refusal(read_instances, path)
    for name, array in (('colours.png', np.dstack([MAP] * 3).astype(np.uint8)), ('lossy.jpg', MAP.astype(np.uint8))):
        assert 'instances must be a PNG of one channel' in refusal(read_instances, save(tmp_path / name, array))


def test_files_that_are_not_whole(tmp_path):
    path = tmp_path / 'map.png'
    assert 'could not be read' in refusal(read_instances, path)
    write_instances(path, np.random.default_rng(0).permutation(2000).reshape(40, 50))
    assert 'more pixels than max_image_pixels (1999)' in refusal(read_instances, path, 1999)
    cut(path, 0.5)
    assert refusal(read_instances, path).startswith(f'{path} is not a complete image')


@pytest.mark.parametrize('numbers, message', [(MAP - 1, '-1 is not a number'), (MAP * 2, 'none with the number 1'),
                                              (np.arange(MOST + 2).reshape(1, -1), 'more than 65535')])
def test_numbers_that_are_not_written(tmp_path, numbers, message):
    with pytest.raises(ValueError, match=message):
        write_instances(tmp_path / 'map.png', numbers)
    assert not os.listdir(tmp_path)


def test_renumbering():
    numbers = np.array([[0, 7, 7], [3, 0, 40000]])
    assert consecutive(numbers).tolist() == [[0, 2, 2], [1, 0, 3]] and consecutive(numbers).dtype == np.int32
    assert np.array_equal(consecutive(MAP), MAP) and not consecutive(MAP * 0).any()
    assert object_names('a/b', 2) == ['a/b#1', 'a/b#2'] and object_names('a', 0) == []


@pytest.fixture
def folder(mini):
    """The small data set with two objects in each image: the left and the right half of its mask."""
    for index, name in enumerate(NAMES):
        halves = np.where(np.arange(SHAPE[1]) < 12, 1, 2)
        write_instances(mini / 'instances_supervised_model' / f'{name}.png', (labels_of(index) > 0) * halves)
    return mini


def test_a_data_set_of_instances(folder, tmp_path):
    for cache in (None, tmp_path / 'cache', tmp_path / 'cache'):
        dataset = SegmentationDataset(folder, 'trainaug', 'supervised_model', instances=True, drop_missing=True, cache=cache)
        assert len(dataset) == len(NAMES) and dataset.masks == folder / 'instances_supervised_model'
        for index, item in enumerate(dataset):
            assert item['instances'].dtype == np.int32 and np.unique(item['instances']).tolist() == [0, 1, 2]
            assert item['saliency'].dtype == np.uint8 and np.array_equal(item['saliency'], labels_of(index) > 0)
    assert list((tmp_path / 'cache').rglob('*.npy'))
    assert 'instances' not in SegmentationDataset(folder, 'trainaug', 'supervised_model')[0]


def test_what_is_missing_or_of_another_size_is_named(folder):
    (folder / 'instances_supervised_model' / f'{NAMES[0]}.png').unlink()
    left = SegmentationDataset(folder, 'trainaug', 'supervised_model', instances=True, drop_missing=True)
    assert left.ids == NAMES[1:] and 'instances_supervised_model' in left.why_dropped()
    each(folder, 'instances_supervised_model', lambda array, path: save(path, array[1:]))
    with pytest.raises(UserError, match='make the mask again at the size of the image'):
        left[0]
    with pytest.raises(UserError, match=r'instances_other: the folder is missing .*there is instances_supervised_model'):
        SegmentationDataset(folder, 'trainaug', 'other', instances=True)
    shutil.rmtree(folder / 'instances_supervised_model')
    with pytest.raises(UserError, match='generate_masks.py --objects makes the files of single objects'):
        SegmentationDataset(folder, 'trainaug', 'supervised_model', instances=True)
