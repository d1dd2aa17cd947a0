"""generate_masks.py: what it makes of a folder of photographs, at once, in several runs, and beside a data set."""
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import warm
from helpers.photographs import BASE, contents, disc, ids_of, make_masks, mask_ids, photograph, times
from helpers.processes import has_ended, wait_for
from PIL import ExifTags, Image

from data.dataset import SegmentationDataset
from data.decoding import read_image, read_saliency
from utils.storage.atomic import HOST

SCRIPT = Path(__file__).resolve().parents[2] / 'pretrain' / 'generate_masks.py'
NAME = 'robust_background'


@pytest.fixture
def images(tmp_path):
    """A folder of four photographs of a disc, one of them in a sub-folder."""
    for seed, name in enumerate(('a.jpg', 'b.png', 'c d.jpg', 'deep/e.webp')):
        photograph(tmp_path / 'photographs' / name, 48, 56 + 4 * seed, seed)
    return tmp_path / 'photographs'


def check_training(out, name=NAME):
    """The data set does for pre-training: every image of the split has a mask of its size. Returns how many there are."""
    dataset = SegmentationDataset(out, 'trainaug', saliency=name, drop_missing=True)
    assert dataset.dropped == 0
    for sample in (dataset[index] for index in range(len(dataset))):
        assert sample['saliency'].shape == sample['image'].shape[:2] and 0.01 <= sample['saliency'].mean() < 1
    return len(dataset)


def test_layout(tmp_path, images):
    out = tmp_path / 'sets' / 'mine'
    before = contents(images)
    results = make_masks(images, out)
    assert contents(images) == before
    ids = ['a', 'b', 'c d', 'deep/e']
    assert ids_of(out, 'trainaug') == ids and ids_of(out, 'val') == [] and check_training(out) == 4
    assert sorted(contents(out)) == sorted(
        ['.', 'config_robust_background.yml', 'images', 'images/deep', 'log_file.txt', 'results_robust_background.json', 'sets',
         'saliency_robust_background', 'saliency_robust_background/deep', 'sets/trainaug.txt', 'sources.json',
         *[f'images/{name}.jpg' for name in ids], *[f'saliency_robust_background/{name}.png' for name in ids]])
    assert (results['model'], results['photographs'], results['masks'], results['skipped']) == (NAME, 4, 4, {})
    for seed, name in enumerate(ids):
        with Image.open(out / 'saliency_robust_background' / f'{name}.png') as mask:
            assert mask.mode == 'L' and mask.size == (56 + 4 * seed, 48)
            values = np.asarray(mask)
        inside = disc(48, 56 + 4 * seed)[1]
        assert set(np.unique(values)) == {0, 255} and ((values > 0) & inside).sum() / ((values > 0) | inside).sum() > 0.8
        assert results['cover'][name] == pytest.approx((values > 0).mean())


def test_jpegs_are_copied_and_others_converted(tmp_path, images):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph(images / 'turned.jpg', 48, 64, exif=exif, quality=95)
    photograph(images / 'turned.png', 48, 64, exif=exif)
    out = tmp_path / 'mine'
    make_masks(images, out)
    for name in ('a', 'c d'):
        assert (out / 'images' / f'{name}.jpg').read_bytes() == (images / f'{name}.jpg').read_bytes()
    upright = np.rot90(disc(48, 64)[0], -1).astype(int)
    for name, expected in (('b', disc(48, 60, 1)[0].astype(int)), ('turned_jpg', upright), ('turned_png', upright)):
        with Image.open(out / 'images' / f'{name}.jpg') as image:
            assert image.format == 'JPEG' and ExifTags.Base.Orientation not in image.getexif()
        found = read_image(out / 'images' / f'{name}.jpg')
        assert found.shape == expected.shape and np.abs(found - expected).mean() < 6  # otherwise 14 at least


def test_max_side(tmp_path, images):
    photograph(images / 'tall.jpg', 200, 50)
    out, whole = tmp_path / 'small', tmp_path / 'whole'
    make_masks(images, out, '--max_side', 60)
    sizes = {name: read_saliency(out / 'saliency_robust_background' / f'{name}.png').shape for name in mask_ids(out)}
    assert sizes == {'a': (48, 56), 'b': (48, 60), 'c d': (45, 60), 'deep/e': (42, 60), 'tall': (60, 15)}  # 42.35
    check_training(out)
    assert (out / 'images' / 'a.jpg').read_bytes() == (images / 'a.jpg').read_bytes()
    photograph(images / 'wide.jpg', 100, 1100)
    make_masks(images, whole, '--max_side', 0)
    assert read_image(whole / 'images' / 'wide.jpg').shape == (100, 1100, 3)


@pytest.mark.slow
@pytest.mark.parametrize('fraction', [0.3, 0.5])
def test_splits(tmp_path, fraction):
    """They share no image and hold all; of photographs that come later, each changes the split of one image at most."""
    images, out = tmp_path / 'photographs', tmp_path / 'mine'
    first = [f'{index}' for index in range(10)]
    for name in first:
        photograph(images / f'{name}.png', 24, 32)
    Image.new('RGB', (32, 24)).save(images / 'nothing.png')
    make_masks(images, out, '--val_fraction', fraction)
    before = set(ids_of(out, 'val'))
    assert len(before) == 10 * fraction and before | set(ids_of(out, 'trainaug')) == set(first) == mask_ids(out)
    for added in range(1, 5):
        photograph(images / f'new {added}.png', 24, 32)
        make_masks(images, out, '--val_fraction', fraction)
        train, val = set(ids_of(out, 'trainaug')), set(ids_of(out, 'val'))
        assert not train & val and train | val == mask_ids(out) and len(val) == round(fraction * (10 + added))
        assert len((val ^ before) & set(first)) <= added
    make_masks(images, out)  # the fraction as it was
    assert set(ids_of(out, 'val')) == val
    make_masks(images, out, '--val_fraction', 0)
    assert not (out / 'sets' / 'val.txt').exists() and set(ids_of(out, 'trainaug')) == mask_ids(out)


def test_skipped_photographs_are_listed(tmp_path, images):
    Image.new('RGB', (64, 48), 'gray').save(images / 'nothing.png')
    (images / 'broken.jpg').write_bytes((images / 'a.jpg').read_bytes()[:500])
    Path(os.fsdecode(os.path.join(os.fsencode(images), b'caf\xe9.jpg'))).write_bytes(b'no image')
    results = make_masks(images, tmp_path / 'mine')
    assert (results['photographs'], results['masks']) == (7, 4)
    assert results['skipped'].keys() == {'nothing', 'broken', 'caf_'}
    assert results['skipped']['nothing'] == f'{images}/nothing.png: the mask covers 0.0% of the image, less than 1%'
    assert results['skipped']['broken'].startswith(f'{images}/broken.jpg is not a complete image')
    text = (tmp_path / 'mine' / 'log_file.txt').read_text()
    assert 'nothing.png: the mask covers 0.0%' in text and 'broken.jpg is not a complete' in text and '3 images skipped' in text
    assert ids_of(tmp_path / 'mine', 'trainaug') == ['a', 'b', 'c d', 'deep/e'] == sorted(mask_ids(tmp_path / 'mine'))


def test_run_again(tmp_path, images):
    out = tmp_path / 'mine'
    first, before = make_masks(images, out), times(out)
    assert len(before) == 8
    again = make_masks(images, out)
    assert times(out) == before and again['cover'] == first['cover'] and again['masks'] == 4
    mask = out / 'saliency_robust_background' / 'b.png'
    whole = mask.read_bytes()
    Image.fromarray(np.ones((48, 64), np.uint8)).save(mask)  # by hand, with 1 for object
    assert 'the mask is empty: 255 is object' in make_masks(images, out)['skipped'][mask.stem]
    mask.write_bytes(whole[:len(whole) // 2])  # damaged: made again
    make_masks(images, out)
    assert mask.read_bytes() == whole
    before = times(out)
    photograph(images / 'new.jpg', 48, 50)
    make_masks(images, out)
    after = times(out)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {'images/new.jpg', 'saliency_robust_background/new.png'}
    photograph(images / 'b.png', 40, 40, 9)
    make_masks(images, out)
    changed = {name for name, when in times(out).items() if after[name] != when}
    assert changed == {'images/b.jpg', 'saliency_robust_background/b.png'}
    assert check_training(out) == 5 and read_image(out / 'images' / 'b.jpg').shape == (40, 40, 3)


def test_a_mask_drawn_for_a_skipped_photograph(tmp_path, images):
    Image.new('RGB', (64, 48), 'gray').save(images / 'nothing.png')
    out = tmp_path / 'mine'
    make_masks(images, out)
    drawn = out / 'saliency_robust_background' / 'nothing.png'
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 255
    Image.fromarray(mask.T).save(drawn)
    before = drawn.read_bytes()
    assert '48 x 64, but its image in the data set 64 x 48' in make_masks(images, out)['skipped']['nothing']
    assert 'nothing' not in ids_of(out, 'trainaug') and check_training(out) == 4
    assert drawn.read_bytes() == before and not (out / 'images' / 'nothing.jpg').exists()
    Image.fromarray(mask).save(drawn)
    assert make_masks(images, out)['skipped'] == {} and np.array_equal(read_saliency(drawn), mask // 255)
    assert check_training(out) == 5
    drawn.write_bytes(before[:30])  # damaged: made again
    (out / 'images' / 'nothing.jpg').unlink()
    assert 'less than 1%' in make_masks(images, out)['skipped']['nothing'] and not drawn.exists()


def test_a_photograph_that_has_no_object_any_more(tmp_path, images):
    out = tmp_path / 'mine'
    make_masks(images, out)
    Image.new('RGB', (30, 20)).save(images / 'b.png')
    assert make_masks(images, out)['skipped'].keys() == {'b'}
    assert ids_of(out, 'trainaug') == ['a', 'c d', 'deep/e'] and check_training(out) == 3


@pytest.mark.parametrize('in_between', [False, True])
def test_another_photograph_takes_the_id(tmp_path, images, in_between):
    """a.png, which is older than the mask of a.jpg, takes its place: at once, or after a run without either."""
    out = tmp_path / 'mine'
    make_masks(images, out)
    (images / 'a.jpg').unlink()
    if in_between:
        make_masks(images, out)
        assert ids_of(out, 'trainaug') == ['b', 'c d', 'deep/e']
    os.utime(photograph(images / 'a.png', 30, 40), (1, 1))
    make_masks(images, out)
    assert ids_of(out, 'trainaug') == ['a', 'b', 'c d', 'deep/e'] and check_training(out) == 4
    assert read_image(out / 'images' / 'a.jpg').shape == (30, 40, 3)


def test_out_inside_images(tmp_path, images):
    out = images / 'deep' / 'mine'
    for _ in range(2):
        assert make_masks(images, out)['photographs'] == 4
        assert ids_of(out, 'trainaug') == ['a', 'b', 'c d', 'deep/e']


def start(images, out, *flags):
    """The script as a process of its own, in another working directory."""
    return warm.start(SCRIPT, '--images', images, '--out', out, '--device', 'cpu', *flags, cwd=out.parent,
                      out=out.parent / 'log')


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """In workers of their own. The data set is that of an undisturbed run without workers."""
    for index in range(24):
        photograph(tmp_path / 'photographs' / f'{index % 3}' / f'{index:02}.png', 48, 64, index)
    images, out, whole = tmp_path / 'photographs', tmp_path / 'mine', tmp_path / 'whole'
    make_masks(images, whole, '--val_fraction', 0.2)
    process = start(Path('photographs'), out, '--num_workers', '2', '--val_fraction', '0.2')
    try:
        while len(mask_ids(out)) < 3:
            assert process.poll() is None
            time.sleep(0.002)
        workers = [int(worker) for worker in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]
    finally:
        process.kill()
    assert len(workers) >= 2
    wait_for(lambda: all(map(has_ended, workers)))
    assert 3 <= len(mask_ids(out)) < 24 and not (out / 'sets').exists()
    made = times(out)
    assert start(Path('photographs'), out, '--num_workers', '2', '--val_fraction', '0.2').wait() == 0
    kept = {name for name, when in times(out).items() if made.get(name) == when}
    assert len(kept) >= 6
    for kind in 'images', 'saliency_robust_background', 'sets':
        assert contents(out, kind) == contents(whole, kind)


def test_what_a_killed_run_left(tmp_path, images):
    """Temporary files of processes that have ended, here one that was killed and one whose parent has not asked for its exit
    code, but not of those that run, or are on another host."""
    killed, zombie = (subprocess.Popen(['sleep', '60']) for _ in range(2))
    killed.kill()
    killed.wait()
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    folder = tmp_path / 'mine' / 'saliency_robust_background'
    make_masks(images, tmp_path / 'mine')
    *left, running = (folder / f'.b.png.{HOST}-{process}-1.tmp' for process in (killed.pid, zombie.pid, os.getpid()))
    others = folder / f'.b.png.not_{HOST}-{killed.pid}-1.tmp', folder / f'.b.{killed.pid}.tmp'  # and of another program
    for path in (*left, running, *others):
        path.touch()
    make_masks(images, tmp_path / 'mine')
    assert running.exists() and all(path.exists() for path in others) and not any(path.exists() for path in left)
    zombie.wait()


# Beside the images of a data set


@pytest.mark.slow
def test_masks_for_a_data_set(tmp_path, shapes_root):
    shapes = tmp_path / 'Shapes'
    shutil.copytree(shapes_root / 'Shapes', shapes)
    kinds = 'images', 'sets', 'SegmentationClass', 'SegmentationClassAug', 'saliency_supervised_model'
    before = contents(shapes, *kinds), times(shapes)
    results = make_masks(shapes / 'images', shapes, '--val_fraction', 0.5, '--max_side', 20)
    assert contents(shapes, *kinds) == before[0] and before[1].items() <= times(shapes).items()
    assert results['photographs'] == 18 and results['masks'] == len(mask_ids(shapes)) > 9
    for split in 'trainaug', 'val':
        dataset = SegmentationDataset(shapes, split, saliency=NAME, labels=True, drop_missing=True)
        for sample in (dataset[index] for index in range(len(dataset))):
            assert sample['saliency'].shape == sample['labels'].shape == sample['image'].shape[:2]


def test_masks_for_images_without_splits(tmp_path, images):
    data = tmp_path / 'data'
    for name in 'a.jpg', 'c d.jpg':
        photograph(data / 'images' / name)
    make_masks(data / 'images', data)
    assert ids_of(data, 'trainaug') == ['a', 'c d'] and check_training(data) == 2 and not (data / 'sources.json').exists()


def test_splits_of_a_data_set_are_kept(tmp_path):
    """Also where there is none for training."""
    data = tmp_path / 'data'
    photograph(data / 'images' / 'a.jpg')
    (data / 'sets').mkdir()
    (data / 'sets' / 'val.txt').write_text('a\n')
    before = contents(data, 'images', 'sets')
    make_masks(data / 'images', data)
    assert contents(data, 'images', 'sets') == before and mask_ids(data) == {'a'}


def test_masks_of_turned_images_of_a_data_set_are_on_the_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph(tmp_path / 'images' / 'a.jpg', exif=exif)
    make_masks(tmp_path / 'images', tmp_path, *BASE)
    assert read_saliency(tmp_path / 'saliency_robust_background' / 'a.png').shape == (48, 64) and check_training(tmp_path) == 1
