"""--model auto: the best saliency model that can be had, with what is on disk and without network."""
import importlib.util

import pytest
import torch
import yaml
from helpers.checks import refusal
from helpers.photographs import make_masks, mask_ids, photograph

from models.backbones import build_backbone
from saliency.model_choice import choose_model, rembg_file


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A folder in which rembg looks for its files, none of PyTorch's, and no network."""
    monkeypatch.setenv('U2NET_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    for name in ('https_proxy', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / 'home'


@pytest.fixture
def without(monkeypatch):
    """without(package): as if it were not installed."""
    def hide(*packages):
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *more: None if name in packages else real(name, *more))
    return hide


@pytest.fixture
def with_rembg(monkeypatch):
    """As if rembg and onnxruntime were installed: only networks on disk are chosen without their import."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *more: name)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(build_backbone('resnet18', {}).state_dict(), tmp_path / 'resnet18.pth')
    return tmp_path / 'resnet18.pth'


def test_a_network_on_disk(home, with_rembg, monkeypatch):
    for name in 'u2net', 'isnet-general-use', 'birefnet-general':  # the best of them last
        path = home / 'models' / name / f'{name}.onnx'
        path.parent.mkdir(parents=True)
        path.touch()
        assert choose_model() == (name, f'masks: {name}, a supervised network, found on disk ({path})')
    (home / 'u2net.onnx').touch()
    (home / 'models' / 'u2net' / 'u2net.onnx').unlink()
    assert rembg_file('u2net') == home / 'u2net.onnx'
    monkeypatch.delenv('U2NET_HOME')
    monkeypatch.setenv('REMBG_HOME', str(home))
    monkeypatch.setenv('XDG_DATA_HOME', str(home / 'absent'))
    assert rembg_file('u2net') is None and rembg_file('isnet-general-use') is not None


def test_weights_of_a_backbone(home, without, weights):
    without('rembg')
    assert choose_model('resnet18', weights) == (
        'feature_cues', f'masks: feature_cues of resnet18, {weights} (no supervised network: rembg is not installed)')
    cache = home.parent / 'torch' / 'hub' / 'checkpoints' / 'resnet18-f37072fd.pth'
    assert choose_model() == ('robust_background', (
        'masks: robust_background, which finds less (no supervised network: rembg is not installed; no ImageNet weights of '
        'resnet18: neither on disk nor available for download)'))
    assert not cache.exists()


def test_weights_that_can_not_be_had(home, without, tmp_path, weights):
    without('rembg')
    assert refusal(choose_model, 'resnet18', tmp_path / 'absent.pth') == (
        f'{tmp_path / "absent.pth"}: this checkpoint file does not exist')
    assert refusal(choose_model, 'resnet81').startswith('backbone must be one of ')


@pytest.mark.slow
def test_a_network_that_can_not_be_fetched(home, weights):
    """With the real package, whose import takes seconds."""
    for package in 'rembg', 'onnxruntime':
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'could not import {package}')
    assert choose_model('resnet18', weights) == ('feature_cues', (
        f'masks: feature_cues of resnet18, {weights} (no supervised network: isnet-general-use is neither on disk nor '
        'available for download)'))
    assert not any(entry.is_file() for entry in home.rglob('*'))


def test_script(home, without, tmp_path, weights):
    without('rembg')
    photograph(tmp_path / 'photographs' / 'a.jpg')
    out = tmp_path / 'mine'
    for flags, name in (((), 'robust_background'), (('--weights', weights), 'feature_cues')):
        results = make_masks(tmp_path / 'photographs', out, '--model', 'auto', *flags)
        assert results['model'] == name and mask_ids(out, name) == {'a'}
        assert f'masks: {name}' in (out / 'log_file.txt').read_text()
    options = yaml.safe_load((out / 'config_feature_cues.yml').read_text())['options']
    assert options['weights'] == str(weights) and options['backbone'] is None
