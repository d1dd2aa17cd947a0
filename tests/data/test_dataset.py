"""Reading images, masks and labels from real files, and the folder layout of a data set."""
import re
import shutil

import numpy as np
import pytest
from helpers.checks import refusal
from helpers.files import cut, save
from PIL import Image

from data.dataset import SegmentationDataset, dataset_folder
from data.decoding import read_image, read_labels, read_saliency
from data.label_space import VOC_CLASSES, label_space
from data.synthetic_shapes import CLASSES

RAMP = (np.arange(48, dtype=np.uint8)[:, None] * 5 + np.zeros((1, 64), np.uint8))  # 48 x 64
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)


@pytest.fixture
def data(tmp_path):
    """A data set of three images a, b, c (48 x 64, PNG content) with masks and labels of both kinds."""
    folder = tmp_path / 'Mine'
    for name in 'abc':
        save(folder / 'images' / f'{name}.jpg', np.dstack([RAMP] * 3), format='PNG')
        save(folder / 'saliency_model' / f'{name}.png', (RAMP > 100).astype(np.uint8) * 255)
        save(folder / 'SegmentationClass' / f'{name}.png', (RAMP > 100).astype(np.uint8))
        save(folder / 'SegmentationClassAug' / f'{name}.png', (RAMP > 100).astype(np.uint8) * 2)
    (folder / 'sets').mkdir()
    for split, text in (('val', 'c\r\n\r\n  a \r\nb'), ('trainaug', 'b\na\nc\n')):
        (folder / 'sets' / f'{split}.txt').write_bytes(text.encode())
    return folder


# Images


@pytest.mark.parametrize('kind, share', [('JPEG', 0.5), ('JPEG', 0.95), ('JPEG', 0.01), ('PNG', 0.5), ('PNG', 0.98)])
def test_truncated_images_are_errors(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    path = save(tmp_path / 'image.jpg', noise, format=kind)
    assert read_image(path).shape == (48, 64, 3)
    cut(path, share)
    assert refusal(read_image, path).startswith(f'{path} is not a complete image')


def test_other_content_is_an_error(tmp_path):
    for name, data in (('text.jpg', b'This is no image.\n'), ('empty.jpg', b''), ('start.jpg', b'\xff\xd8\xff\xd9')):
        (tmp_path / name).write_bytes(data)
        for read in (read_image, read_saliency, read_labels):
            assert refusal(read, tmp_path / name).startswith(f'{tmp_path / name} is not a complete image')


def test_missing_files_are_errors(tmp_path):
    for read in (read_image, read_saliency, read_labels):
        assert refusal(read, tmp_path / 'absent').startswith(f'{tmp_path / "absent"} could not be read (No such file')
        assert refusal(read, tmp_path).startswith(f'{tmp_path} could not be read (Is a directory')


def test_images_are_rgb(tmp_path):
    path = save(tmp_path / 'exact.jpg', CORNERS, format='PNG')
    assert np.array_equal(read_image(path), CORNERS)
    path = save(tmp_path / 'lossy.jpg', CORNERS.repeat(16, 0).repeat(16, 1), quality=95)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
    assert np.abs(image[8::16, 8::16].astype(int) - CORNERS).max() < 20


@pytest.mark.parametrize('mode, kind', [('L', 'JPEG'), ('CMYK', 'JPEG'), ('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'),
                                        ('LA', 'PNG'), ('1', 'PNG'), ('RGB', 'BMP'), ('P', 'GIF')])
def test_every_kind_of_image_has_three_channels(tmp_path, mode, kind):
    colours = np.full((16, 24, 3), (200, 200, 200) if 'L' in mode else (255, 0, 0), np.uint8)
    image = read_image(save(tmp_path / 'image.jpg', colours, mode, format=kind))
    assert image.dtype == np.uint8 and image.shape == (16, 24, 3) and image.flags.writeable
    if mode != '1':  # red dithers to black and white
        assert np.abs(image.astype(int) - colours).max() <= 3


def test_images_of_16_bit_become_8_bit(tmp_path):
    image = read_image(save(tmp_path / 'image.jpg', np.full((4, 6), 200 * 256 + 7, np.uint16), format='PNG'))
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8 and (image == 200).all()


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    plain = read_image(save(tmp_path / 'plain.jpg', np.dstack([RAMP] * 3)))
    turned = save(tmp_path / 'turned.jpg', np.dstack([RAMP] * 3), exif=exif)
    assert Image.open(turned).getexif()[0x0112] == 6
    assert np.array_equal(read_image(turned), plain)


# Masks


def test_only_255_is_object(tmp_path):
    values = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
    mask = read_saliency(save(tmp_path / 'mask.png', values))
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_the_first_of_several_channels_counts(tmp_path):
    first, rest = np.array([[255, 0]], np.uint8), np.array([[0, 255]], np.uint8)
    for channels in ([first, rest, rest], [first, rest, rest, rest], [first, rest]):  # RGB, RGBA, LA
        assert read_saliency(save(tmp_path / 'mask.png', np.dstack(channels))).tolist() == [[1, 0]]


def test_palette_and_bilevel_masks(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255] + [7] * 762)  # index 1 is white, index 255 is not
    palette.save(tmp_path / 'palette.png')
    assert Image.open(tmp_path / 'palette.png').mode == 'P'
    assert read_saliency(tmp_path / 'palette.png').tolist() == [[0, 0, 1]]
    bilevel = save(tmp_path / 'bilevel.png', np.array([[0, 255, 0]], np.uint8), '1')
    assert Image.open(bilevel).mode == '1'
    assert read_saliency(bilevel).tolist() == [[0, 1, 0]]


def test_masks_of_16_bit_hold_two_values(tmp_path):
    for largest in (255, 65535):
        path = save(tmp_path / 'mask.png', np.array([[0, largest], [largest, 0]], np.uint16))
        assert read_saliency(path).tolist() == [[0, 1], [1, 0]]
    for values in ([[0, 1]], [[0, 255, 65535]], [[254, 255]]):
        path = save(tmp_path / 'mask.png', np.array(values, np.uint16))
        assert refusal(read_saliency, path).startswith(f'{path}: masks must be 8-bit images')


def test_truncated_masks_and_labels_are_errors(tmp_path):
    path = save(tmp_path / 'mask.png', np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    cut(path, 0.5)
    for read in (read_saliency, read_labels):
        assert refusal(read, path).startswith(f'{path} is not a complete image')


# Labels


def test_palette_and_grayscale_labels_are_indices(tmp_path):
    indices = np.array([[0, 1, 20], [255, 7, 0]], np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    palette.save(tmp_path / 'palette.png')
    for path in (tmp_path / 'palette.png', save(tmp_path / 'gray.png', indices)):
        labels = read_labels(path)
        assert labels.dtype == np.uint8 and np.array_equal(labels, indices)


def test_unknown_colours_are_no_labels(tmp_path):
    for array, mode in ((CORNERS, 'RGB'), (np.dstack([CORNERS, np.full((2, 2), 255, np.uint8)]), 'RGBA')):
        path = save(tmp_path / 'labels.png', array)
        line = refusal(read_labels, path)
        assert line.startswith(f'{path}: labels must be') and '`name #0000ff`' in line and line.endswith(f'mode {mode}')


def test_labels_of_another_size_are_resized_as_opencv_does(data):
    small = np.random.default_rng(2).integers(0, 21, (17, 23), dtype=np.uint8)
    save(data / 'SegmentationClass' / 'a.png', small)
    sample = SegmentationDataset(data, 'val', labels=True)[1]
    rows, columns = (np.arange(target) * source // target for target, source in ((48, 17), (64, 23)))
    assert sample['id'] == 'a' and sample['image'].shape == (48, 64, 3)
    assert np.array_equal(sample['labels'], small[rows][:, columns])


# Data sets


def test_items_follow_the_split_file(data):
    dataset = SegmentationDataset(data, 'val', saliency='model', labels=True)
    assert dataset.ids == ['c', 'a', 'b'] and len(dataset) == 3 and dataset.dropped == 0
    sample = dataset[0]
    assert sorted(sample) == ['id', 'image', 'labels', 'saliency'] and sample['id'] == 'c'
    assert np.array_equal(sample['saliency'], RAMP > 100) and np.array_equal(sample['labels'], RAMP > 100)
    assert np.array_equal(sample['image'], np.dstack([RAMP] * 3))
    assert sorted(SegmentationDataset(data, 'val')[0]) == ['id', 'image']


def test_trainaug_has_a_label_folder_of_its_own(data):
    assert np.array_equal(SegmentationDataset(data, 'trainaug', labels=True)[0]['labels'], (RAMP > 100) * 2)
    shutil.rmtree(data / 'SegmentationClassAug')
    assert refusal(SegmentationDataset, data, 'trainaug', labels=True).startswith(f'{data / "SegmentationClassAug"}: ')
    assert len(SegmentationDataset(data, 'val', labels=True)) == 3


def test_masks_of_another_size_are_errors(data):
    save(data / 'saliency_model' / 'a.png', RAMP[:, :63])
    dataset = SegmentationDataset(data, 'val', saliency='model')
    line = refusal(dataset.__getitem__, 1)
    assert line.startswith(f'{data / "saliency_model" / "a.png"} is 63 x 48, but its image is 64 x 48')
    assert dataset[0]['id'] == 'c'


def test_drop_missing(data):
    (data / 'images' / 'a.jpg').unlink()
    (data / 'saliency_model' / 'c.png').unlink()
    masked = SegmentationDataset(data, 'trainaug', saliency='model', drop_missing=True)
    assert (masked.ids, masked.dropped) == (['b'], 2)
    unmasked = SegmentationDataset(data, 'trainaug', drop_missing=True)
    assert (unmasked.ids, unmasked.dropped) == (['b', 'c'], 1)
    strict = SegmentationDataset(data, 'trainaug', saliency='model')
    assert len(strict) == 3 and strict.dropped == 0
    assert refusal(strict.__getitem__, 1).startswith(f'{data / "images" / "a.jpg"} could not be read')
    assert refusal(strict.__getitem__, 2).startswith(f'{data / "saliency_model" / "c.png"} could not be read')


def test_ids_may_have_a_folder(data):
    for folder, suffix in (('images', 'jpg'), ('saliency_model', 'png')):
        (data / folder / 'deep').mkdir()
        shutil.copy(data / folder / f'a.{suffix}', data / folder / 'deep' / f'one.{suffix}')
    (data / 'sets' / 'trainaug.txt').write_text('deep/one\none\na')
    dataset = SegmentationDataset(data, 'trainaug', saliency='model', drop_missing=True)
    assert (dataset.ids, dataset.dropped) == (['deep/one', 'a'], 1) and dataset[0]['image'].shape == (48, 64, 3)


def test_missing_folders_and_splits(data):
    line = refusal(SegmentationDataset, data, 'val', saliency='other')
    assert line.startswith(f'{data / "saliency_other"}: the folder is missing')
    assert refusal(SegmentationDataset, data, 'test').startswith(f'{data / "sets" / "test.txt"} could not be read')
    (data / 'sets' / 'val.txt').write_text('\n \n')
    assert refusal(SegmentationDataset, data, 'val').startswith(f'{data / "sets" / "val.txt"}: none of its 0 ids')
    (data / 'sets' / 'val.txt').write_text('x\ny\n')
    line = refusal(SegmentationDataset, data, 'val', saliency='model', drop_missing=True)
    assert line.startswith(f'{data / "sets" / "val.txt"}: none of its 2 ids') and str(data / 'saliency_model') in line
    shutil.rmtree(data / 'images')
    assert refusal(SegmentationDataset, data, 'val').startswith(f'{data / "images"}: the folder is missing')


def test_class_names(tmp_path):
    file = tmp_path / 'Mine' / 'classes.txt'
    file.parent.mkdir()
    assert refusal(label_space, file.parent).startswith(f'{file} is missing')
    file.write_text('background\n\n tall tree \nhouse\n')
    assert label_space(file.parent).names == ('background', 'tall tree', 'house')
    for text in ('', 'background', 'background\ntree\ntree', '\n'.join(map(str, range(256)))):
        file.write_text(text)
        assert refusal(label_space, file.parent).startswith(f'{file} must name 2 to 255 different classes')
    file.write_text('\n'.join(map(str, range(255))))
    assert len(label_space(file.parent).names) == 255
    file.write_bytes(b'background\nb\xe4r')
    assert refusal(label_space, file.parent) == f'{file} could not be read (not a text file)'


def test_class_names_of_voc(tmp_path):
    folder = tmp_path / 'VOCSegmentation'
    folder.mkdir()
    assert ' '.join(label_space(folder).names) == (
        'background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person '
        'pottedplant sheep sofa train tvmonitor')
    (folder / 'classes.txt').write_text('background\nthing')
    assert label_space(folder).names == ('background', 'thing') and len(VOC_CLASSES) == 21


def test_unknown_data_set(tmp_path, data):
    assert dataset_folder(tmp_path, 'Mine') == data
    assert refusal(dataset_folder, tmp_path, 'Yours').startswith(f'{tmp_path / "Yours"}: this data set does not exist')
    assert '(nearest: Shapes)' in refusal(dataset_folder, tmp_path, 'Shape') and '(nearest: Mine)' in refusal(
        dataset_folder, tmp_path, 'Mines')
    (tmp_path / 'Yours').touch()
    assert refusal(dataset_folder, tmp_path, 'Yours').startswith(f'{tmp_path / "Yours"}: ')
    assert re.search(r'\bdb_root\b', refusal(dataset_folder, tmp_path / 'absent', 'Mine'))


@pytest.mark.slow
def test_shapes_are_drawn_when_missing(tmp_path):
    folder = dataset_folder(tmp_path / 'new', 'Shapes')
    assert folder == tmp_path / 'new' / 'Shapes' and label_space(folder).names == CLASSES
    dataset = SegmentationDataset(folder, 'trainaug', saliency='supervised_model', labels=True, drop_missing=True)
    assert (len(dataset), dataset.dropped) == (240, 0) and sorted(dataset[0]) == ['id', 'image', 'labels', 'saliency']
    (folder / 'kept').touch()
    assert dataset_folder(tmp_path / 'new', 'Shapes') == folder and (folder / 'kept').exists()
