"""The synthetic data set: its layout, its repeatability, and what its images, labels and masks promise."""
import os

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from data.synthetic_shapes import CLASSES, draw_image, draw_shapes
from utils.errors import UserError

TRAIN, VAL = 240, 16


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('db') / 'Shapes'
    draw_shapes(folder, seed=0, train=TRAIN, val=VAL)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def read(folder, name, ids, extension='png'):
    return [np.array(Image.open(folder / name / f'{image_id}.{extension}')) for image_id in ids]


def names(folder, extension):
    assert all(path.suffix == f'.{extension}' for path in folder.iterdir())
    return sorted(path.stem for path in folder.iterdir())


def ids_of(folder, split):
    return (folder / 'sets' / f'{split}.txt').read_text().splitlines()


def main_class(labels):
    return np.bincount(labels[(labels > 0) & (labels < 255)]).argmax()


def iou(mask, labels):
    mask, truth = mask[labels < 255] > 0, labels[labels < 255] > 0
    return (mask & truth).sum() / (mask | truth).sum()


def test_layout_and_splits(shapes):
    trainaug, train, val = (ids_of(shapes, split) for split in ('trainaug', 'train', 'val'))
    assert trainaug == [f'train_{i:04d}' for i in range(TRAIN)]
    assert train == trainaug[:TRAIN // 2]
    assert val == [f'val_{i:04d}' for i in range(VAL)]
    assert names(shapes / 'images', 'jpg') == trainaug + val
    assert names(shapes / 'SegmentationClass', 'png') == train + val
    assert names(shapes / 'SegmentationClassAug', 'png') == trainaug
    assert names(shapes / 'saliency_supervised_model', 'png') == trainaug + val
    assert names(shapes / 'saliency_unsupervised_model', 'png') == trainaug + val
    assert (shapes / 'classes.txt').read_text().splitlines() == list(CLASSES)
    assert CLASSES[0] == 'background' and len(set(CLASSES)) == 9
    assert [path.name for path in shapes.parent.iterdir()] == ['Shapes']


def test_files_of_one_image_have_one_size(shapes):
    sizes = set()
    for image_id in ids_of(shapes, 'train')[:40]:
        image = Image.open(shapes / 'images' / f'{image_id}.jpg')
        assert image.mode == 'RGB'
        for name in ('SegmentationClass', 'SegmentationClassAug', 'saliency_supervised_model',
                     'saliency_unsupervised_model'):
            assert Image.open(shapes / name / f'{image_id}.png').size == image.size
        sizes.add(image.size)
    assert len(sizes) > 30
    assert min(map(min, sizes)) >= 108 and max(map(max, sizes)) <= 148  # 128 -+ 15%


def test_labels_are_palette_indices(shapes):
    path = shapes / 'SegmentationClass' / 'val_0000.png'
    image = Image.open(path)
    assert image.mode == 'P'
    # VOC's palette: 1 is (128, 0, 0), 8 is (64, 0, 0), 255 is (224, 224, 192).
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert palette[[0, 1, 8, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [64, 0, 0], [224, 224, 192]]
    assert np.array_equal(np.array(image), draw_image(0, 1, 0)[1])


def test_label_values_and_balance(shapes):
    all_labels = read(shapes, 'SegmentationClassAug', ids_of(shapes, 'trainaug'))
    valid = {*range(len(CLASSES)), 255}
    assert all(set(np.unique(labels)) <= valid for labels in all_labels)
    shares = np.array([(labels > 0).mean() for labels in all_labels])
    assert shares.min() > 0.08 and shares.max() < 0.42
    assert all(0.005 < (labels == 255).mean() < 0.12 for labels in all_labels)
    seen = np.zeros((len(all_labels), 256), bool)
    for row, labels in zip(seen, all_labels, strict=True):
        row[np.unique(labels)] = True
    # 240 images give each of 8 classes 30 turns; about 24 more images have it as their second object's class.
    assert seen[:, 1:9].sum(0).min() >= 30
    assert seen[:, 1:9].sum(0).max() <= 45
    assert all(seen[start:start + 8, 1:9].any(0).all() for start in range(0, TRAIN, 8))
    two_classes = (seen[:, 1:9].sum(1) == 2).mean()
    assert 0.04 < two_classes < 0.18


def test_void_is_a_thin_band_on_the_edge(shapes):
    total = thick = far = 0
    for labels in read(shapes, 'SegmentationClassAug', ids_of(shapes, 'trainaug')):
        void = (labels == 255).astype(np.uint8)
        inside = ((labels > 0) & (labels < 255)).astype(np.uint8)
        assert not ((cv2.dilate(inside, np.ones((3, 3))) > 0) & (labels == 0)).any()  # object never meets background
        total += void.sum()
        thick += cv2.erode(void, np.ones((3, 3))).sum()
        far += (void > cv2.dilate(inside, np.ones((5, 5)))).sum()
    # But for sharp tips, no block of 3 x 3 is void and all void lies within two pixels of an object.
    assert thick < 0.01 * total and far < 0.01 * total


@pytest.mark.parametrize('kind, low, high', [('supervised', 0.88, 0.93), ('unsupervised', 0.70, 0.80)])
def test_masks_are_imperfect_to_the_right_degree(shapes, kind, low, high):
    ids = ids_of(shapes, 'trainaug')
    masks = read(shapes, f'saliency_{kind}_model', ids)
    all_labels = read(shapes, 'SegmentationClassAug', ids)
    for mask in masks:
        assert mask.dtype == np.uint8 and mask.ndim == 2
        assert set(np.unique(mask)) == {0, 255}
        assert 0.03 < np.mean(mask > 0) < 0.6
    ious = [iou(mask, labels) for mask, labels in zip(masks, all_labels, strict=True)]
    assert low < np.mean(ious) < high
    assert np.std(ious) > 0.02  # some better, some worse, as a detector's are


def test_repeatable_from_the_seed(tmp_path):
    for name, seed in (('one', 3), ('same', 3), ('other', 4)):
        draw_shapes(tmp_path / name, seed=seed, train=4, val=2, size=64)
    one, same, other = (contents(tmp_path / name) for name in ('one', 'same', 'other'))
    assert one == same
    assert one.keys() == other.keys()
    assert not any(one[name] == other[name] for name in one if not name.endswith('.txt'))


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    draw_shapes(tmp_path / 'few', train=4, val=1, size=64)
    draw_shapes(tmp_path / 'many', train=9, val=3, size=64)
    few, many = contents(tmp_path / 'few'), contents(tmp_path / 'many')
    assert len(few) > 20
    assert all(many[name] == data for name, data in few.items() if not name.startswith('sets'))


def test_splits_differ():
    assert not np.array_equal(draw_image(0, 0, 0)[0], draw_image(0, 1, 0)[0])


def colour_features(image, labels):
    return image[(labels > 0) & (labels < 255)].mean(0)


def texture_features(image, labels):
    """Histogram of local binary patterns of the luminance inside the object, at distances 2 and 4."""
    gray = image @ (0.299, 0.587, 0.114)
    inside = ((labels > 0) & (labels < 255))[4:-4, 4:-4]
    histograms = []
    for step in (2, 4):
        codes = np.zeros(inside.shape, int)
        for bit, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]):
            shifted = gray[4 + dy * step:, 4 + dx * step:][:inside.shape[0], :inside.shape[1]]
            codes |= (np.abs(shifted - gray[4:-4, 4:-4]) > 40).astype(int) << bit
        histograms.append(np.bincount(codes[inside], minlength=256) / inside.sum())
    return np.sqrt(np.concatenate(histograms))


def cross_validated_accuracy(shapes, features):
    ids = ids_of(shapes, 'trainaug')
    images, all_labels = read(shapes, 'images', ids, 'jpg'), read(shapes, 'SegmentationClassAug', ids)
    rows = np.array([features(image, labels) for image, labels in zip(images, all_labels, strict=True)])
    rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-6)
    targets = [main_class(labels) for labels in all_labels]
    return cross_val_score(LogisticRegression(C=0.1, max_iter=500), rows, targets, cv=5).mean()


def test_colour_does_not_tell_the_class(shapes):
    assert cross_validated_accuracy(shapes, colour_features) < 0.25  # chance is 0.125


def test_texture_tells_the_class(shapes):
    assert cross_validated_accuracy(shapes, texture_features) > 0.8


def test_existing_folder_is_left_alone(tmp_path):
    folder = tmp_path / 'Shapes'
    folder.mkdir()
    with pytest.raises(UserError, match=r'Shapes exists already'):
        draw_shapes(folder, train=1, val=0, size=64)
    assert os.listdir(tmp_path) == ['Shapes'] and os.listdir(folder) == []


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / 'db').write_text('not a folder')
    with pytest.raises(UserError, match='db'):
        draw_shapes(tmp_path / 'db' / 'Shapes', train=1, val=0, size=64)
    assert (tmp_path / 'db').read_text() == 'not a folder'


def test_nothing_is_left_of_a_drawing_that_breaks_off(tmp_path, monkeypatch):
    def full_disk(self, path, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', full_disk)
    with pytest.raises(UserError, match='No space left'):
        draw_shapes(tmp_path / 'Shapes', train=1, val=0, size=64)
    assert os.listdir(tmp_path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match='size is 47'):
        draw_shapes(tmp_path / 'Shapes', size=47)
    with pytest.raises(ValueError):
        draw_shapes(tmp_path / 'Shapes', seed=-1, train=1, val=0)
    assert os.listdir(tmp_path) == []


def test_other_sizes():
    for size in (48, 224):
        image, labels, masks = draw_image(0, 0, 0, size)
        assert image.dtype == np.uint8 and image.shape == (*labels.shape, 3)
        assert all(0.85 * size - 1 <= side <= 1.15 * size + 1 for side in labels.shape)
        assert all(mask.shape == labels.shape and (mask > 0).mean() > 0.03 for mask in masks.values())
