"""Ids of the images in a folder, whatever its files are called."""
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from utils.errors import UserError


def ids_of(folder, *names, **options):
    """Make empty files called `names`, text or bytes, in `folder`, and return the ids by file name."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).touch()
    images = ImageFolder(folder, **options)
    assert len(images) == len(images.ids) == len(images.paths)
    return {os.fsencode(path.relative_to(Path(folder).resolve())): name
            for path, name in zip(images.paths, images.ids, strict=True)}


@pytest.mark.parametrize(('file', 'image_id'), [
    ('a.jpg', 'a'), ('A.JPEG', 'A'), ('a.b.png', 'a.b'), ('a.TiFf', 'a'), ('one/two/a.webp', 'one/two/a'),
    ('beach 1.bmp', 'beach 1'), ('holiday in May/beach 1.tif', 'holiday in May/beach 1'), ('a/ b.jpg', 'a/ b'),
    (' a.jpg', '_a'), ('a  .jpg', 'a__'), (' a /b .jpg', '_a /b_'), (' .jpg', '__'),
    ('a\nb.jpg', 'a_b'), ('a\r\n.jpg', 'a__'), ('\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029a.jpg', '________a'),
    ('a\u00a0b.jpg', 'a_b'), ('\u3000a.jpg', '_a'), ('a\tb\x7f\x00.jpg'.replace('\x00', ''), 'a_b_'),
    ('été 日本.jpg', 'été 日本'), (b'caf\xe9.jpg', 'caf_'), (b'\xff\xfe/\xe9.jpg', '__/_'),
    ('x.jpg/a.jpg', 'x_jpg/a'), ('x.y.PNG/z.tif/a.jpg', 'x_y_PNG/z_tif/a'), ('x.txt/a.jpg', 'x.txt/a')])
def test_id(tmp_path, file, image_id):
    assert ids_of(tmp_path, file) == {os.fsencode(file): image_id}


def test_files_that_differ_in_the_suffix(tmp_path):
    assert ids_of(tmp_path, 'a.jpg', 'a.png', 'a_jpg.bmp', 'b.jpg') == {
        b'a.jpg': 'a_jpg_2', b'a.png': 'a_png', b'a_jpg.bmp': 'a_jpg', b'b.jpg': 'b'}


def test_files_that_differ_in_what_no_id_may_hold(tmp_path):
    found = ids_of(tmp_path, 'a\n.jpg', 'a\r.jpg', 'a_.jpg', 'a .png', 'c.jpg/d.jpg', 'c_jpg/d.jpg')
    assert sorted(found.values()) == ['a__jpg', 'a__jpg_2', 'a__jpg_3', 'a__png', 'c_jpg/d_jpg', 'c_jpg/d_jpg_2']


def test_what_is_no_image_is_counted(tmp_path):
    found = ids_of(tmp_path, 'a.jpg', 'b.txt', 'deep/c.TXT', 'd.gif', 'README', '.hidden.jpg', '.git/e.jpg', '.git/f.txt',
                   'deep/.thumbnails/g.png', 'deep/.DS_Store', '.jpg')
    assert found == {b'a.jpg': 'a'} and ImageFolder(tmp_path).others == {'.txt': 2, '.gif': 1, '': 1}


def test_a_folder_to_leave_out(tmp_path):
    names = 'a.jpg', 'out/images/a.jpg', 'out/log_file.txt', 'outer/a.jpg', 'deep/out/a.jpg'
    kept = {b'a.jpg': 'a', b'outer/a.jpg': 'outer/a', b'deep/out/a.jpg': 'deep/out/a'}
    assert ids_of(tmp_path, *names, without=tmp_path / 'out') == kept
    assert ids_of(tmp_path, without=str(tmp_path / 'deep' / '..' / 'out')) == kept
    assert ids_of(tmp_path, without=tmp_path / 'absent').keys() == kept.keys() | {b'out/images/a.jpg'}
    assert not ImageFolder(tmp_path, without=tmp_path / 'out').others


def test_hidden_folder_given_by_name(tmp_path):
    assert ids_of(tmp_path / '.photographs', 'a.jpg') == {b'a.jpg': 'a'}


def test_order_does_not_depend_on_the_file_system(tmp_path):
    names = [f'{folder}{name}.{suffix}' for folder in ('', 'b/', 'a/', 'a.b/') for name in ('z', 'y', '1')
             for suffix in ('png', 'jpg')]
    first = ids_of(tmp_path / 'one', *names)
    random.Random(0).shuffle(names)
    second = ids_of(tmp_path / 'two', *names)
    assert list(first.items()) == list(second.items()) and list(first.values()) == sorted(first.values())


def test_symbolic_links(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'deep').mkdir(parents=True)
    Image.new('RGB', (3, 2)).save(folder / 'deep' / 'a.png')
    (folder / 'deep' / 'up').symlink_to('..')  # would lead round and round
    (folder / 'b.png').symlink_to('deep/a.png')
    (folder / 'loop').symlink_to('loop')
    (folder / 'loop.png').symlink_to('loop.png')
    (folder / 'broken.png').symlink_to('absent')
    images = ImageFolder(folder)
    assert images.ids == ['b', 'broken', 'deep/a', 'loop']
    assert images[0]['id'] == 'b' and images[0]['image'].shape == (2, 3, 3)
    for index in 1, 3:
        with pytest.raises(UserError, match=rf'/{images.ids[index]}\.png could not be read'):
            images[index]
    (tmp_path / 'link').symlink_to(folder)
    assert ImageFolder(tmp_path / 'link').ids == images.ids
    with pytest.raises(UserError, match='/loop is not a folder of images'):
        ImageFolder(folder / 'loop')


def test_no_folder_and_no_image(tmp_path):
    (tmp_path / 'file.jpg').touch()
    for name in ('absent', 'file.jpg'):
        with pytest.raises(UserError, match=f'/{name} is not a folder of images'):
            ImageFolder(tmp_path / name)
    with pytest.raises(UserError, match='is not a folder of images'):
        ImageFolder('')
    with pytest.raises(UserError, match=r'no images in this folder \(\.jpg, \.jpeg, \.png, \.bmp, \.webp, \.tif, \.tiff\)'):
        ids_of(tmp_path / 'folder', 'a.txt', '.b.jpg')


@pytest.mark.parametrize('seed', range(4))
def test_ids_can_name_files_and_stand_in_a_list(tmp_path, seed):
    """Of random names: ids are unique, are read back from a list, and name files of results that don't collide."""
    rng = random.Random(seed)
    letters = [*'aab  ._\n\r\t\x85\u2028\u00a0\udcffé2', '.jpg', '.png']
    names = set()
    while len(names) < 150:
        parts = [''.join(rng.choices(letters, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
        name = '/'.join(part for part in parts if not part.startswith('.')) + rng.choice(['.jpg', '.png', '.JPG'])
        if not os.path.basename(name).startswith('.') and not any(
                other.startswith(f'{name}/') or name.startswith(f'{other}/') for other in names):  # one can't have both
            names.add(name)
    ids = list(ids_of(tmp_path / 'images', *names).values())
    assert len(set(ids)) == len(ids) == len(names) and ids == sorted(ids)
    data = tmp_path / 'data'
    for folder, suffix in (('images', 'jpg'), ('saliency_model', 'png')):
        for index, image_id in enumerate(ids):
            path = data / folder / f'{image_id}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)  # fails where an image is in the way
            assert not path.exists()
            Image.fromarray(np.full((1, 2), index % 2 * 255, np.uint8)).save(path, format='PNG')
    (data / 'sets').mkdir()
    (data / 'sets' / 'all.txt').write_text(''.join(f'{name}\n' for name in ids))
    dataset = SegmentationDataset(data, 'all', saliency='model', drop_missing=True)
    assert dataset.ids == ids and dataset.dropped == 0
    assert [dataset[index]['saliency'][0, 0] for index in range(len(ids))] == [index % 2 for index in range(len(ids))]
