"""convert_labels.py on small trees in the layouts of Cityscapes and ADE20K."""
import shutil

import numpy as np
import pytest
import yaml
from helpers.devkits import contents
from helpers.experiments import LINEAR
from helpers.files import save
from PIL import Image

import convert_labels
import linear_finetune
from data.dataset import SegmentationDataset
from data.label_space import label_space
from data.palette import VOC_COLOURS

SIZE = (24, 40)
NAMES = {'train': ['aachen_000000_000019', 'aachen_000001_000019', 'bochum_000000_000313'], 'val': ['lindau_000000_000019']}


def stored(seed, values):
    """Labels of 8 x 8 blocks."""
    blocks = np.random.default_rng(seed).choice(values, (3, 5)).astype(np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


@pytest.fixture
def cityscapes(tmp_path):
    """leftImg8bit/ and gtFine/ with all that the archives have for a picture."""
    root = tmp_path / 'cityscapes'
    for split, names in NAMES.items():
        for seed, name in enumerate(names):
            city = name.partition('_')[0]
            labels = stored(seed, range(34))
            labels[0, 0] = 255  # a license plate
            save(root / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png', np.dstack([labels * 7] * 3))
            for kind in ('labelIds', 'instanceIds'):
                save(root / 'gtFine' / split / city / f'{name}_gtFine_{kind}.png', labels)
            (root / 'gtFine' / split / city / f'{name}_gtFine_polygons.json').write_text('{}')
    return root


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / 'ADEChallengeData2016'
    for split, names in {'training': ['ADE_train_00000001', 'ADE_train_00000002'], 'validation': ['ADE_val_00000001']}.items():
        for seed, name in enumerate(names):
            labels = stored(seed, range(151))
            labels[:, 0], labels[:, 1] = 0, 150
            save(root / 'images' / split / f'{name}.jpg', np.dstack([labels] * 3))
            save(root / 'annotations' / split / f'{name}.png', labels)
    (root / 'objectInfo150.txt').write_text('Idx\tRatio\n')
    return root


def convert(flag, root, out):
    convert_labels.main([flag, str(root), '--out', str(out)])


# As the official scripts list them: train id, id, name.
TRAIN_IDS = '''0 7 road, 1 8 sidewalk, 2 11 building, 3 12 wall, 4 13 fence, 5 17 pole, 6 19 traffic light, 7 20 traffic sign,
8 21 vegetation, 9 22 terrain, 10 23 sky, 11 24 person, 12 25 rider, 13 26 car, 14 27 truck, 15 28 bus, 16 31 train,
17 32 motorcycle, 18 33 bicycle'''


def test_cityscapes(cityscapes, tmp_path):
    out = tmp_path / 'db' / 'Cityscapes'
    convert('--cityscapes', cityscapes, out)
    table = [entry.split(maxsplit=2) for entry in ' '.join(TRAIN_IDS.split()).split(', ')]
    space = label_space(out)
    assert space.names == tuple(name for _, _, name in table) and space.background is None and len(space) == 19
    by_id = {int(stored): int(train) for train, stored, _ in table}
    for split, called in (('trainaug', 'train'), ('val', 'val')):
        dataset = SegmentationDataset(out, split, labels=True)
        assert dataset.ids == NAMES[called]
        for seed, sample in enumerate(dataset):
            original = stored(seed, range(34))
            original[0, 0] = 255
            expected = [[by_id.get(value, 255) for value in row] for row in original.tolist()]
            assert np.array_equal(sample['labels'], expected) and sample['image'].shape == (*SIZE, 3)
            assert np.abs(sample['image'][..., 0].astype(int) - original.astype(int) * 7 % 256).mean() < 8
    image = Image.open(out / 'SegmentationClass' / f'{NAMES["val"][0]}.png')
    assert image.getpalette()[3 * 13:3 * 14] == [0, 0, 142]  # cars are blue there
    described = yaml.safe_load((out / 'dataset.yml').read_text())
    assert described['colours']['road'] == [128, 64, 128] and len({tuple(c) for c in described['colours'].values()}) == 19


def test_ade20k(ade20k, tmp_path):
    out = tmp_path / 'db' / 'ADE20K'
    convert('--ade20k', ade20k, out)
    names = label_space(out).names
    assert len(names) == len(set(names)) == 150 and label_space(out).background is None
    assert [names[index - 1] for index in (1, 2, 13, 21, 62, 90, 120, 126, 150)] == [
        'wall', 'building', 'person', 'car', 'bridge', 'television receiver', 'ball', 'pot', 'flag']
    sample = SegmentationDataset(out, 'trainaug', labels=True)[1]
    original = stored(1, range(151)).astype(int)
    original[:, 0], original[:, 1] = 0, 150
    assert np.array_equal(sample['labels'], np.where(original == 0, 255, original - 1))
    assert {path.name for path in (out / 'images').iterdir()} == {'ADE_train_00000001.jpg', 'ADE_train_00000002.jpg',
                                                                 'ADE_val_00000001.jpg'}
    copied = out / 'images' / 'ADE_val_00000001.jpg'
    assert copied.read_bytes() == (ade20k / 'images' / 'validation' / copied.name).read_bytes()
    assert Image.open(out / 'SegmentationClass' / 'ADE_val_00000001.png').getpalette()[:30] == VOC_COLOURS[:10].ravel().tolist()


CHECKS = {
    'no labels': (lambda root: shutil.rmtree(root / 'gtFine' / 'val'), 'gtFine/val holds no *_gtFine_labelIds.png'),
    'an image alone': (lambda root: next(root.rglob('bochum*labelIds.png')).unlink(), '_leftImg8bit.png has no labels'),
    'labels alone': (lambda root: next(root.rglob('bochum*leftImg8bit.png')).unlink(), '_gtFine_labelIds.png has no image'),
    'another id': (lambda root: save(next(root.rglob('bochum*labelIds.png')), np.full(SIZE, 34, np.uint8)),
                   'bochum_000000_000313_gtFine_labelIds.png holds the label 34, which Cityscapes does not have'),
    'another size': (lambda root: save(next(root.rglob('bochum*labelIds.png')), np.full((24, 24), 7, np.uint8)),
                     '_gtFine_labelIds.png is 24 x 24, but its image is 40 x 24'),
    'a broken image': (lambda root: next(root.rglob('bochum*leftImg8bit.png')).write_bytes(b'no'), 'is not a complete image'),
    'a name twice': (lambda root: shutil.copytree(root / 'gtFine/train/bochum', root / 'gtFine/train/copy'),
                     'have the same name'),
}


@pytest.mark.parametrize(('damage', 'words'), CHECKS.values(), ids=CHECKS.keys())
def test_each_check_names_the_file(cityscapes, tmp_path, user_error, damage, words):
    damage(cityscapes)
    out = tmp_path / 'db' / 'out'
    line = user_error(lambda: convert('--cityscapes', cityscapes, out))
    assert words in line and str(cityscapes) in line
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_what_is_there_stays(cityscapes, tmp_path, user_error):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').write_text('mine')
    assert 'exists already' in user_error(lambda: convert('--cityscapes', cityscapes, tmp_path / 'out'))
    assert contents(tmp_path / 'out') == {'mine.txt': b'mine'}


@pytest.mark.slow
def test_a_linear_classifier_trains_on_cityscapes(cityscapes, tmp_path, experiment, capsys):
    convert('--cityscapes', cityscapes, tmp_path / 'db' / 'Cityscapes')
    changes = {'train_db_name': 'Cityscapes', 'val_db_name': 'Cityscapes', 'head': 'none', 'epochs': 1, 'pretraining': None,
               'train_db_kwargs.batch_size': 3}
    linear_finetune.main(experiment(changes, db_root=tmp_path / 'db', base=LINEAR))
    said = capsys.readouterr().out
    assert 'IoU class road is' in said and 'IoU class bicycle is' in said and 'background' not in said
