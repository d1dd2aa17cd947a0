"""A small data set for trying every kind of file that people have, with ways to change it."""
import numpy as np
import pytest
from PIL import Image

from data.check import main as check
from data.contents import Contents, merged, report
from data.dataset import SegmentationDataset
from data.label_space import label_space
from helpers.files import save

NAMES = [f'{letter}_1' for letter in 'abcdef']
SHAPE = (24, 32)


def labels_of(index):
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:20, 6:26] = 1 + index % 3
    return labels


@pytest.fixture
def mini(tmp_path):
    """Six images of 32 x 24 with masks and labels of three classes and background; both splits list all."""
    folder = tmp_path / 'datasets' / 'Shapes'
    for index, name in enumerate(NAMES):
        save(folder / 'images' / f'{name}.jpg', np.dstack([labels_of(index) * 60] * 3))
        save(folder / 'saliency_supervised_model' / f'{name}.png', (labels_of(index) > 0).astype(np.uint8) * 255)
        for part in ('SegmentationClass', 'SegmentationClassAug'):
            save(folder / part / f'{name}.png', labels_of(index))
    (folder / 'sets').mkdir()
    write_ids(folder, NAMES)
    (folder / 'classes.txt').write_text('background\nround\nsquare\nbox\n')
    return folder


def write_ids(folder, names):
    names = list(names)
    for split in ('trainaug', 'train', 'val'):
        (folder / 'sets' / f'{split}.txt').write_text('\n'.join(names) + '\n')


def each(folder, part, change):
    for path in sorted((folder / part).rglob('*.*')):
        with Image.open(path) as image:
            array = np.array(image)
        change(array, path)


@pytest.fixture
def problems(experiment, mini, capsys):
    """problems(base) runs data.check and returns the exit code and the lines."""
    def run(base, changes=None):
        code = 0
        capsys.readouterr()
        try:
            check(experiment({'val_db_kwargs.saliency': 'supervised_model', **(changes or {})}, db_root=mini.parent,
                             base=base)[:4])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out.splitlines()
    return run


def masked(folder, **options):
    return SegmentationDataset(folder, 'trainaug', 'supervised_model', labels=True, **options)


def assert_right(folder):
    """As if nothing were odd: all items are read, and hold what was drawn."""
    for dataset in (masked(folder), masked(folder, drop_missing=True)):
        assert len(dataset) == len(NAMES) and dataset.dropped == 0
        for index, sample in enumerate(dataset):
            assert np.array_equal(sample['labels'], labels_of(index))
            assert np.array_equal(sample['saliency'], labels_of(index) > 0)


def report_of(dataset, predicted=False):
    report(merged(Contents.of(dataset[index]) for index in range(len(dataset))), dataset, dataset.split,
           label_space(dataset.folder), predicted)
