"""Small real data sets and experiments for the tests."""
import copy

import pytest
import torch
import yaml
from devkits import broken, converted, originals  # noqa: F401 - fixtures
from toys import toy_checkpoint, toy_network, toys  # noqa: F401 - fixtures
from web import drive, server  # noqa: F401 - fixtures

from data.dataset import SegmentationDataset
from data.shapes import draw_shapes
from models.factory import get_model
from utils.errors import UserError

PRETRAINING = {
    'train_db_name': 'Shapes', 'train_db_kwargs': {'saliency': 'supervised_model'}, 'train_batch_size': 4,
    'num_workers': 0, 'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True, 'pretraining': None},
    'model_kwargs': {'ndim': 8, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
    'head': 'deeplab', 'freeze_layers': False, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8}, 'epochs': 2,
    'optimizer': 'sgd', 'scheduler': 'poly',
    'optimizer_kwargs': {'lr': 0.01, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'transformation_kwargs': {'crop_size': 32}, 'seed': 3,
}
KMEANS = {
    'val_db_name': 'Shapes', 'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'}, 'num_workers': 0,
    'transformation_kwargs': {'resolution': [32, 32]}, 'backbone': 'resnet18', 'head': 'deeplab', 'pretraining': None,
    'kmeans_eval': True, 'kmeans_kwargs': {'n_clusters': 4},
}
LINEAR = {
    'train_db_name': 'Shapes', 'val_db_name': 'Shapes', 'train_db_kwargs': {'split': 'trainaug', 'batch_size': 4},
    'val_db_kwargs': {'batch_size': 4}, 'num_workers': 0, 'transformation_kwargs': {'resolution': [40, 32]},
    'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True}, 'head': 'deeplab', 'freeze_batchnorm': 'all', 'epochs': 2,
    'optimizer': 'sgd', 'optimizer_kwargs': {'lr': 0.1, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'scheduler': 'step', 'scheduler_kwargs': {'lr_decay_rate': 0.1, 'lr_decay_epochs': [0]}, 'seed': 3,
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What was printed may hold file names that are no text, which can not be sent to the process that prints the report."""
    report = yield
    report.sections = [(name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections]
    return report


def assert_same(a, b, path=''):
    """Nested dicts and lists of tensors and values are equal bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f'{path}/{key}')
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f'{path}/{i}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def refusal(call, *arguments, **options):
    """The message of the `UserError` that the call raises, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message == caught.value.line()
    return message


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """A db_root with a small `Shapes`: 12 training and 6 validation images of about 64 x 64. Not to be written to."""
    root = tmp_path_factory.mktemp('datasets')
    draw_shapes(root / 'Shapes', train=12, val=6, size=64)
    return root


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory, shapes_root):
    """A pre-training checkpoint as main.py leaves it, of a random ResNet-18 whose batch norms know the images of `Shapes`."""
    torch.manual_seed(0)
    network = get_model({'backbone': 'resnet18', 'model_kwargs': {'ndim': 8}})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    dataset = SegmentationDataset(shapes_root / 'Shapes', 'trainaug')
    images = torch.stack([torch.from_numpy(dataset[index]['image'][:48, :48]) for index in range(len(dataset))])
    with torch.no_grad():
        network(images.permute(0, 3, 1, 2) / 64 - 2)
    state = {f'module.{part}.{key}': value for part in ('model_q', 'model_k') for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp('weights') / 'checkpoint.pth.tar'
    torch.save({'model': {**state, 'module.queue': torch.zeros(8, 8), 'module.queue_ptr': torch.zeros(1)}, 'epoch': 1}, path)
    return path


@pytest.fixture
def experiment(tmp_path, shapes_root):
    """Write env.yml and an experiment file and return the arguments that every script takes.

    experiment(changes, name='small', db_root=None, base=PRETRAINING): `changes` of `base` map keys, nested ones with a dot,
    to values; `...` as a value removes the key. Results are in tmp_path / 'output' / name.
    """
    def write(changes=None, name='small', db_root=shapes_root, base=PRETRAINING):
        content = copy.deepcopy(base)
        for key, value in (changes or {}).items():
            group, _, inner = key.rpartition('.')
            target = content.setdefault(group, {}) if group else content
            if value is ...:
                target.pop(inner, None)
            else:
                target[inner] = value
        env, exp = tmp_path / 'env.yml', tmp_path / f'{name}.yml'
        env.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(db_root)}))
        exp.write_text(yaml.safe_dump(content))
        return ['--config_env', str(env), '--config_exp', str(exp), '--device', 'cpu']
    return write


@pytest.fixture
def user_error(capsys):
    """user_error(call) runs `call`, which must end with exit code 2 and one line on stderr, and returns that line."""
    def check(call):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call()
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2
        assert len(lines) == 1 and lines[0].startswith('error: '), lines
        return lines[0]
    return check
