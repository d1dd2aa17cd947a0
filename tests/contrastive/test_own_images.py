"""From a folder of photographs to a sheet of clusters: `own_images.py`, `own_clusters.py` and `make mine`."""
import csv
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.own import own_weights  # noqa: F401 - a fixture
from PIL import Image

import contrastive.own_images_config
import own_clusters
import own_images
import segment
from contrastive.own_images_config import TRAIN_FROM, initial_settings, training_settings, trains
from contrastive.own_weights import IMAGENET, Weights, choose_weights
from models.backbones import find_backbone
from models.factory import get_model
from utils.config import create_config
from utils.config.keys import PRETRAIN
from utils.errors import UserError

TOP = Path(__file__).resolve().parents[2]
RANDOM, PUBLISHED = Weights('resnet18', None, ''), Weights('resnet18', find_backbone('resnet18').imagenet, '')


@pytest.fixture
def one_step(monkeypatch):
    """One step instead of hundreds."""
    monkeypatch.setattr(contrastive.own_images_config, 'STEPS', {'cpu': 1, 'other': 1})
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
def begin(env, photographs):
    def call(*flags, images=photographs):
        own_images.main(['--config_env', env, '--images', str(images), '--device', 'cpu', *flags])
    return call


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No weights in PyTorch's cache, whose folder is returned, and none to be fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


def ids_of(tmp_path):
    return (tmp_path / 'datasets' / 'mine' / 'sets' / 'trainaug.txt').read_text().splitlines()


@pytest.mark.slow
def test_weights_at_hand_need_no_training(begin, env, own_weights, photographs, tmp_path, capsys):  # noqa: F811
    output = tmp_path / 'output'
    begin('--weights', str(own_weights))
    said, ids = capsys.readouterr().out, ids_of(tmp_path)
    assert f'weights: resnet18 from {own_weights}, as requested' in said
    assert f'no training: these weights tell {len(ids)} images' in said
    assert sorted(path.name for path in (output / 'mine').iterdir()) == ['log_file.txt', 'network.yml']
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    results = json.loads((output / 'mine_clusters' / 'results.json').read_text())
    assert results['n_clusters'] == 3 and set(results['clusters']) == set(ids) and set(results['clusters'].values()) <= {1, 2}
    assert results['weights'] == str(own_weights)
    for name in ids:
        mask = np.array(Image.open(tmp_path / 'datasets' / 'mine' / 'saliency_feature_cues' / f'{name}.png')) == 255
        shown = np.array(Image.open(output / 'mine_clusters' / 'predictions' / f'{name}.png'))
        assert np.array_equal(shown, mask * np.uint8(results['clusters'][name]))
        assert (output / 'mine_clusters' / 'visualization' / f'{name}.png').is_file()
    assert np.asarray(Image.open(output / 'mine_clusters' / 'clusters.png')).shape[0] == 240  # two rows
    assert 'background visible, side 320' in capsys.readouterr().out

    # The folder grows: masks and features of the new one alone.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'datasets' / 'mine').glob('saliency_*/**/*.png')}
    source, = photographs.rglob(f'{Path(ids[0]).name}.jpg')
    Image.open(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photographs / 'mirrored.jpg')
    begin()  # with the same weights
    assert {path: path.stat().st_mtime_ns for path in before} == before and 'mirrored' in ids_of(tmp_path)
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    said = capsys.readouterr().out
    assert f'({own_weights})' in said and f'{len(ids)} of {len(ids) + 1} images are already saved' in said

    # The same photographs as new ones: masks and clusters are the same.
    begin('--segment')
    segment.main(['--config_env', env, '--clusters', 'mine_clusters', '--images', str(photographs), '--device', 'cpu'])
    results = json.loads((output / 'mine_clusters' / 'results.json').read_text())
    with open(output / 'mine_segment' / photographs.name / 'segments.csv', newline='') as file:
        rows = {Path(row['file']).with_suffix('').as_posix(): row['cluster'] for row in csv.DictReader(file)}
    assert len(rows) == 6 and {name: int(cluster) for name, cluster in rows.items() if cluster} == results['clusters']


@pytest.mark.slow
def test_training_from_random_weights(one_step, begin, env, tmp_path, capsys):
    output = tmp_path / 'output'
    begin('--weights', 'none')
    said, ids = capsys.readouterr().out, ids_of(tmp_path)
    assert 3 <= len(ids) <= 5 and f'{len(ids)} images on cpu: resnet18' in said
    assert 'a network is trained, since there are no weights' in said
    assert f'{len(ids)} images on cpu' in (output / 'mine' / 'log_file.txt').read_text()
    p = create_config(env, output / 'mine' / 'mine.yml', PRETRAIN)
    assert p.train_batch_size == len(ids) and p.backbone_kwargs.pretraining is None
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    assert 'layer3 of resnet18' in (said := capsys.readouterr().out) and 'background hidden, side 192' in said
    results = json.loads((output / 'mine_clusters' / 'results.json').read_text())
    assert results['weights'] == str(output / 'mine' / 'checkpoint.pth.tar') and set(results['clusters']) == set(ids)

    begin('--weights', 'none')  # the same
    assert 'This run has finished' in capsys.readouterr().out and not (output / 'mine.old-1').exists()
    (output / 'mine' / 'mine.yml').write_text('a: [')  # an edit is not kept, nor is what was trained lost
    begin('--weights', 'none')
    assert (output / 'mine.old-1' / 'checkpoint.pth.tar').is_file()


@pytest.mark.slow
def test_other_photographs_are_trained_on_anew(one_step, begin, own_weights, photographs, tmp_path, monkeypatch):  # noqa: F811
    """Also where their number, and so the settings, are the same."""
    flags = '--weights', str(own_weights), '--train', '1', '--seed', '5'
    begin(*flags)
    first, ids = torch.load(tmp_path / 'output' / 'mine' / 'checkpoint.pth.tar', weights_only=True), ids_of(tmp_path)
    assert first['seed'] == 5 and first['config']['backbone_kwargs']['state_dict'] == str(own_weights)
    network = yaml.safe_load((tmp_path / 'output' / 'mine' / 'network.yml').read_text())
    assert network['from_random_weights'] is False and network['head'] == 'deeplab'
    assert torch.equal(first['model']['module.model_q.backbone.conv1.weight'],
                       torch.load(own_weights, weights_only=True)['conv1.weight'])
    source, = photographs.rglob(f'{Path(ids[0]).name}.jpg')
    image = Image.open(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(source)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # which the flag would leave behind
    try:
        begin(*flags, '--deterministic')
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert ids_of(tmp_path) == ids and (tmp_path / 'output' / 'mine.old-1' / 'checkpoint.pth.tar').is_file()
    second = torch.load(tmp_path / 'output' / 'mine' / 'checkpoint.pth.tar', weights_only=True)
    assert second['epoch'] == first['epoch'] and (second['model']['module.queue'] != first['model']['module.queue']).any()


@pytest.mark.slow
def test_masks_of_two_models_that_leave_out_other_photographs(begin, env, own_weights, tmp_path):  # noqa: F811
    begin('--weights', str(own_weights))
    ids, folder = ids_of(tmp_path), tmp_path / 'datasets' / 'mine'
    shutil.copytree(folder / 'saliency_feature_cues', folder / 'saliency_another')
    (folder / 'saliency_feature_cues' / f'{ids[1]}.png').unlink()
    own_clusters.main(['--config_env', env, '--clusters', '2', '--device', 'cpu'])
    results = json.loads((tmp_path / 'output' / 'mine_clusters' / 'results.json').read_text())
    assert set(results['clusters']) == set(ids) - {ids[1]}


@pytest.mark.slow
def test_without_weights_training_starts_from_random_ones(one_step, begin, tmp_path, capsys):
    begin('--weights', 'none')
    said = capsys.readouterr().out
    assert 'weights: random, as requested' in said and 'masks: robust_background' in said
    assert yaml.safe_load((tmp_path / 'output' / 'mine' / 'mine.yml').read_text())['backbone_kwargs']['pretraining'] is None


@pytest.mark.slow
def test_which_weights_are_chosen(offline, own_weights, tmp_path):  # noqa: F811
    def line(asked, *backbones):
        return choose_weights(asked, tmp_path, *backbones)
    assert line('auto').backbone == 'timm/tf_efficientnet_lite0'  # of a Python package, without a network connection
    assert 'neither on disk nor available for download' in line('auto').why
    assert (line('auto', ['resnet50']).source, line('auto', ['resnet50']).backbone) == (None, 'resnet50')
    with pytest.raises(UserError, match='--weights imagenet_classification: those of resnet18 and resnet50 are neither'):
        line(IMAGENET)
    # In PyTorch's cache, under the name that torchvision gives them
    torch.save(get_model({'backbone': 'resnet50', 'head': 'none', 'kmeans_eval': True}).backbone.state_dict(),
               offline / 'resnet50-0676ba61.pth')
    assert line('auto') == Weights('resnet50', 'torchvision://resnet50-IMAGENET1K_V1',
                                   'weights: resnet50 of ImageNet, found on disk')
    shutil.copy(own_weights, offline / 'resnet18-f37072fd.pth')
    assert line('auto').backbone == line(IMAGENET).backbone == 'resnet18'
    (offline / 'resnet18-f37072fd.pth').write_bytes(b'cut off')
    assert line('auto').backbone == 'resnet50'
    assert line('none').source is None
    found = line('torchvision://resnet50-IMAGENET1K_V1')
    assert (found.backbone, found.initial()) == ('resnet50', {'pretraining': IMAGENET})
    # Files
    found = line(str(own_weights))
    assert (found.backbone, found.source) == ('resnet18', str(own_weights))
    assert found.initial() == {'pretraining': None, 'state_dict': str(own_weights)}
    moco = tmp_path / 'moco.pth.tar'
    torch.save({'state_dict': {f'module.encoder_q.{key}': value for key, value in
                               torch.load(own_weights, weights_only=True).items()}}, moco)
    assert line(str(moco)).initial() == {'pretraining': 'imagenet_moco', 'moco_state_dict': str(moco)}
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'odd.pth')
    with pytest.raises(UserError, match='match neither resnet18 nor resnet50'):
        line(str(tmp_path / 'odd.pth'))
    for asked in ('nothing.pth', 'atuo'):
        with pytest.raises(UserError, match=f'--weights {asked} is neither a file nor one of'):
            line(asked)
    for asked in 'torchvision://resnet18-V9', 'torchvision://resnet18: name the backbone and its weights':
        with pytest.raises(UserError, match=f'--weights {asked}'):
            line(asked.partition(': ')[0])
    with pytest.raises(UserError, match='--weights timm://no_such_model'):
        line('timm://no_such_model')


def test_what_makes_the_masks(tmp_path, monkeypatch):
    given = Weights('resnet18', '/weights.pth', '')
    cues = {'model': 'feature_cues', 'backbone': 'resnet18', 'weights': '/weights.pth'}
    assert own_images.choose_masks(None, given)[0] == cues
    for asked in (None, 'auto'):
        assert own_images.choose_masks(asked, RANDOM)[0] == {'model': 'robust_background'}
    with pytest.raises(UserError, match='--model feature_cues needs weights'):
        own_images.choose_masks('feature_cues', RANDOM)
    if all(map(importlib.util.find_spec, ('rembg', 'onnxruntime'))):
        monkeypatch.setenv('U2NET_HOME', str(tmp_path))
        (tmp_path / 'u2net.onnx').touch()
        masks, why = own_images.choose_masks('auto', given)
        assert masks == {'model': 'u2net'} and 'found on disk' in why


def test_when_a_network_is_trained():
    assert [trains('auto', images, PUBLISHED)[0] for images in (2, TRAIN_FROM - 1, TRAIN_FROM)] == [False, False, True]
    assert trains('auto', 2, RANDOM)[0] and trains('1', 2, PUBLISHED)[0] and not trains('0', 10 ** 6, PUBLISHED)[0]
    with pytest.raises(UserError, match='--train 0: random weights'):
        trains('0', 60, RANDOM)


@pytest.mark.parametrize('weights', [RANDOM, PUBLISHED])
@pytest.mark.parametrize('images', [2, 15, 16, 60, 499, 1999, 2000, 30000])
@pytest.mark.parametrize('kind', ['cpu', 'cuda'])
def test_settings_are_valid_for_any_number_of_images(env, tmp_path, images, kind, weights):
    settings, reasons = training_settings('mine', 'u2net', images, torch.device(kind))
    weights = Weights(settings['backbone'], weights.source and find_backbone(settings['backbone']).imagenet, '')
    more, why = initial_settings(weights, settings, None)
    path = tmp_path / 'mine.yml'
    path.write_text(yaml.safe_dump({**settings, **more}))
    p = create_config(env, path, PRETRAIN)
    steps = p.epochs * (images // p.train_batch_size)
    assert p.train_batch_size <= images and steps >= contrastive.own_images_config.STEPS['cpu' if kind == 'cpu' else 'other']
    assert p.epochs >= 10 and f'{steps} steps' in reasons[1] and f'{images} images on {kind}' in reasons[0]
    given = weights.source is not None
    assert p.freeze_layers == given and ('IMAGENET' in why) == given and ('random' in why) == (not given)
    queue = p.moco_kwargs.K
    assert queue == p.train_batch_size or queue <= images / 4
    # A run that began with random ones goes on with them, though there are others by now.
    begun = {**settings, **initial_settings(Weights(weights.backbone, None, ''), settings, None)[0]}
    assert {**settings, **initial_settings(weights, settings, begun)[0]} == begun
    assert p.backbone == ('resnet50' if kind == 'cuda' and images >= 2000 else 'resnet18')
    assert training_settings('mine', 'u2net', images, torch.device(kind), 'resnet50')[0]['backbone'] == 'resnet50'


@pytest.mark.slow
def test_mistakes(one_step, begin, env, photographs, tmp_path, user_error):
    assert 'run own_images.py --name mine first' in user_error(lambda: own_clusters.main(['--config_env', env]))
    assert 'make clusters of this name first' in user_error(lambda: begin('--segment'))
    for name in ('../mine', '', '..', 'Shapes', 'VOCSegmentation', '.x'):
        assert 'use letters, digits' in user_error(lambda name=name: begin('--name', name))
    for clusters in '0', '6', 'many':
        line = user_error(lambda clusters=clusters: begin('--clusters', clusters))
        assert line.endswith(f'--clusters must be auto or from 1 to 254, and no more than there are images (5), not {clusters}')
    assert '--train 0: random weights' in user_error(lambda: begin('--weights', 'none', '--train', '0'))
    assert not (tmp_path / 'output').exists() and not (tmp_path / 'datasets').exists()
    for path in photographs.rglob('*.jpg'):
        if path.name != 'photo 0.jpg':
            path.unlink()
    assert 'too few to contrast' in user_error(lambda: begin('--weights', 'none', '--clusters', 'auto'))
    assert not (tmp_path / 'output' / 'mine' / 'mine.yml').exists()


def test_make_hands_names_with_spaces_on():
    def make(*words):
        return subprocess.check_output(['make', '-C', str(TOP), '-n', '-o', '.venv/installed', *words], text=True)
    said = make('mine', 'IMAGES=/a b/c', 'CLUSTERS=7', 'WEIGHTS=/w w.pth', 'NAMES=/n n.yml', 'TRAIN=1')
    assert '--images "$IMAGES" --name "mine"' in said and said.count('--clusters "7"') == 2
    assert '--weights "$WEIGHTS" --train "1"' in said and said.count('--names "$NAMES"') == 1
    assert not any(flag in make('mine', 'IMAGES=x') for flag in ('--clusters', '--weights', '--train', '--names'))
    out = make('segment', 'IMAGES=/a b/c', 'NAME=birds')
    assert out.count('--images "$IMAGES"') == 2 and '--name "birds" --segment' in out and '--clusters "birds_clusters"' in out
    for words, line in ((['mine'], 'make mine IMAGES=DIR'), (['segment'], 'make segment IMAGES=DIR'),
                        *(([it, 'IMAGES=x', 'NAMES=/n n'], 'NAMES=/n n: there is no such file') for it in ['mine', 'segment'])):
        process = subprocess.run(['make', '-C', str(TOP), '-o', '.venv/installed', *words], capture_output=True, text=True)
        assert process.returncode == 2 and line in process.stderr
