"""hubconf.py: networks for other code, which may have modules called `data`, `models` or `utils` of its own."""
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from stored import NETWORKS, weights_of

from data.batches import to_images
from evaluation.images import resize_image

ROOT = Path(__file__).resolve().parents[1]


def load(*arguments, **options):
    return torch.hub.load(str(ROOT), *map(str, arguments), source='local', **options)


@pytest.mark.parametrize('kind', NETWORKS)
def test_networks(kind, tmp_path):
    network = weights_of(NETWORKS[kind][0], tmp_path / 'weights.pth.tar')
    given = load('maskcontrast', tmp_path / 'weights.pth.tar', output_stride=32 if kind == 'output_stride_32' else 8)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        given, wanted = given(images), network(images)
    for a, b in zip(given, wanted, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_modules_of_the_same_names_stay(tmp_path, monkeypatch):
    weights_of(NETWORKS['linear'][0], tmp_path / 'weights.pth.tar')
    theirs = {name: types.ModuleType(name) for name in ('data', 'models', 'utils', 'utils.checkpoint')}
    for name, module in theirs.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = list(sys.path)
    network = load('maskcontrast', tmp_path / 'weights.pth.tar')
    prepare = load('preprocessing', size=(64, 64))
    assert all(sys.modules[name] is module for name, module in theirs.items()) and sys.path == path
    assert network(prepare(np.zeros((10, 20, 3), np.uint8))).shape == (1, 7, 64, 64)


def test_preprocessing_is_the_evaluations():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    given = load('preprocessing', size=[32, 48])(image)
    assert torch.equal(given, to_images(torch.from_numpy(resize_image(image, (32, 48)))[None], torch.device('cpu')))
    plain = cv2.resize(image, (48, 32), interpolation=cv2.INTER_CUBIC) / 255
    plain = (plain - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.abs(given[0].numpy() - plain.transpose(2, 0, 1)).max() < 1e-5


def test_published_ones_are_kept_in_the_hubs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub' / 'maskcontrast' / 'model_zoo' / 'voc_supervised_linear.pth.tar'
    file.parent.mkdir(parents=True)
    network = weights_of({'num_classes': 20}, file)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load('maskcontrast', 'zoo://voc_supervised_linear')(images), network(images))


def test_mistakes(tmp_path):
    with pytest.raises(Exception, match='nowhere.pth: there is no such checkpoint file'):
        load('maskcontrast', tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match='output_stride must be 8 or 32, not 16'):
        load('maskcontrast', tmp_path / 'nowhere.pth', output_stride=16)
