"""`python -m data.check`: every kind of damage in a real data set is found and named; a whole one passes."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.experiments import KMEANS, PRETRAINING, RESNET
from helpers.experiments import LINEAR as WITHOUT_WEIGHTS
from helpers.files import cut
from PIL import Image

from data.check import main

ROOT = Path(__file__).resolve().parents[2]
LINEAR = {**WITHOUT_WEIGHTS, 'pretraining': None}
RETRIEVAL = {**KMEANS, 'train_db_name': 'Shapes', 'retrieval_kwargs': {'saliency': 'unsupervised_model'}}
EVAL = {key: LINEAR[key] for key in ('val_db_name', 'val_db_kwargs', 'num_workers', 'backbone', 'head')}
MASKS = 'saliency_supervised_model'


@pytest.fixture
def root(shapes_root, tmp_path):
    """A copy of `Shapes` to damage; its db_root."""
    folder = shutil.copytree(shapes_root / 'Shapes', tmp_path / 'datasets' / 'Shapes')
    for path in folder.glob('SegmentationClass*/*.png'):  # every class in every image, so that no split lacks one
        labels = values(path)
        labels[0, :9] = range(9)
        save(path, labels)
    return tmp_path / 'datasets'


@pytest.fixture
def folder(root):
    return root / 'Shapes'


@pytest.fixture
def check(experiment, root, tmp_path, capsys):
    """check(base, changes) runs main and returns exit code, lines of stdout without the last, the last, and the JSON list."""
    def run(base, changes=None):
        arguments = experiment(changes, db_root=root, base=base)[:4]
        capsys.readouterr()
        code = 0
        try:
            main([*arguments, '--json', str(tmp_path / 'list.json')])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert printed.err == ''
        *lines, last = printed.out.splitlines()
        found = json.loads((tmp_path / 'list.json').read_text())
        assert lines == [('note: ' if item['note'] else '') + item['line'] for item in found]
        assert all(item['line'].startswith(item['file']) for item in found)
        assert code == (2 if any(not item['note'] for item in found) else 0)
        return code, lines, last, found
    return run


def values(path):
    with Image.open(path) as image:
        return np.array(image)


def save(path, array):
    Image.fromarray(array).save(path)


def name(index, split='train'):
    return f'{split}_{index:04d}'


@pytest.mark.parametrize('base, read', [
    (PRETRAINING, 'read for main.py: 12 ids of trainaug'),
    (LINEAR, 'read for linear_finetune.py: 12 ids of trainaug, 6 ids of val'),
    (EVAL, 'read for eval.py: 6 ids of val'),
    (KMEANS, 'read for kmeans.py: 6 ids of val'),
    (RETRIEVAL, 'read for retrieval.py: 6 ids of train, 6 ids of val')], ids=['main', 'linear', 'eval', 'kmeans', 'retrieval'])
def test_a_whole_data_set_passes(check, base, read):
    assert check(base) == (0, [], f'Problems: 0; notes: 0; {read}', [])


def damage_training(folder):
    """Damage the files that pre-training reads; returns what the lines must be, as (file, words), in order."""
    masks, images, split = folder / MASKS, folder / 'images', folder / 'sets' / 'trainaug.txt'
    expected = []

    def expect(path, *words):
        expected.append((path, *words))
        return path

    split.write_text(split.read_text() + f'{name(0)}\n')
    expect(split, f'{name(0)} is listed 2 times')
    expect(images / f'{name(1)}.jpg', 'is missing', f'take {name(1)} out of {split}').unlink()
    cut(expect(images / f'{name(2)}.jpg', 'is not a complete image', 'replace or remove it'), 0.5)
    expect(images / f'{name(3)}.jpg', 'is not a complete image (of unknown format)').write_text('text')
    expect(masks / f'{name(4)}.png', 'is missing').unlink()
    cut(expect(masks / f'{name(5)}.png', 'is not a complete image'), 0.5)
    mask = values(masks / f'{name(6)}.png')
    save(expect(masks / f'{name(6)}.png', f'is {mask.shape[1] - 1} x {mask.shape[0]}, but its image is {mask.shape[1]} x '
                f'{mask.shape[0]}: make the mask again at the size of the image'), mask[:, 1:])
    numbers = np.arange(mask.size, dtype=np.uint16).reshape(mask.shape)
    save(expect(masks / f'{name(7)}.png', 'masks must be 8-bit images', 'I;16', '`object: nonzero`'), numbers)
    lossy = values(masks / f'{name(8)}.png')
    lossy[:2] = 254
    share = f'{100 * 2 / len(lossy):.3g}% of the pixels are neither 0 nor 255, and only 255 counts as object'
    save(expect(masks / f'{name(8)}.png', share, 'store masks as PNG'), lossy)
    save(expect(masks / f'{name(9)}.png', 'no pixel is 255'), values(masks / f'{name(9)}.png') * 0)
    save(expect(masks / f'{name(10)}.png', 'every pixel is 255'), values(masks / f'{name(10)}.png') * 0 + 255)
    ones = (values(masks / f'{name(11)}.png') == 255).astype(np.uint8)  # the common mistake: 1 = object
    save(expect(masks / f'{name(11)}.png', f'{100 * ones.mean():.3g}% of the pixels are neither'), ones)
    expect(masks / f'{name(11)}.png', 'no pixel is 255')
    return expected


def assert_lines(found, expected):
    assert len(found) == len(expected), [item['line'] for item in found]
    for item, (path, *words) in zip(found, expected, strict=True):
        assert item['file'] == str(path) and item['line'].startswith(str(path))
        assert all(word in item['line'] for word in words), item['line']


@pytest.mark.parametrize('workers', [0, 2])
def test_every_damage_to_images_and_masks(check, folder, workers):
    expected = damage_training(folder)
    code, _, last, found = check(PRETRAINING, {'num_workers': workers})
    assert code == 2
    assert_lines(found, expected)  # the same, in the same order, whatever the workers
    assert {item['kind'] for item in found if item['note']} == {'empty mask', 'full mask'}
    assert [item['id'] for item in found] == [*map(name, range(12)), name(11)]
    assert {item['split'] for item in found} == {'trainaug'}
    assert last == (
        'Problems: 10 (repeated id: 1, missing image: 1, unusable image: 2, missing mask: 1, unusable mask: 2, mask of another '
        'size: 1, lossy mask: 2); notes: 3 (empty mask: 2, full mask: 1); read for main.py: 12 ids of trainaug')


def damage_labels(labels, images, split):
    """Damage five labels in `labels`; returns what the lines must be."""
    paths = [labels / f'{name(index, split)}.png' for index in range(5)]
    paths[0].unlink()
    cut(paths[1], 0.5)
    wrong = values(paths[2])
    wrong[0, 0], wrong[0, 1], wrong[0, 2] = 37, 9, 255
    save(paths[2], wrong)
    save(paths[3], np.dstack([values(paths[3])] * 3))
    height, width = values(images / f'{name(4, split)}.jpg').shape[:2]
    save(paths[4], values(paths[4])[::2])
    return [(paths[0], 'is missing'), (paths[1], 'is not a complete image'),
            (paths[2], 'label 9, 37 in its labels, but there are only 9 classes (0 to 8, and 255 for void)', 'classes.txt'),
            (paths[3], 'labels must be a palette or 8-bit grayscale image, not an image of mode RGB'),
            (paths[4], f'is {width} x {(height + 1) // 2}, but its image is {width} x {height}: it is resized')]


LABEL_KINDS = ['missing label', 'unusable label', 'label that is not a class', 'unusable label', 'label of another size']


@pytest.mark.parametrize('base, label_folder', [(LINEAR, 'SegmentationClassAug'), (KMEANS, 'SegmentationClass'),
                                                (EVAL, 'SegmentationClass'), (RETRIEVAL, 'SegmentationClass')],
                         ids=['linear', 'kmeans', 'eval', 'retrieval'])
def test_every_damage_to_labels(check, folder, base, label_folder):
    split = 'train' if 'train_db_name' in base else 'val'  # the training split comes first
    expected = damage_labels(folder / label_folder, folder / 'images', split)
    code, _, last, found = check(base)
    assert code == 2
    assert_lines(found, expected)
    assert [item['kind'] for item in found] == LABEL_KINDS and [item['note'] for item in found] == [False] * 4 + [True]
    assert last.startswith('Problems: 4 (') and '; notes: 1 (label of another size: 1); read for ' in last


def test_both_splits_of_an_experiment_are_read(check, folder):
    cut(folder / 'saliency_unsupervised_model' / f'{name(1)}.png', 0.5)  # the database's masks
    cut(folder / MASKS / f'{name(2, "val")}.png', 0.5)  # the queries'
    cut(folder / 'images' / f'{name(3, "val")}.jpg', 0.5)
    assert [(item['split'], item['id'], item['kind']) for item in check(RETRIEVAL)[3]] == [
        ('train', name(1), 'unusable mask'), ('val', name(2, 'val'), 'unusable mask'),
        ('val', name(3, 'val'), 'unusable image')]
    assert [item['id'] for item in check(LINEAR)[3]] == [name(3, 'val')]
    assert [item['id'] for item in check(KMEANS, {'val_db_kwargs.saliency': ...})[3]] == [name(3, 'val')]
    assert check(PRETRAINING)[3] == []


def test_ids_of_val_that_are_in_the_training_split(check, folder):
    (folder / 'sets' / 'val.txt').write_text(f'{name(0)}\n{name(0, "val")}\n')
    for base in (LINEAR, RETRIEVAL):
        code, lines, _, found = check(base)
        assert code == 0 and [item['kind'] for item in found] == ['id in both splits'] and found[0]['split'] == 'val'
        assert lines == [f'note: {folder / "sets" / "val.txt"}: {name(0)} is in the training split, too']
    shutil.copytree(folder, folder.parent / 'Other')  # where the same id is another image
    assert check(LINEAR, {'val_db_name': 'Other'})[3] == []


def test_another_split_of_eval(check, folder):
    (folder / 'sets' / 'test.txt').write_text(f'{name(1, "val")}\nabsent\n')
    for base, read in ((LINEAR, '12 ids of trainaug, 6 ids of val, 2 ids of test'), (EVAL, '2 ids of test')):
        _, _, last, found = check(base, {'val_db_kwargs.split': 'test'})
        assert [(item['split'], item['id'], item['kind']) for item in found] == [
            ('test', 'absent', 'missing image'), ('test', 'absent', 'missing label')]
        assert last.endswith(read)


def test_without_labels(check, folder):
    shutil.rmtree(folder / 'SegmentationClass')
    (folder / 'classes.txt').unlink()
    assert check(KMEANS) == (0, [], 'Problems: 0; notes: 0; read for kmeans.py: 6 ids of val', [])
    assert [item['file'] for item in check(EVAL)[3]] == [str(folder / 'classes.txt')]  # whose network has classes
    found = check(RETRIEVAL)[3]
    assert [(item['split'], item['kind']) for item in found] == [('train', 'unusable split'), ('val', 'unusable split')]
    for item in found:
        assert item['line'] == (f'{folder / "SegmentationClass"}: the folder is missing from the data set; the split '
                                f'{item["split"]} was not read')


def test_a_missing_part_does_not_hide_the_rest(check, folder):
    (folder / 'classes.txt').unlink()
    (folder / 'sets' / 'trainaug.txt').unlink()
    (folder / 'images' / f'{name(5, "val")}.jpg').unlink()
    _, lines, last, found = check(LINEAR)
    assert [item['kind'] for item in found] == ['unusable split', 'unusable classes.txt', 'missing image']
    assert lines[1].endswith('classes.txt is missing: name the classes, one per line, background first')
    assert last.endswith('read for linear_finetune.py: 6 ids of val')
    shutil.rmtree(folder / 'images')
    assert check(LINEAR)[2].endswith('read for linear_finetune.py: nothing')


@pytest.mark.parametrize('data_set', ['Shapes', 'VOCSegmentation', 'Birds'])
def test_a_data_set_that_is_not_there_is_neither_drawn_nor_fetched(experiment, user_error, tmp_path, data_set):
    arguments = experiment({'train_db_name': data_set}, db_root=tmp_path / 'empty')[:4]
    assert user_error(lambda: main(arguments)).startswith(f'error: {tmp_path / "empty" / data_set}: this data set does')
    assert not (tmp_path / 'empty').exists() and not (tmp_path / 'output').exists()


def module(tree, arguments):
    return subprocess.run([sys.executable, '-m', 'data.check', *arguments], cwd=tree, capture_output=True, text=True,
                          check=False)


@pytest.mark.slow
def test_as_a_process_of_either_tree(experiment, root, folder, tmp_path):
    whole = module(ROOT / 'segmentation', experiment({**RESNET, 'num_workers': 2}, db_root=root, base=KMEANS)[:4])
    assert (whole.returncode, whole.stdout, whole.stderr) == (
        0, 'Problems: 0; notes: 0; read for kmeans.py: 6 ids of val\n', '')
    tree = shutil.copytree(ROOT / 'pretrain', tmp_path / 'alone' / 'pretrain', ignore=shutil.ignore_patterns('__pycache__'))
    (folder / MASKS / f'{name(3)}.png').unlink()
    arguments = experiment({**RESNET, 'num_workers': 2}, db_root=root)[:4]
    env = Path(arguments[1])  # paths in it start at the tree, wherever that is
    env.write_text(yaml.safe_dump({'root_dir': '../output', 'db_root': '../../datasets'}))
    broken = module(tree, [*arguments, '--json', 'list.json'])
    assert (broken.returncode, broken.stderr) == (2, '')
    assert broken.stdout.splitlines()[0].startswith(f'{folder / MASKS / name(3)}.png is missing: ')
    assert broken.stdout.splitlines()[1:] == ['Problems: 1 (missing mask: 1); notes: 0; read for main.py: 12 ids of trainaug']
    assert [item['id'] for item in json.loads((tree / 'list.json').read_text())] == [name(3)]
