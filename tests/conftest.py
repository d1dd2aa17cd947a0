"""Small real data sets and experiments for the tests."""
import copy

import pytest
import yaml

from data.shapes import draw_shapes

PRETRAINING = {
    'train_db_name': 'Shapes', 'train_db_kwargs': {'saliency': 'supervised_model'}, 'train_batch_size': 4,
    'num_workers': 0, 'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True, 'pretraining': None},
    'model_kwargs': {'ndim': 8, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
    'head': 'deeplab', 'freeze_layers': False, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8}, 'epochs': 2,
    'optimizer': 'sgd', 'scheduler': 'poly',
    'optimizer_kwargs': {'lr': 0.01, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'transformation_kwargs': {'crop_size': 32}, 'seed': 3,
}


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """A db_root with a small `Shapes`: 12 training and 6 validation images of about 64 x 64. Not to be written to."""
    root = tmp_path_factory.mktemp('datasets')
    draw_shapes(root / 'Shapes', train=12, val=6, size=64)
    return root


@pytest.fixture
def experiment(tmp_path, shapes_root):
    """Write env.yml and an experiment file and return the arguments that every script takes.

    experiment(changes, name='small', db_root=None): `changes` maps keys, nested ones with a dot, to values; `...` as a
    value removes the key. Results are in tmp_path / 'output' / name.
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
