"""hubconf.py: networks for other code, which may have modules called `data`, `models` or `utils` of its own."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import warm
from helpers.stored import NETWORKS, weights_of
from PIL import Image

from data.normalization import to_images
from evaluation.evaluation_images import resize_image
from models.backbones import IMAGENET

ROOT = Path(__file__).resolve().parents[2]


def load(*arguments, **options):
    return torch.hub.load(str(ROOT), *map(str, arguments), source='local', **options)


@pytest.mark.parametrize('kind', NETWORKS)
def test_networks(kind, tmp_path):
    network = weights_of(NETWORKS[kind][0], tmp_path / 'weights.pth.tar')
    given = load('maskcontrast', tmp_path / 'weights.pth.tar', output_stride=32 if kind == 'output_stride_32' else None)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        given, wanted = given(images), network(images)
    for a, b in zip(given, wanted, strict=True):
        assert a is b is None or torch.equal(a, b)


OTHER_CODE = """
import sys
import numpy as np
import torch
import utils                                     # this folder's
before = set(sys.path)
for _ in range(2):
    network = torch.hub.load({root!r}, 'maskcontrast', {weights!r}, source='local')
    prepare = torch.hub.load({root!r}, 'preprocessing', size=(64, 64), source='local')
    assert network(prepare(np.zeros((10, 20, 3), np.uint8))).shape == (1, 7, 64, 64)
own = sorted(name for name in sys.modules if name.split('.')[0] in ('data', 'evaluation', 'models', 'utils'))
assert own == ['utils'] and sys.modules['utils'] is utils, own
assert set(sys.path) == before, sys.path
import models                                    # this folder's too, imported only now
print(utils.NAME, models.NAME)
"""


@pytest.mark.slow
def test_code_with_modules_of_the_same_names(tmp_path):
    weights_of(NETWORKS['linear'][0], tmp_path / 'weights.pth.tar')
    for name in ('utils', 'models'):
        (tmp_path / f'{name}.py').write_text(f'NAME = "their {name}"\n')
    (tmp_path / 'program.py').write_text(OTHER_CODE.format(root=str(ROOT), weights=str(tmp_path / 'weights.pth.tar')))
    done = warm.run(tmp_path / 'program.py', out=tmp_path / 'out', err=tmp_path / 'err')
    assert done.printed() == 'their utils their models\n', done.errors()


def test_preprocessing_is_the_evaluations():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    given = load('preprocessing', size=[32, 48])(image)
    assert torch.equal(given, to_images(torch.from_numpy(resize_image(image, (32, 48)))[None], torch.device('cpu'), IMAGENET))
    plain = cv2.resize(image, (48, 32), interpolation=cv2.INTER_CUBIC) / 255
    plain = (plain - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.abs(given[0].numpy() - plain.transpose(2, 0, 1)).max() < 1e-5


def test_images_in_other_forms():
    rgb = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    prepare = load('preprocessing', size=(32, 48))
    want, gray = prepare(rgb), rgb[..., 0]
    for same in (Image.fromarray(rgb), np.dstack([rgb, gray]), Image.fromarray(np.dstack([rgb, gray])), rgb[::-1][::-1],
                 np.asfortranarray(rgb), rgb[..., ::-1][..., ::-1], torch.from_numpy(rgb)):
        assert torch.equal(prepare(same), want)
    want = prepare(np.dstack([gray] * 3))
    for same in (gray, gray[..., None], Image.fromarray(gray), Image.fromarray(np.dstack([gray, gray]))):  # the last: LA
        assert torch.equal(prepare(same), want)
    palette = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), 'P')
    palette.putpalette(rgb.ravel()[:36].tolist())
    assert torch.equal(prepare(palette), prepare(rgb.ravel()[:36].reshape(3, 4, 3)))
    bits = np.eye(9, dtype=bool)
    assert torch.equal(prepare(Image.fromarray(bits)), prepare(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize('image', [
    np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint16), np.zeros((8, 8), bool),
    np.zeros((8, 8, 3), np.int64), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.uint8),
    np.zeros((3, 8, 8), np.uint8),
    np.zeros((0, 8, 3), np.uint8), np.zeros(8, np.uint8), Image.new('I', (8, 8)), Image.new('F', (8, 8)),
    Image.new('I;16', (8, 8)), 'photo.jpg', None, torch.zeros(3, 8, 8)],
    ids=lambda image: f'{type(image).__name__} {getattr(image, "dtype", getattr(image, "mode", ""))} '
                      f'{tuple(getattr(image, "shape", ()))}')
def test_images_in_no_known_form(image):
    with pytest.raises(ValueError, match='image') as caught:
        load('preprocessing')(image)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('size', [512, (512,), (0, 8), (8.0, 8), 'ab', (8, 8, 3)])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r'size must be \(height, width\)'):
        load('preprocessing', size=size)


def test_published_ones_are_kept_in_the_hubs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    file = tmp_path / 'hub' / 'maskcontrast' / 'model_zoo' / 'voc_supervised_linear.pth.tar'
    file.parent.mkdir(parents=True)
    network = weights_of({'num_classes': 20}, file)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load('maskcontrast', 'zoo://voc_supervised_linear')(images), network(images))


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match='nowhere.pth: this checkpoint file does not exist'):
        load('maskcontrast', tmp_path / 'nowhere.pth')
    weights_of({'num_classes': 2}, tmp_path / 'weights.pth.tar')
    with pytest.raises(ValueError, match='output_stride must be one of 8, 32 for backbone: resnet18, not 16'):
        load('maskcontrast', tmp_path / 'weights.pth.tar', output_stride=16)
