"""Decoded files that are kept: the same items, from files that are whole and still true."""
import json
import os

import numpy as np
import pytest
from helpers.files import save

import main
from data import decoded_cache as cache
from data.dataset import SegmentationDataset
from data.decoded_cache import DecodedCache
from data.decoding import read_image
from utils.errors import UserError


def kept_files(folder):
    return sorted(folder.rglob('*.npy'))


def test_items_are_the_same(shapes_root, tmp_path, monkeypatch):
    options = {'saliency': 'supervised_model', 'labels': True, 'ignored': [2]}
    plain = SegmentationDataset(shapes_root / 'Shapes', 'val', **options)
    cached = SegmentationDataset(shapes_root / 'Shapes', 'val', **options, cache=tmp_path / 'cache')
    first = [cached[i] for i in range(len(cached))]
    assert len(kept_files(tmp_path)) == 3 * len(cached)
    monkeypatch.setattr('data.decoding.cv2.imdecode', lambda *_: pytest.fail('an image was decoded again'))
    monkeypatch.setattr('data.decoding._open', lambda *_: pytest.fail('a mask was decoded again'))
    again = [cached[i] for i in range(len(cached))]
    monkeypatch.undo()
    for i in range(len(plain)):
        for key, value in plain[i].items():
            for item in (first[i], again[i]):
                assert np.array_equal(item[key], value) and getattr(item[key], 'dtype', None) == getattr(value, 'dtype', None)


def test_a_changed_file_is_read_again(tmp_path):
    path, reader = tmp_path / 'x.png', DecodedCache(tmp_path / 'cache')
    for value in (10, 20):  # in files of one size
        save(path, np.full((4, 4, 3), value, np.uint8))
        os.utime(path, ns=(value, value))
        for _ in range(2):
            assert (reader.read(read_image, path, 'read_image') == value).all()


def test_a_damaged_file_is_replaced(tmp_path):
    path, reader = save(tmp_path / 'x.png', np.full((40, 40, 3), 7, np.uint8)), DecodedCache(tmp_path / 'cache')
    reader.read(read_image, path, 'read_image')
    kept, = kept_files(tmp_path)
    whole = kept.read_bytes()
    for part in (whole[:1000], b'', b'nonsense', b'PK\x03\x04', whole.replace(b'|u1', b'|b1'),
                 whole.replace(b'(40, 40', b'(40, (0')):
        kept.write_bytes(part)
        assert (reader.read(read_image, path, 'read_image') == 7).all()
        assert kept.read_bytes() == whole


def test_without_room_nothing_is_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, 'RESERVE', 2 ** 62)
    path, reader = save(tmp_path / 'x.png', np.full((4, 4, 3), 7, np.uint8)), DecodedCache(tmp_path / 'cache')
    for _ in range(3):
        assert (reader.read(read_image, path, 'read_image') == 7).all()
    assert not kept_files(tmp_path)
    assert caplog.text.count('No more decoded images are kept') == 1


def test_errors_are_those_of_the_reader(tmp_path):
    reader = DecodedCache(tmp_path / 'cache')
    with pytest.raises(UserError, match='could not be read'):
        reader.read(read_image, tmp_path / 'missing.png', 'read_image')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='could not be made'):
        DecodedCache(tmp_path / 'file' / 'cache')


@pytest.mark.slow
def test_a_training_learns_the_same(shapes_root, tmp_path, experiment):
    losses = []
    for number in range(2):
        arguments = [*experiment(name=f'run{number}'), '--amp', 'none']  # which auto would measure anew
        if number:
            env = tmp_path / 'env.yml'
            env.write_text(env.read_text() + f'\nimage_cache: {tmp_path / "cache"}\n')
        main.main(arguments)
        lines = (tmp_path / 'output' / f'run{number}' / 'metrics.jsonl').read_text().splitlines()
        losses.append([json.loads(line)['loss'] for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert kept_files(tmp_path / 'cache')
