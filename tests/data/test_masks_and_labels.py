"""Masks and labels as people store them: what is read, what is said of it, and what is asked about."""
import numpy as np
import pytest
from helpers.checks import refusal
from helpers.experiments import KMEANS
from helpers.files import save
from helpers.mini import NAMES, SHAPE, assert_right, each, labels_of, masked, report_of
from PIL import Image
from test_decoding_photographs import write_png

from data.contents import Contents, report
from data.dataset import SegmentationDataset
from data.decoding import read_labels
from data.files import empty_masks
from data.label_colours import VOC_TABLE
from data.label_space import colour_table, label_space
from data.palette import VOC_COLOURS, save_labels
from utils.errors import UserError


@pytest.fixture
def folder(mini):
    return mini


# Masks


@pytest.mark.parametrize('change, largest', [(lambda mask: mask // 255, 1), (lambda mask: mask // 255 * 128, 128),
                                             (lambda mask: mask * 0, 0)])
def test_masks_without_any_object(folder, problems, change, largest):
    each(folder, 'saliency_supervised_model', lambda mask, path: save(path, change(mask)))
    line = refusal(report_of, masked(folder))
    assert line.startswith(f'{folder / "saliency_supervised_model"}: no mask of trainaug has any object: the largest value in '
                           f'these masks is {largest}; object pixels must be 255')
    code, lines = problems(KMEANS)
    assert code == 2 and any(f'the largest value in these masks is {largest}' in line for line in lines)
    if largest:
        assert f'`object: {largest}`' in line
        (folder / 'dataset.yml').write_text(f'object: {largest}\n')
        assert_right(folder)
        assert problems(KMEANS)[0] == 0


def test_palette_masks_say_which_index(folder):
    def change(mask, path):
        image = Image.fromarray(mask // 255 * 3)
        image.putpalette([0, 0, 0, 9, 9, 9, 1, 1, 1, 250, 250, 250])
        image.save(path)
    each(folder, 'saliency_supervised_model', change)
    assert 'index 3 is not 255, though its colour is #fafafa' in refusal(report_of, masked(folder))


@pytest.mark.parametrize('said, wanted', [('[7, 9]', '7 or 9, as dataset.yml says'), ('nonzero', 'other than 0')])
def test_masks_without_the_objects_that_the_data_set_says(folder, said, wanted):
    (folder / 'dataset.yml').write_text(f'object: {said}\n')
    each(folder, 'saliency_supervised_model', lambda mask, path: save(path, mask * 0))
    assert refusal(report_of, masked(folder)).endswith(f'in these masks is 0; object pixels must be {wanted}')


def test_palette_masks_of_255_are_not_blamed_on_their_palette(folder):
    def change(mask, path):
        image = Image.fromarray(mask)
        image.putpalette(bytes(range(256)) * 3)
        image.save(path)
    each(folder, 'saliency_supervised_model', change)
    assert empty_masks(folder / 'saliency_supervised_model', NAMES) == (
        'the largest value in these masks is 255; object pixels must be 255')


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.jpeg'])
def test_masks_as_jpeg_are_thresholded_and_said(folder, problems, caplog, suffix):
    def change(mask, path):
        path.unlink()
        save(path.with_suffix(suffix), mask, format='JPEG', quality=60)
    each(folder, 'saliency_supervised_model', change)
    dataset = masked(folder, drop_missing=True, cache=folder.parent / 'cache')
    assert len(dataset) == 6
    for _ in range(2):  # from the files, and from the cache
        for index in range(6):
            inside = dataset[index]['saliency']
            assert set(np.unique(inside)) == {0, 1} and np.mean(inside == (labels_of(index) > 0)) > 0.97
        report_of(dataset)
        assert '6 masks are JPEGs, which are not lossless: values of 128 or more count as object' in caplog.text
        caplog.clear()
    code, lines = problems(KMEANS)
    assert code == 0 and 'JPEG mask: 6' in lines[-1]


def test_some_empty_masks_are_counted(folder, caplog):
    for name in NAMES[:2]:
        save(folder / 'saliency_supervised_model' / f'{name}.png', np.zeros(SHAPE, np.uint8))
    caplog.set_level('INFO')
    report_of(masked(folder))
    assert '6 images, 6 masks (2 empty), labels 0, 1, 2, 3; 0% of the pixels void' in caplog.text
    with pytest.raises(UserError, match='the network predicts no object in any'):
        seen = Contents({'a'}, {'a'}, {'a'})
        report(seen, masked(folder), 'val', predicted=True)


@pytest.mark.parametrize('said, words', [('255', '255'), ('[7, 9]', '7 or 9')])
def test_other_values_in_masks_are_told_from_those_that_the_data_set_says(folder, problems, caplog, said, words):
    (folder / 'dataset.yml').write_text(f'object: {said}\n')
    each(folder, 'saliency_supervised_model', lambda mask, path: save(path, (mask > 0) * np.uint8(9 if '9' in said else 255)))
    path = folder / 'saliency_supervised_model' / f'{NAMES[0]}.png'
    mask = np.array(Image.open(path))
    mask[0, 0] = 3
    save(path, mask)
    report_of(masked(folder))
    assert f'hold values other than 0 (background) and {words} (object), which count as background' in caplog.text
    assert any(f'are neither 0 nor {words}, and only {words} counts as object' in line for line in problems(KMEANS)[1])


def test_numbers_of_objects_are_masks_where_it_is_said(folder):
    each(folder, 'saliency_supervised_model',
         lambda mask, path: save(path, (mask // 255 * np.arange(1, 33)).astype(np.uint16) * 20))
    assert '`object: nonzero` in dataset.yml' in refusal(masked(folder).__getitem__, 0)
    (folder / 'dataset.yml').write_text('object: nonzero\n')
    assert_right(folder)
    (folder / 'dataset.yml').write_text('object: some\n')
    assert 'object must be nonzero' in refusal(masked(folder).__getitem__, 0)


# Labels


OTHERS = np.array([[0, 0, 0], [250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)


@pytest.mark.parametrize('lines', [
    'background #000000\nround #fa0a0a\nsquare #0AFA0A\nbox #0a0afa\nvoid #ffffff\n',
    'background 0 0 0\nround 250 10 10\nsquare 10 250 10\nbox 10 10 250\n',
    'background, 0, 0, 0\nround: (250, 10, 10)\nsquare\t10 250 10\nbox [10, 10, 250]\n',
    '0 0 0 background\n250 10 10 round\n10 250 10 square\n10 10 250\tbox\n'])
def test_labels_in_colours_of_classes_txt(folder, problems, lines):
    each(folder, 'SegmentationClassAug', lambda labels, path: save(path, OTHERS[labels]))
    assert '#' in refusal(masked(folder).__getitem__, 0)
    (folder / 'classes.txt').write_text(lines)
    assert label_space(folder).names == ('background', 'round', 'square', 'box')
    assert label_space(folder).colours[1].tolist() == [250, 10, 10]
    assert_right(folder)
    if 'void' in lines:
        assert colour_table(folder).values[255, 255, 255] == 255
    assert problems(KMEANS)[0] == 0


def test_labels_in_colours_of_pascal_voc(folder):
    each(folder, 'SegmentationClassAug', lambda labels, path: save(path, VOC_COLOURS[labels]))
    assert_right(folder)
    labels = labels_of(0)
    labels[0, 0] = 255
    save(folder / 'SegmentationClassAug' / 'a_1.png', np.dstack([VOC_COLOURS[labels], np.full(SHAPE, 255, np.uint8)]))  # RGBA
    assert np.array_equal(masked(folder)[0]['labels'], labels)
    save(folder / 'SegmentationClassAug' / 'a_1.png', VOC_COLOURS[np.where(labels == 0, 5, labels)])  # no such class
    assert '#800080 is none of' in refusal(masked(folder).__getitem__, 0)


def test_labels_in_colours_of_dataset_yml(folder):
    each(folder, 'SegmentationClassAug', lambda labels, path: save(path, OTHERS[labels]))
    (folder / 'dataset.yml').write_text('reduce_zero_label: True\nclasses: [background, round, square, box]\n'
                                        'colours: {background: '
                                        '[0, 0, 0], round: [250, 10, 10], square: [10, 250, 10], box: [10, 10, 250]}\n')
    assert_right(folder)


def test_gray_saved_as_rgb_is_asked_about(folder):
    each(folder, 'SegmentationClassAug', lambda labels, path: save(path, np.dstack([labels] * 3)))
    assert 'set `labels: indices` in dataset.yml' in refusal(masked(folder).__getitem__, 0)
    (folder / 'dataset.yml').write_text('labels: indices\n')
    assert_right(folder)


def test_palettes_in_another_order_are_asked_about(folder):
    order = np.array([0, 3, 1, 2])

    def change(labels, path):
        image = Image.fromarray(np.argsort(order)[labels].astype(np.uint8))
        image.putpalette(VOC_COLOURS[order].tobytes())
        image.save(path)
    each(folder, 'SegmentationClassAug', change)
    assert 'choose one in dataset.yml' in refusal(masked(folder).__getitem__, 0)
    (folder / 'dataset.yml').write_text('labels: colours\n')
    assert_right(folder)
    (folder / 'dataset.yml').write_text('labels: indices\n')
    assert masked(folder)[0]['labels'].max() == 2


def test_palettes_of_other_data_sets_are_indices(folder):
    colours = np.random.default_rng(0).integers(1, 255, (256, 3), dtype=np.uint8)  # for example COCO's
    for table in (colours, VOC_COLOURS, VOC_COLOURS * 0):
        each(folder, 'SegmentationClassAug', lambda labels, path, table=table: save_labels(path, labels, table))
        assert_right(folder)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_labels_of_few_bits(tmp_path, bits):
    values = np.arange(2 ** bits, dtype=np.uint8)[None].repeat(2, 0)
    image = Image.fromarray(values)
    image.putpalette(bytes(range(48)))
    image.save(tmp_path / 'palette.png', bits=bits)
    rows = [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).ravel()).tobytes() for row in values]
    write_png(tmp_path / 'gray.png', values.shape[::-1], bits, 0, rows)
    for name in ('palette.png', 'gray.png'):
        assert np.array_equal(read_labels(tmp_path / name), values)


def test_labels_of_16_bits(folder):
    each(folder, 'SegmentationClassAug', lambda labels, path: save(path, labels.astype(np.uint16)))
    assert_right(folder)
    path = save(folder / 'x.png', np.array([[3, 65535, 255]], np.uint16))
    assert read_labels(path).tolist() == [[3, 255, 255]]
    assert 'label 1000 in its labels' in refusal(read_labels, save(path, np.array([[0, 1000, 2000]], np.uint16)))
    assert 'without loss' in refusal(read_labels, save(path, labels_of(1), format='JPEG'))
    transparent = np.dstack([VOC_COLOURS[labels_of(1)], labels_of(1)])
    assert 'transparent' in refusal(read_labels, save(path, transparent))


def test_labels_of_nothing_but_void(folder, problems):
    each(folder, 'SegmentationClass', lambda labels, path: save(path, labels * 0 + 255))
    assert 'no labelled pixel in val' in refusal(report_of, SegmentationDataset(folder, 'val', labels=True))
    code, lines = problems(KMEANS)
    assert code == 2 and 'no labelled pixel: 1' in lines[-1]


def test_classes_that_never_occur(folder, problems, caplog):
    each(folder, 'SegmentationClass', lambda labels, path: save(path, np.where(labels > 1, 255, labels).astype(np.uint8)))
    report_of(SegmentationDataset(folder, 'val', labels=True))
    assert f'{folder / "SegmentationClass"}: no pixel in the labels of val has the class square, box' in caplog.text
    code, lines = problems(KMEANS)
    assert code == 0 and [line.rpartition(' ')[2] for line in lines[:-1]] == ['square', 'box']


def test_the_table_of_pascal_voc():
    assert len(VOC_TABLE.values) == 22 and VOC_TABLE.values[224, 224, 192] == 255 and VOC_TABLE.values[0, 64, 128] == 20
