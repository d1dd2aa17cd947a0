"""What tests of `make mine` start from: weights of a backbone in a file, and a data set as own_images.py leaves it."""
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from helpers.toys import toy_input
from models.factory import get_model

MASKS = 'supervised_model'


@pytest.fixture(scope='session')
def own_weights(toys, tmp_path_factory):
    """A file with a state dict of a random ResNet-18 whose batch norms know images of `Toys`."""
    torch.manual_seed(3)
    backbone = get_model({'backbone': 'resnet18', 'head': 'none', 'kmeans_eval': True, 'model_kwargs': {}}).backbone
    for module in filter(lambda module: hasattr(module, 'momentum'), backbone.modules()):
        module.momentum = 1
    with torch.no_grad():
        backbone(torch.cat([toy_input(toys / 'Toys', f'val_{index:04d}') for index in range(6)]))
    path = tmp_path_factory.mktemp('own') / 'resnet18.pth'
    torch.save(backbone.state_dict(), path)
    return path


@pytest.fixture
def mine(toys, own_weights, tmp_path):
    """env.yml, the data set `mine` (16 images, masks) and network.yml, as own_images.py leaves them; returns env.yml's path.

    Features are small, 64 pixels to a side, as `small_features` has it."""
    source, folder = toys / 'Toys', tmp_path / 'datasets' / 'mine'
    (folder / 'sets').mkdir(parents=True)
    for part in 'images', f'saliency_{MASKS}':
        (folder / part).mkdir()
        for path in (source / part).glob('train_*'):
            shutil.copy(path, folder / part)
    ids = sorted(path.stem for path in (folder / 'images').iterdir())
    empty = folder / f'saliency_{MASKS}' / 'train_0002.png'
    mask = np.zeros(np.array(Image.open(empty)).shape, np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save(empty)
    (folder / 'sets' / 'trainaug.txt').write_text('\n'.join(ids))
    env = tmp_path / 'env.yml'
    env.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'datasets')}))
    (tmp_path / 'output' / 'mine').mkdir(parents=True)
    (tmp_path / 'output' / 'mine' / 'network.yml').write_text(yaml.safe_dump({
        'train_db_name': 'mine', 'train_db_kwargs': {'saliency': MASKS}, 'num_workers': 0, 'backbone': 'resnet18',
        'head': 'none', 'pretraining': str(own_weights)}))
    return str(env)


@pytest.fixture
def small_features(monkeypatch):
    from evaluation import own_images_config
    from evaluation.own_images_config import Features
    monkeypatch.setattr(own_images_config, 'READY', Features(stage=-1, hide_background=False, side=64, whiten=False))
