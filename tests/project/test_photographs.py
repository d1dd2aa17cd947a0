"""Composites of objects and photographs: from a small tree of stamps and wallpapers, and from the real packages where they
are."""
import json

import numpy as np
import pytest
from helpers.experiments import KMEANS, LINEAR, PRETRAINING
from PIL import Image, ImageDraw

import photographs
from compositing import CLASSES, composite, find_sources, numbered
from data import check
from data.instances import read_instances
from utils.errors import UserError

COLOURS = {'ball': (220, 30, 30), 'bird': (30, 210, 30), 'coin': (30, 30, 220)}  # each class has a channel of its own
GREY = 128


def stamp(path, colour, alpha=255, size=(120, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGBA', size)
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 5, size[1] - 5), fill=(*colour, alpha))
    image.save(path)


def wallpaper(path, size=(800, 500), level=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (level,) * 3).save(path)


@pytest.fixture(scope='module')
def packages(tmp_path_factory):
    """Folders of stamps and of wallpapers, arranged as the packages have them."""
    root = tmp_path_factory.mktemp('packages')
    stamps, walls = root / 'stamps', root / 'wallpapers'
    stamp(stamps / 'sports' / 'soccer.png', COLOURS['ball'])
    stamp(stamps / 'animals' / 'birds' / 'crow.png', COLOURS['bird'], size=(200, 70))
    stamp(stamps / 'animals' / 'birds' / 'owl.png', COLOURS['bird'])
    (stamps / 'animals' / 'birds' / 'owl.txt').write_text('An owl.')
    stamp(stamps / 'symbols' / 'money' / 'us' / 'coins' / '001penny.png', COLOURS['coin'])
    (stamps / 'symbols' / 'money' / 'us' / 'coins' / '001penny.dat').write_text('nomirror\n')
    stamp(stamps / 'animals' / 'birds' / 'cartoon' / 'duck.png', COLOURS['bird'])
    stamp(stamps / 'symbols' / 'letter.png', (0, 0, 0))
    stamp(stamps / 'animals' / 'birds' / 'ghost.png', COLOURS['bird'], alpha=90)
    stamp(stamps / 'animals' / 'birds' / 'chick.png', COLOURS['bird'], size=(40, 40))
    stamp(stamps / 'animals' / 'birds' / 'nothing.png', COLOURS['bird'], alpha=0)
    wallpaper(stamps / 'animals' / 'birds' / 'poster.png')
    (stamps / 'animals' / 'birds' / 'parrot.svg').write_text('<svg/>')
    for size in ((500, 900), (1600, 1000)):
        wallpaper(walls / 'Path' / 'contents' / 'images' / f'{size[0]}x{size[1]}.jpg', size)
    wallpaper(walls / 'Path' / 'contents' / 'images_dark' / '1600x1000.jpg', (1600, 1000), GREY // 2)
    wallpaper(walls / 'Path' / 'contents' / 'screenshot.jpg')
    (walls / 'Path' / 'contents' / 'images' / '640x480.jpg').symlink_to('500x900.jpg')
    wallpaper(walls / 'Opal' / 'contents' / 'images' / '1600x1000.png', (1600, 1000))  # drawn
    for name in ('wood-l.webp', 'wood-d.webp', 'Elephants.jpg', 'Elephants_3840x2160.jpg'):
        wallpaper(walls / name)
    wallpaper(walls / 'icon.png', (64, 64))
    (walls / 'field-d.svg').write_text('<svg/>')
    return stamps, walls


@pytest.fixture
def make(packages, tmp_path):
    """make(name, ...) makes a data set and returns its folder."""
    def run(name, *flags):
        stamps, walls = packages
        photographs.main(['--root', str(tmp_path), '--name', name, '--size', '96', '--workers', '1', '--stamps', str(stamps),
                          '--backgrounds', str(walls), *flags])
        return tmp_path / name
    return run


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def pixels(path):
    return np.array(Image.open(path))


def test_what_is_used_of_the_packages(packages):
    found = find_sources(packages[0], [packages[1]])
    assert {name: [path.stem for path in paths] for name, paths in found.stamps.items()} == {
        'ball': ['soccer'], 'bird': ['crow', 'owl'], 'coin': ['001penny']}
    assert {scene: sorted(path.name for path in paths) for scene, paths in found.backgrounds.items()} == {
        'Elephants': ['Elephants_3840x2160.jpg'], 'Path': ['1600x1000.jpg'] * 2, 'wood': ['wood-d.webp', 'wood-l.webp']}
    assert found.skipped == {'stamps that things shine through': 1, 'stamps too small': 2, 'stamps without transparency': 1,
                             'stamps of another format': 1, 'backgrounds too small': 1, 'backgrounds of another format': 1}


@pytest.mark.parametrize('objects', [1, 2, 3])
def test_labels_are_exact(packages, objects):
    """Every pixel that isn't void has the colour of its label: that of the background, or that of its class's stamp."""
    names = 'sports/soccer', 'animals/birds/crow', 'symbols/money/us/coins/001penny'
    stamps = [packages[0] / f'{name}.png' for name in names]
    wall = packages[1] / 'wood-l.webp'
    for seed in range(8):
        image, labels, masks = composite(np.random.default_rng(seed), wall, stamps[:objects], [1, 2, 3][:objects], (150, 200))
        image = image.astype(int)
        assert image.shape == (150, 200, 3) and set(np.unique(labels)) == {0, *range(1, objects + 1), 255}
        assert np.abs(image[labels == 0] - GREY).max() < 15
        for label in range(1, objects + 1):
            own = np.delete(image, label - 1, axis=2)
            inside = labels == label
            assert (image[inside][:, label - 1] > 150).all() and (own[inside] < 80).all()
            assert not (inside & ~masks[label - 1]).any() and inside.sum() > 0.4 * masks[label - 1].sum()
        void = labels == 255
        assert void.mean() < 0.1 and np.sum(masks, axis=0).max() == 1  # a pixel belongs to one object
        mixed = (np.abs(image - GREY).max(2) > 15) & (labels == 0)
        assert not mixed.any()


def test_a_whole_data_set(make, experiment):
    folder = make('Whole', '--images', '24', '--val', '7')
    splits = {name: (folder / 'sets' / f'{name}.txt').read_text().split() for name in ('trainaug', 'train', 'val')}
    assert {name: len(ids) for name, ids in splits.items()} == {'trainaug': 24, 'train': 12, 'val': 7}
    assert splits['train'] == splits['trainaug'][:12] and not {*splits['val']} & {*splits['trainaug']}
    assert (folder / 'classes.txt').read_text().split() == ['background', 'ball', 'bird', 'coin']
    made = json.loads((folder / 'composites.json').read_text())['pictures']
    pairs = {split: {(made[name]['background'], path) for name in ids for path in made[name]['stamps']}
             for split, ids in splits.items()}
    assert not pairs['val'] & pairs['trainaug']
    scenes = {split: {background.split('/')[-1][:4] for background, _ in pairs[split]} for split in splits}
    assert not scenes['val'] & scenes['trainaug']  # nor another version of the same wallpaper
    counts = [len(made[name]['stamps']) for name in splits['trainaug']]
    assert {*counts} == {1, 2}
    for name in splits['trainaug']:
        labels = pixels(folder / 'SegmentationClassAug' / f'{name}.png')
        assert len({*np.unique(labels)} - {0, 255}) == len(made[name]['stamps'])
        inside, valid = (labels > 0) & (labels < 255), labels != 255
        overlap = []
        for masks in photographs.MASKS:
            mask = pixels(folder / masks / f'{name}.png')
            assert mask.shape == labels.shape == pixels(folder / 'images' / f'{name}.jpg').shape[:2]
            assert {*np.unique(mask)} == {0, 255}
            overlap.append(((mask == 255) & inside)[valid].sum() / ((mask == 255) | inside)[valid].sum())
        assert overlap[0] > 0.97 and overlap[1] > 0.15
        assert (name in splits['train']) == (folder / 'SegmentationClass' / f'{name}.png').exists()
    for base in (PRETRAINING, KMEANS, LINEAR):
        names = {'train_db_name': 'Whole', 'val_db_name': 'Whole'}
        arguments = experiment({**names, 'pretraining': None} if base is not PRETRAINING else {'train_db_name': 'Whole'},
                               db_root=folder.parent, base=base)
        check.main(arguments[:4])  # otherwise SystemExit


def test_objects_beside_each_other(make):
    """Each in a part of the picture of its own, and numbered in files that say what the labels say."""
    folder = make('Pairs', '--images', '16', '--val', '2', '--objects', '2')
    parts = {*()}
    for name in (folder / 'sets' / 'trainaug.txt').read_text().split():
        labels = pixels(folder / 'SegmentationClassAug' / f'{name}.png')
        instances = read_instances(folder / photographs.INSTANCES[0] / f'{name}.png')
        assert np.unique(instances).tolist() == [0, 1, 2]
        axis, centres = int(labels.shape[1] > labels.shape[0]), {}
        for number in (1, 2):
            label, = {*np.unique(labels[instances == number])} - {0, 255}
            inside = labels == label
            assert ((instances == number) & inside).sum() > 0.97 * inside.sum()
            centres[number] = np.nonzero(inside)[axis].mean() / labels.shape[axis]
        assert min(centres.values()) < 0.5 < max(centres.values())
        parts.add(centres[1] < centres[2])
        for masks, numbers in zip(photographs.MASKS, photographs.INSTANCES, strict=True):
            assert np.array_equal(read_instances(folder / numbers / f'{name}.png') > 0,
                                  pixels(folder / masks / f'{name}.png') == 255)
    assert parts == {True, False}


def test_pixels_of_a_mask_are_of_the_nearest_object():
    objects = [np.zeros((5, 12), bool) for _ in range(3)]
    for index, mask in enumerate(objects):
        mask[2, 1 + 4 * index] = True
    assert numbered(np.ones((5, 12), bool), objects)[2].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    without_the_second = np.ones((5, 12), bool)
    without_the_second[:, 3:8] = False
    assert numbered(without_the_second, objects)[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2, 2]


def test_noisier_masks_are_noisier(make):
    folder = make('Noise', '--images', '40', '--val', '1')
    wrong = dict.fromkeys(photographs.MASKS, 0)
    for path in (folder / 'SegmentationClassAug').iterdir():
        labels = pixels(path)
        for masks in wrong:
            wrong[masks] += (((pixels(folder / masks / path.name) == 255) != (labels > 0)) & (labels != 255)).sum()
    clean, noisier = wrong.values()
    assert clean < noisier / 20


def test_the_seed_decides_and_the_numbers_dont(make):
    first = files(make('First', '--images', '12', '--val', '3', '--objects', '3'))
    assert files(make('Again', '--images', '12', '--val', '3', '--objects', '3', '--workers', '3')) == first
    fewer = files(make('Fewer', '--images', '10', '--val', '2', '--objects', '3'))
    drawn = [path for path in fewer if path.parts[0] == 'images' or path.parts[0].startswith('saliency')]
    assert len(drawn) == 36 and all(fewer[path] == first[path] for path in drawn)
    other = files(make('Other', '--images', '12', '--val', '3', '--objects', '3', '--seed', '1'))
    assert all(other[path] != first[path] for path in drawn if path.parts[0] == 'images')


def test_mistakes(make, packages, user_error, tmp_path, monkeypatch):
    make('Made', '--images', '1', '--val', '1')
    assert user_error(lambda: make('Made')).startswith(f'error: {tmp_path / "Made"} exists already')
    assert '3 classes of stamps and 3 scenes were found: there must be at least 4 classes' in user_error(
        lambda: make('Four', '--objects', '4'))
    assert '--size must be at least 96' in user_error(lambda: make('Small', '--size', '50'))
    assert 'must be an integer of at least 1, not 0' in user_error(lambda: make('None', '--images', '0'))
    assert f'{tmp_path / "nowhere"}: this folder does not exist' in user_error(
        lambda: make('Nowhere', '--stamps', str(tmp_path / 'nowhere')))
    monkeypatch.setattr(photographs, 'STAMPS', tmp_path / 'nowhere')
    monkeypatch.setattr(photographs, 'BACKGROUNDS', {'gnome-backgrounds': packages[1],
                                                     'mate-backgrounds': tmp_path / 'nowhere'})
    assert 'apt install tuxpaint-stamps-default mate-backgrounds (or' in user_error(
        lambda: photographs.main(['--root', str(tmp_path), '--name', 'Missing']))
    with pytest.raises(UserError, match='there is no room for 12 objects'):
        composite(np.random.default_rng(0), packages[1] / 'wood-l.webp', [packages[0] / 'sports' / 'soccer.png'] * 12,
                  [1] * 12, (24, 24))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['Made']  # nothing half-done


@pytest.mark.slow
def test_the_real_packages(tmp_path, experiment):
    missing = [package for package, path in {photographs.STAMPS_PACKAGE: photographs.STAMPS, **photographs.BACKGROUNDS}.items()
               if not path.is_dir()]
    if missing:
        pytest.skip(f'Debian packages that are not installed: {", ".join(missing)}')
    photographs.main(['--root', str(tmp_path), '--images', '10', '--val', '2', '--size', '128', '--workers', '1'])
    folder = tmp_path / 'Photographs'
    assert (folder / 'classes.txt').read_text().splitlines() == ['background', *CLASSES]
    first = [np.unique(pixels(folder / 'SegmentationClassAug' / f'train_{index:05d}.png')) for index in range(10)]
    assert len({label for labels in first for label in labels} - {0, 255}) >= 10  # each has its turn
    check.main(experiment({'train_db_name': 'Photographs'}, db_root=tmp_path, base=PRETRAINING)[:4])
