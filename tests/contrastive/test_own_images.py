"""From a folder of photographs to a sheet of clusters: `own_images.py`, `own_clusters.py` and `make mine`."""
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import contrastive.own_images_config
import own_clusters
import own_images
from contrastive.own_images_config import IMAGENET, initial_weights, training_settings
from utils.config import create_config
from utils.config.keys import PRETRAIN

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def few_steps(monkeypatch):
    """Two steps instead of hundreds."""
    monkeypatch.setattr(contrastive.own_images_config, 'STEPS', {'cpu': 2, 'other': 2})
    monkeypatch.setattr(contrastive.own_images_config, 'EPOCHS', 1)


@pytest.fixture
def env(tmp_path):
    path = tmp_path / 'env.yml'
    path.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'datasets')}))
    return str(path)


@pytest.fixture
def photographs(shapes_root, tmp_path):
    folder = tmp_path / 'my photographs'
    (folder / 'second day').mkdir(parents=True)
    for number in range(5):
        image = shapes_root / 'Shapes' / 'images' / f'train_000{number}.jpg'
        shutil.copy(image, folder / 'second day' / f'{number}.jpg' if number == 4 else folder / f'photo {number}.jpg')
    return folder


@pytest.fixture
def train(env, photographs):
    def call(*flags):
        own_images.main(['--config_env', env, '--images', str(photographs), '--device', 'cpu', *flags])
    return call


def ids_of(tmp_path):
    return (tmp_path / 'datasets' / 'mine' / 'sets' / 'trainaug.txt').read_text().splitlines()


@pytest.mark.slow
def test_from_a_folder_to_a_sheet(few_steps, train, env, photographs, tmp_path, capsys):
    train('--weights', 'none')
    output = tmp_path / 'output'
    said = capsys.readouterr().out
    ids = ids_of(tmp_path)
    assert 3 <= len(ids) <= 5 and f'{len(ids)} images on cpu: resnet18' in said
    assert f'{len(ids)} images on cpu' in (output / 'mine' / 'log_file.txt').read_text()
    p = create_config(env, output / 'mine' / 'mine.yml', PRETRAIN)
    assert p.train_batch_size == len(ids) and p.backbone_kwargs.pretraining is None
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    results = json.loads((output / 'mine_clusters' / 'results.json').read_text())
    assert results['n_clusters'] == 3 and set(results['clusters']) == set(ids) and set(results['clusters'].values()) <= {1, 2}
    assert results['weights'] == str(output / 'mine' / 'checkpoint.pth.tar')
    for name in ids:
        mask = np.array(Image.open(tmp_path / 'datasets' / 'mine' / 'saliency_robust_background' / f'{name}.png')) == 255
        shown = np.array(Image.open(output / 'mine_clusters' / 'predictions' / f'{name}.png'))
        assert set(np.unique(shown)) == {0, results['clusters'][name]}
        assert (shown > 0).mean() == pytest.approx(mask.mean(), abs=0.1)
        assert (output / 'mine_clusters' / 'visualization' / f'{name}.png').is_file()
    assert np.asarray(Image.open(output / 'mine_clusters' / 'clusters.png')).shape[0] == 240  # two rows

    capsys.readouterr()
    train()  # the same, with weights as they were begun with
    assert 'This run had finished' in capsys.readouterr().out and not (output / 'mine.old-1').exists()
    (output / 'mine' / 'mine.yml').write_text('a: [')  # an edit is not kept, nor is what was trained lost
    train('--weights', 'none')
    assert (output / 'mine.old-1' / 'checkpoint.pth.tar').is_file()


@pytest.mark.slow
def test_other_photographs_are_trained_on_anew(few_steps, train, photographs, tmp_path):
    """Also where their number, and so the settings, are the same."""
    train('--weights', 'none', '--seed', '5')
    first, ids = torch.load(tmp_path / 'output' / 'mine' / 'checkpoint.pth.tar', weights_only=True), ids_of(tmp_path)
    assert first['seed'] == 5
    source, = photographs.rglob(f'{Path(ids[0]).name}.jpg')
    image = Image.open(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(source)
    train('--weights', 'none', '--seed', '5')
    assert ids_of(tmp_path) == ids and (tmp_path / 'output' / 'mine.old-1' / 'checkpoint.pth.tar').is_file()
    second = torch.load(tmp_path / 'output' / 'mine' / 'checkpoint.pth.tar', weights_only=True)
    assert second['epoch'] == first['epoch']
    assert not torch.equal(second['model']['module.queue'], first['model']['module.queue'])


@pytest.mark.slow
def test_masks_of_two_models_that_leave_out_other_photographs(few_steps, train, env, tmp_path):
    train('--weights', 'none')
    ids, folder = ids_of(tmp_path), tmp_path / 'datasets' / 'mine'
    shutil.copytree(folder / 'saliency_robust_background', folder / 'saliency_another')
    (folder / 'saliency_robust_background' / f'{ids[1]}.png').unlink()
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    results = json.loads((tmp_path / 'output' / 'mine_clusters' / 'results.json').read_text())
    assert set(results['clusters']) == set(ids) - {ids[1]}


@pytest.mark.slow
def test_without_a_network_connection_training_starts_from_random_weights(few_steps, train, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    train()
    assert 'no ImageNet weights' in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / 'output' / 'mine' / 'mine.yml').read_text())['backbone_kwargs']['pretraining'] is None


@pytest.mark.parametrize('weights', ['none', IMAGENET])
@pytest.mark.parametrize('images', [2, 15, 16, 60, 499, 1999, 2000, 30000])
@pytest.mark.parametrize('kind', ['cpu', 'cuda'])
def test_settings_are_valid_for_any_number_of_images(env, tmp_path, images, kind, weights):
    settings, reasons = training_settings('mine', 'u2net', images, torch.device(kind))
    more, why = initial_weights(weights, settings, None)
    settings |= more
    path = tmp_path / 'mine.yml'
    path.write_text(yaml.safe_dump(settings))
    p = create_config(env, path, PRETRAIN)
    steps = p.epochs * (images // p.train_batch_size)
    assert p.train_batch_size <= images and steps >= contrastive.own_images_config.STEPS['cpu' if kind == 'cpu' else 'other']
    assert p.epochs >= 10 and f'{steps} steps' in reasons[1] and f'{images} images on {kind}' in reasons[0]
    assert p.freeze_layers == (weights == IMAGENET) and ('ImageNet' in why) == (weights == IMAGENET)
    queue = p.moco_kwargs.K
    assert queue == p.train_batch_size or queue <= images / 4
    assert initial_weights('auto', training_settings('mine', 'u2net', images, torch.device(kind))[0], settings)[0] == more
    assert p.backbone == ('resnet50' if kind == 'cuda' and images >= 2000
                                                                       else 'resnet18')


def test_mistakes(few_steps, train, env, photographs, tmp_path, user_error):
    assert 'config.yml could not be read' in user_error(lambda: own_clusters.main(['--config_env', env]))
    assert '--clusters: must be an integer' in user_error(lambda: own_clusters.main(['--config_env', env, '--clusters', '0']))
    for name in ('../mine', '', '..', 'Shapes', 'VOCSegmentation', '.x'):
        assert 'use letters, digits' in user_error(lambda name=name: train('--name', name))
    for clusters in '0', '6':
        line = user_error(lambda clusters=clusters: train('--clusters', clusters))
        assert line.endswith(f'--clusters must be from 1 to 254, and no more than there are images (5), not {clusters}')
    assert not (tmp_path / 'output').exists() and not (tmp_path / 'datasets').exists()
    for path in photographs.rglob('*.jpg'):
        if path.name != 'photo 0.jpg':
            path.unlink()
    assert 'too few to contrast' in user_error(lambda: train('--weights', 'none'))
    assert not (tmp_path / 'output' / 'mine' / 'mine.yml').exists()


def test_make_mine_hands_names_with_spaces_on():
    def make(*words):
        return subprocess.run(['make', '-C', str(TOP), '-n', '-o', '.venv/installed', 'mine', *words], capture_output=True,
                              text=True, check=True).stdout
    said = make('IMAGES=/a b/c', 'CLUSTERS=7')
    assert '--images "$IMAGES" --name "mine"' in said and said.count('--clusters "7"') == 2
    assert '--clusters' not in make('IMAGES=x')
    process = subprocess.run(['make', '-C', str(TOP), '-o', '.venv/installed', 'mine'], capture_output=True, text=True)
    assert process.returncode == 2 and 'make mine IMAGES=DIR' in process.stderr
