"""convert_voc.py: what it makes of folders and archives, and its checks of each file."""
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.devkits import (
    ONLY_IN_SBD,
    SBD,
    SPLITS,
    TRAIN,
    TRAINAUG,
    VAL,
    VOC,
    arguments,
    contents,
    pack,
    save_mat,
    sbd_labels,
    without_record,
)
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

import convert_voc
from data.dataset import SegmentationDataset
from data.decoding import read_labels
from data.label_space import VOC_CLASSES


@pytest.mark.parametrize('split', ['trainaug', 'train', 'val'])
def test_every_split_loads(converted, split):
    dataset = SegmentationDataset(converted, split, labels=True)
    assert dataset.ids == SPLITS[split]
    for sample in dataset:
        assert sample['labels'].shape == sample['image'].shape[:2]
        assert {*np.unique(sample['labels'])} <= {*range(9), 255}


def test_labels_are_those_of_their_sources(originals, converted):
    voc = originals / 'VOCdevkit' / 'VOC2012' / 'SegmentationClass'
    for image_id in [*TRAIN, *VAL]:
        labels = read_labels(converted / 'SegmentationClass' / f'{image_id}.png')
        assert np.array_equal(labels, read_labels(voc / f'{image_id}.png'))
    for image_id in TRAINAUG:
        labels = read_labels(converted / 'SegmentationClassAug' / f'{image_id}.png')
        if image_id in TRAIN:  # VOC's even where SBD has some, with their void
            assert np.array_equal(labels, read_labels(voc / f'{image_id}.png')) and 255 in labels
        else:
            assert np.array_equal(labels, sbd_labels(originals, image_id)) and 255 not in labels


def test_files(originals, converted):
    images = {path.stem: path.read_bytes() for path in (converted / 'images').iterdir()}
    assert images.keys() == {*TRAINAUG, *VAL}
    for image_id, data in images.items():
        name = f'{image_id}.jpg'
        source = originals / ('benchmark_RELEASE/dataset/img' if image_id == ONLY_IN_SBD else 'VOCdevkit/VOC2012/JPEGImages')
        assert data == (source / name).read_bytes()
    labels = {path.stem for path in (converted / 'SegmentationClass').iterdir()}
    assert labels == {*TRAIN, *VAL}
    assert {path.stem for path in (converted / 'SegmentationClassAug').iterdir()} == {*TRAINAUG}
    assert all(Image.open(path).mode == 'P' for path in converted.glob('SegmentationClass*/*.png'))
    assert tuple((converted / 'classes.txt').read_text().split()) == VOC_CLASSES
    assert {path.name for path in converted.parent.iterdir()} == {'VOCSegmentation'}


def test_record(originals, converted):
    assert json.loads((converted / 'conversion.json').read_text()) == {
        'counts': {'trainaug': 6, 'train': 3, 'val': 2, 'images': 8, 'images_from_sbd': 1, 'labels_from_voc': 5,
                   'labels_from_sbd': 3},
        'warnings': ['trainaug has 6 images, the official split 10,582', 'train has 3 images, the official split 1,464',
                     'val has 2 images, the official split 1,449'],
        'sources': {'voc': str(originals / 'VOCdevkit'), 'sbd': str(originals / 'benchmark_RELEASE')}}


def test_archives_give_the_same_as_folders(originals, converted, tmp_path, capsys):
    voc, sbd = pack(originals, tmp_path)
    out = tmp_path / 'db' / 'VOCSegmentation'
    convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)])
    assert without_record(out) == without_record(converted)
    assert [path.name for path in out.parent.iterdir()] == ['VOCSegmentation']
    printed = capsys.readouterr().out
    assert 'train has 3 images, the official split 1,464' in printed
    assert f'{out}: 8 images (trainaug 6, train 3, val 2), labels of 5 from VOC and of 3 from SBD' in printed
    assert f'python generate_masks.py --images {out}/images --out {out} --model NAME' in printed


@pytest.mark.parametrize(('voc', 'sbd'), [('', ''), ('VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset')])
def test_every_level_of_the_folders_will_do(originals, converted, tmp_path, monkeypatch, voc, sbd):
    monkeypatch.chdir(tmp_path)  # a bare name is a path, too
    convert_voc.main(arguments(originals, 'VOCSegmentation', voc, sbd))
    assert without_record(tmp_path / 'VOCSegmentation') == without_record(converted)


def test_what_is_there_is_not_touched(originals, tmp_path, user_error):
    out = tmp_path / 'VOCSegmentation'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    line = user_error(lambda: convert_voc.main(arguments(originals, out)))
    assert f'{out} exists already' in line
    assert contents(tmp_path) == {'VOCSegmentation/mine.txt': b'mine'}


LISTS = f'{VOC}/ImageSets/Segmentation'


def put_mat(change):
    """Replace the labels of a .mat file by what `change` makes of them."""
    def put(path):
        save_mat(path, change(sbd_labels(path.parents[3], path.stem)))
    return put


def one_pixel(value):
    def change(labels):
        labels = labels.astype(np.int16)
        labels[3, 5] = value
        return labels
    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def repeat(path):
    path.write_text(path.read_text() + path.read_text().split()[0] + '\n')


def put_png(change):
    """The same for a PNG of labels."""
    return lambda path: Image.fromarray(change(read_labels(path)).astype(np.uint8)).save(path)


def remove_image(path):
    path.unlink()
    (path.parents[3] / SBD / 'img' / path.name).unlink()


CHECKS = {
    'no image': (f'{VOC}/JPEGImages/val_0001.jpg', remove_image, 'is missing'),
    'cut image': (f'{VOC}/JPEGImages/train_0002.jpg', cut, 'not a complete image'),
    'no VOC labels': (f'{VOC}/SegmentationClass/train_0001.png', lambda path: path.unlink(), 'is missing'),
    'cut VOC labels': (f'{VOC}/SegmentationClass/train_0001.png', cut, 'not a complete image'),
    'colours': (f'{VOC}/SegmentationClass/val_0000.png', lambda path: Image.new('RGB', (9, 9), (1, 2, 3)).save(path),
                'is none of'),
    'VOC label 21': (f'{VOC}/SegmentationClass/val_0000.png', put_png(one_pixel(21)), 'the label 21'),
    'no SBD labels': (f'{SBD}/cls/train_0004.mat', lambda path: path.unlink(), 'is missing'),
    'cut .mat': (f'{SBD}/cls/train_0004.mat', cut, 'not a complete .mat file'),
    'empty .mat': (f'{SBD}/cls/train_0004.mat', lambda path: path.write_bytes(b''), 'not a complete .mat file'),
    'no GTcls': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTinst': 1}), "KeyError: 'GTcls'"),
    'GTcls is a number': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTcls': 1}), 'GTcls.Segmentation'),
    'no Segmentation': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTcls': {'a': 1}}), 'GTcls.Segmentation'),
    'floats': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: labels / 1), 'not 2-d float64'),
    '3-d': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: np.stack([labels] * 2, axis=2)), 'not 3-d uint8'),
    'sparse': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: csc_matrix(labels, dtype=float)), 'must be a 2-d array'),
    'SBD label -1': (f'{SBD}/cls/train_0004.mat', put_mat(one_pixel(-1)), 'the label -1'),
    'SBD label 276': (f'{SBD}/cls/train_0004.mat', put_mat(one_pixel(276)), 'the label 276'),  # 20 modulo 256
    'id twice': (f'{LISTS}/val.txt', repeat, 'lists val_0000 twice'),
    'id twice in SBD': (f'{SBD}/train.txt', repeat, 'lists train_0004 twice'),
    'empty list': (f'{SBD}/val.txt', lambda path: path.write_text('\n'), 'lists no image'),
    'bytes for a list': (f'{SBD}/val.txt', lambda path: path.write_bytes(b'\xff\xfe'), 'not a text file'),
    'id that leads outside': (f'{SBD}/val.txt', lambda path: path.write_text('../../evil\n'), "'../../evil' is not the id"),
}


@pytest.mark.parametrize(('name', 'damage', 'words'), CHECKS.values(), ids=CHECKS.keys())
def test_each_check_names_the_file(broken, tmp_path, user_error, name, damage, words):
    damage(broken / name)
    line = user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'db' / 'out')))
    assert f'{broken / name}' in line and words in line
    assert list((tmp_path / 'db').iterdir()) == []


@pytest.mark.parametrize(('name', 'damage'), [
    ('SegmentationClass/val_0000.png', put_png(lambda labels: labels[:7, :9])),
    ('cls/train_0004.mat', put_mat(lambda labels: labels[:7, :9]))], ids=['VOC', 'SBD'])
def test_labels_of_another_size_are_kept(broken, tmp_path, capsys, name, damage):
    """They are resized when they are read."""
    damage(broken / (VOC if 'png' in name else SBD) / name)
    convert_voc.main(arguments(broken, tmp_path / 'out'))
    words = f'{Path(name).name} does not have the size of its image'
    assert words in capsys.readouterr().out
    assert any(words in line for line in json.loads((tmp_path / 'out' / 'conversion.json').read_text())['warnings'])
    dataset = SegmentationDataset(tmp_path / 'out', 'val' if 'png' in name else 'trainaug', labels=True)
    sample = dataset[dataset.ids.index(Path(name).stem)]
    assert sample['labels'].shape == sample['image'].shape[:2]


def test_train_and_val_share_an_image(broken, tmp_path, user_error):
    with open(broken / LISTS / 'train.txt', 'a') as file:
        file.write('val_0001\n')
    line = user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'out')))
    assert f'{broken / LISTS}: train.txt and val.txt both list val_0001' in line


def test_the_first_broken_file_is_named(broken, tmp_path, user_error):
    for image_id in ('val_0001', 'train_0002', 'train_0004'):
        cut(broken / VOC / 'JPEGImages' / f'{image_id}.jpg')
    assert 'train_0002.jpg' in user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'out')))


def test_a_broken_file_of_an_archive_is_named_by_the_archive(broken, tmp_path, user_error):
    cut(broken / VOC / 'JPEGImages' / 'train_0002.jpg')
    voc, sbd = pack(broken, tmp_path)
    line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(tmp_path / 'db' / 'out')]))
    assert f'error: {voc}: {VOC}/JPEGImages/train_0002.jpg is not a complete image' in line
    assert list((tmp_path / 'db').iterdir()) == []


def test_255_and_20_are_labels(broken, tmp_path):
    path = broken / SBD / 'cls' / 'train_0004.mat'
    labels = one_pixel(255)(sbd_labels(broken, 'train_0004'))
    labels[0, 0] = 20
    save_mat(path, labels)
    convert_voc.main(arguments(broken, tmp_path / 'out'))
    assert np.array_equal(read_labels(tmp_path / 'out' / 'SegmentationClassAug' / 'train_0004.png'), labels)
