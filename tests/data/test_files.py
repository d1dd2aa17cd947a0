"""Data sets as people have them: which files are found, of which size, and what is said where they can't be read."""
import codecs
import os
import shutil

import numpy as np
import pytest
from helpers.checks import refusal
from helpers.experiments import KMEANS
from helpers.files import cut, save
from helpers.mini import NAMES, SHAPE, assert_right, each, labels_of, masked, write_ids
from PIL import Image

from data.dataset import SegmentationDataset
from data.decoding import MAX_PIXELS, read_image
from data.files import Fault, find, present, read_ids
from data.label_space import label_space
from utils.config import create_config
from utils.config.keys import KEYS


@pytest.fixture
def folder(mini):
    return mini


# Which files there are


@pytest.mark.parametrize('write', [lambda name: f'./{name}', lambda name: f'.//./{name}', lambda name: f'/{name}',
                                   lambda name: f'\t{name}  \r'])
def test_ids_with_what_means_nothing(folder, problems, write):
    write_ids(folder, map(write, NAMES))
    assert masked(folder).ids == NAMES
    assert_right(folder)
    assert problems(KMEANS)[0] == 0


@pytest.mark.parametrize('mark, encoding', [(codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF16_LE, 'utf-16-le'),
                                            (codecs.BOM_UTF16_BE, 'utf-16-be'), (codecs.BOM_UTF32_LE, 'utf-32-le')])
def test_byte_order_marks(folder, tmp_path, experiment, mark, encoding):
    arguments = experiment(db_root=folder.parent)
    for path in (*(folder / 'sets').iterdir(), folder / 'classes.txt', *tmp_path.glob('*.yml')):
        path.write_bytes(mark + path.read_text().encode(encoding))
    assert_right(folder)
    assert label_space(folder).names[0] == 'background'
    assert create_config(arguments[1], arguments[3]).train_db_name == 'Shapes'


def test_a_byte_order_mark_inside_joined_files(folder):
    (folder / 'sets' / 'val.txt').write_text(f'\ufeff{NAMES[0]}\n\ufeff{NAMES[1]}\n')
    assert read_ids(folder / 'sets' / 'val.txt') == NAMES[:2]


def test_linked_files_and_folders(folder, tmp_path, problems):
    for part in ('images', 'saliency_supervised_model', 'SegmentationClass', 'SegmentationClassAug'):
        elsewhere = tmp_path / 'disk' / part
        shutil.copytree(folder / part, elsewhere)
        for path in list((folder / part).iterdir()):
            if path.name < 'c':
                path.unlink()
                path.symlink_to(elsewhere / path.name)
            elif path.name < 'e':
                path.unlink()
        (folder / part / 'more').symlink_to(elsewhere)
        (folder / part / 'again').symlink_to(folder / part)  # a loop
    names = [*NAMES[:2], 'more/c_1', 'again/more/d_1', *NAMES[4:]]
    write_ids(folder, names)
    assert masked(folder, drop_missing=True).ids == names
    assert_right(folder)
    assert problems(KMEANS)[0] == 0
    (folder / 'images' / 'lost.jpg').symlink_to('absent')
    assert present(folder / 'images', [*names, 'lost', 'more/x'], 'image') == set(names)
    write_ids(folder, ['lost'])
    assert 'lost.jpg is a broken link' in refusal(masked, folder)


@pytest.mark.parametrize('rename, advice', [
    (lambda path: path.with_suffix('.JPG'), 'a_1.JPG is there: rename it to a_1.jpg'),
    (lambda path: path.with_suffix('.jpeg'), 'a_1.jpeg is there: rename it to a_1.jpg'),
    (lambda path: path.parent / 'train' / path.name, 'train/a_1.jpg is there: ids are paths below this folder without suffix, '
                                                     'here train/a_1'),
    (lambda path: path.with_name(path.name.upper()), 'A_1.JPG is there')])
def test_images_of_other_names(folder, problems, rename, advice):
    for path in list((folder / 'images').iterdir()):
        rename(path).parent.mkdir(exist_ok=True)
        path.rename(rename(path))
    for line in (refusal(masked, folder), refusal(masked, folder, drop_missing=True)):
        assert str(folder / 'images' / 'a_1.jpg') in line and advice in line and 'none of its 6 ids' in line
    code, lines = problems(KMEANS)
    assert code == 2 and advice in lines[0]


@pytest.mark.parametrize('write', [lambda name: f'{name}.jpg', lambda name: f'{name} -1',
                                   lambda name: f'/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png',
                                   lambda name: f'images\\{name}.png', lambda name: f'1 {name}'])
def test_splits_in_other_forms(folder, write):
    write_ids(folder, map(write, NAMES))
    line = refusal(masked, folder)
    assert str(folder / 'images') in line and 'a_1.jpg is there: ids are paths' in line and line.endswith('here a_1')


@pytest.mark.parametrize('name', ['../a_1', 'more/../../a_1', 'a\0b'])
def test_ids_that_lead_elsewhere(folder, problems, name):
    write_ids(folder, [NAMES[0], name])
    assert 'line 2' in refusal(masked, folder) and 'leads out of the data set' in refusal(masked, folder)
    assert problems(KMEANS)[0] == 2


@pytest.mark.parametrize('name', ['x' * 300, f'{"y" * 240}/{"z" * 240}', "it's \"odd\" $(x) `y` %s {0}", 'A_1 a_1', '日本 é',
                                  '-rf', '~'])
def test_names_of_all_kinds(folder, problems, name):
    """They are read where the disk takes them, and are a clear error where it does not."""
    write_ids(folder, [*NAMES, name])
    try:
        for part in ('images', 'saliency_supervised_model', 'SegmentationClass', 'SegmentationClassAug'):
            source = find(folder / part, 'a_1', 'image' if part == 'images' else 'label')
            target = folder / part / f'{name}{source.suffix}'
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    except OSError:
        assert 'File name too long' in refusal(masked(folder).__getitem__, 6)
        assert masked(folder, drop_missing=True).dropped == 1 and problems(KMEANS)[0] == 2
    else:
        assert np.array_equal(masked(folder, drop_missing=True)[6]['labels'], labels_of(0)) and problems(KMEANS)[0] == 0


def test_names_that_differ_in_case_only(folder):
    shutil.copy(folder / 'images' / 'b_1.jpg', folder / 'images' / 'A_1.jpg')
    shutil.copy(folder / 'saliency_supervised_model' / 'b_1.png', folder / 'saliency_supervised_model' / 'A_1.png')
    write_ids(folder, ['a_1', 'A_1'])
    both = SegmentationDataset(folder, 'val', 'supervised_model', drop_missing=True)
    assert both.ids == ['a_1', 'A_1'] and not np.array_equal(both[0]['image'], both[1]['image'])


@pytest.mark.parametrize('layout', ['', 'VOC2012', 'VOCdevkit/VOC2012'])
def test_pascal_voc_as_it_is_unpacked(tmp_path, layout):
    (tmp_path / 'Voc' / layout / 'JPEGImages').mkdir(parents=True)
    (tmp_path / 'Voc' / layout / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    line = refusal(SegmentationDataset, tmp_path / 'Voc', 'val')
    assert line.startswith(f'{tmp_path / "Voc" / "images"}: the folder is missing') and 'convert_voc.py' in line
    if not layout:
        (tmp_path / 'Voc' / 'images').mkdir()
        assert 'convert_voc.py' in refusal(SegmentationDataset, tmp_path / 'Voc', 'val')


def test_folders_of_other_names(folder):
    assert refusal(SegmentationDataset, folder, 'val', 'model').endswith('(there is saliency_supervised_model)')
    assert refusal(SegmentationDataset, folder, 'test').endswith('there is train.txt, trainaug.txt, val.txt')
    (folder / 'images').rename(folder / 'Images')
    assert refusal(SegmentationDataset, folder, 'val').endswith('(there is Images)')


# Sizes


@pytest.mark.parametrize('orientation, scale', [(6, 1), (8, 1), (5, 2)])
def test_labels_and_masks_of_turned_images(folder, problems, orientation, scale):
    exif = Image.Exif()
    exif[0x0112] = orientation
    each(folder, 'images', lambda image, path: save(path, image, exif=exif.tobytes()))
    assert_right(folder)
    code, lines = problems(KMEANS)
    assert code == 0 and 'turned image: 6' in lines[-1]
    each(folder, 'SegmentationClass', lambda labels, path: save(path, labels.T.repeat(scale, 0).repeat(scale, 1)))
    line = refusal(SegmentationDataset(folder, 'val', labels=True).__getitem__, 0)
    assert line.startswith(str(folder / 'SegmentationClass' / 'a_1.png')) and f'EXIF orientation {orientation}' in line
    assert problems(KMEANS)[0] == 2
    each(folder, 'saliency_supervised_model', lambda mask, path: save(path, mask.T))
    assert 'EXIF orientation' in refusal(masked(folder).__getitem__, 0)


def test_too_many_pixels(folder, problems):
    assert [key.default for key in KEYS if key.name == 'max_image_pixels'] == [MAX_PIXELS]
    name = folder / 'images' / 'a_1.jpg'
    for kind in ('JPEG', 'PNG', 'BMP', 'WEBP'):
        save(name, np.zeros((*SHAPE, 3), np.uint8), format=kind)
        assert 'more pixels than max_image_pixels (767)' in refusal(masked(folder, max_pixels=767).__getitem__, 0)
        assert read_image(name, 768).shape == (*SHAPE, 3)
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own limit is there for other code in this process
    code, lines = problems(KMEANS, {'max_image_pixels': 100})
    assert code == 2 and 'unusable image: 6' in lines[-1]


def test_files_that_change_while_they_are_read(folder):
    dataset = masked(folder, drop_missing=True)
    (folder / 'images' / 'a_1.jpg').write_bytes(b'')
    cut(folder / 'saliency_supervised_model' / 'b_1.png', 0.6)
    os.remove(folder / 'images' / 'c_1.jpg')
    shutil.move(folder / 'images' / 'd_1.jpg', folder / 'images' / 'd_1.JPG')
    for index, kind, words in ((0, 'unusable image', '0 bytes'), (1, 'unusable mask', 'is not a complete image'),
                               (2, 'missing image', 'could not be read (No such file'),
                               (3, 'missing image', 'd_1.JPG is there')):
        with pytest.raises(Fault) as fault:
            dataset[index]
        assert fault.value.kind == kind and words in str(fault.value) and '\n' not in str(fault.value)
