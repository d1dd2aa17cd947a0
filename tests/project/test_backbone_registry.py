"""A backbone is one entry: a toy that only this test registers goes through all scripts, the export and torch.hub."""
import dataclasses
import json

import hubconf
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from helpers.checks import assert_same, refusal
from helpers.experiments import KMEANS, LINEAR, PRETRAINING, RETRIEVAL
from helpers.photographs import disc
from torch import nn

import export
import kmeans
import linear_finetune
import main
import retrieval
from evaluation.model_loading import stored_network
from models import backbones
from models.base import Backbone
from models.factory import get_model
from saliency.feature_cues import FeatureCues
from utils.config import create_config

KWARGS = {'output_stride': 4}
TOY = {'backbone': 'toy', 'backbone_kwargs': KWARGS}

class Toy(Backbone):
    """Two stages, `early` and `late`, of a stride that the output stride decides: 4 or 16."""

    def __init__(self, spec, output_stride):
        super().__init__(spec, output_stride)
        self.early = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 12, 3, stride=output_stride // 4, padding=1, bias=False), nn.BatchNorm2d(12))

    def grid(self, x, stage):
        early = self.early(x)
        return early if stage == 'early' else self.late(early)


def published():
    """Weights that come with the backbone, by the names of their sources."""
    def load():
        torch.manual_seed(5)
        return Toy(SPEC, 4).state_dict(), 'the toy shop'
    return {'shop://toy': load}


SPEC = backbones.BackboneSpec('toy', Toy, channels=12, output_strides=(4, 16), stages=('early', 'late'), frozen=('early',),
                              normalization=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), published=published, imagenet='shop://toy')


@pytest.fixture(autouse=True)
def toy():
    """Registered for the time of a test; torch.hub has modules of its own, in which it is registered too."""
    with hubconf._own_modules():
        from models import backbones as hubs
        hubs._registry['toy'] = SPEC
    backbones.register(SPEC)
    yield
    del backbones._registry['toy'], hubs._registry['toy']


def pretraining(experiment, name='small', **changes):
    main.main([*experiment({**TOY, 'freeze_layers': True, 'model_kwargs.ndim': 6, **changes}, name=name), '--amp', 'none'])


def load(folder):
    return torch.load(folder / 'checkpoint.pth.tar', weights_only=True)


@pytest.mark.slow
def test_resumes_inside_an_epoch(experiment, tmp_path, monkeypatch):
    """Stopped after a step that wrote a checkpoint, it ends in the weights of a run that was never stopped."""
    pretraining(experiment, 'whole', checkpoint_every=2)
    from contrastive.trainer import ContrastiveTrainer
    step = ContrastiveTrainer.train_step

    def stop_late(self, batch):
        if (self.epoch, self.step) == (1, 2):
            raise KeyboardInterrupt
        return step(self, batch)
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveTrainer, 'train_step', stop_late)
        with pytest.raises(SystemExit):
            pretraining(experiment, 'cut', checkpoint_every=2)
    assert load(tmp_path / 'output' / 'cut')['step'] == 2
    pretraining(experiment, 'cut', checkpoint_every=2)
    whole, cut = (load(tmp_path / 'output' / name) for name in ('whole', 'cut'))
    torch.manual_seed(PRETRAINING['seed'])
    start = get_model({**TOY, 'model_kwargs': {'ndim': 6}}).state_dict()
    for key, value in start.items():
        same = whole['model'][f'module.model_q.{key}'].equal(value)
        assert same == key.startswith('backbone.early.') or 'num_batches' in key, key
    for key in ('model', 'optimizer', 'random'):
        assert_same(whole[key], cut[key], key)


@pytest.mark.slow
def test_evaluations_export_and_hub(experiment, tmp_path):
    pretraining(experiment)
    checkpoint = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar'
    given = {**TOY, 'pretraining': str(checkpoint), 'model_kwargs': {'ndim': 6}}
    for features in ('embedding', 'early'):
        kmeans.main([*experiment({**given, 'kmeans_kwargs.features': features}, 'kmeans', base=KMEANS), '--num_seeds', '1'])
        assert 0 < json.loads((tmp_path / 'output' / 'kmeans' / 'results.json').read_text())['mIoU'] <= 100
    retrieval.main(experiment(given, 'retrieval', base=RETRIEVAL))
    assert 'mIoU' in json.loads((tmp_path / 'output' / 'retrieval' / 'results.json').read_text())
    linear = {'pretraining': str(checkpoint), **TOY}
    linear_finetune.main(experiment(linear, 'linear', base=LINEAR))
    best = tmp_path / 'output' / 'linear' / 'best_model.pth.tar'

    for weights in (checkpoint, best):  # the checkpoint says which backbone it is, best_model.pth.tar the config.yml beside it
        network = stored_network(weights).eval()
        assert isinstance(network.backbone, Toy) and network.backbone.output_stride == 4
        hub = hubconf.maskcontrast(str(weights))
        assert_same(dict(hub.state_dict()), dict(network.state_dict()))
        white = hubconf.preprocessing((32, 48), hub)(np.full((40, 40, 3), 255, np.uint8))
        assert torch.allclose(white, torch.full_like(white, 2.0))  # (1 - 0.5) / 0.25
    export.main(['--weights', str(best), '--out', str(tmp_path / 'toy.onnx'), '--size', '32', '48'])
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        wanted = network(images)
    got = onnxruntime.InferenceSession(str(tmp_path / 'toy.onnx')).run(None, {'images': images.numpy()})[0]
    assert np.abs(got - wanted.numpy()).max() < 1e-4 * wanted.abs().max()


@pytest.mark.slow
def test_published_weights(experiment, tmp_path):
    want = published()['shop://toy']()[0]
    network = get_model({**TOY, 'backbone_kwargs': {**KWARGS, 'pretraining': 'imagenet_classification'}})
    assert_same(dict(network.backbone.state_dict()), dict(want))
    given = {**TOY, 'head': 'none', 'pretraining': 'shop://toy', 'model_kwargs': ...}
    kmeans.main([*experiment(given, 'kmeans', base=KMEANS), '--num_seeds', '1'])
    assert json.loads((tmp_path / 'output' / 'kmeans' / 'results.json').read_text())['weights'] == 'shop://toy'


def test_saliency_by_its_features(tmp_path, monkeypatch):
    """Two stages of other strides than a ResNet's; the stride nearest to 8 is that of 4."""
    estimator = FeatureCues('toy')
    image = disc(60, 80)[0]
    finer, last = estimator.features(image)
    assert finer.shape == (8, 48, 64) and last.shape == (12, 48, 64) and (estimator(image) > 0.5).any()
    for stage, found in zip(('early', 'late'), (finer, last), strict=True):
        again = estimator.network.grids(estimator.batch(image), (stage,))[0][0].numpy()
        assert np.array_equal(again, found)
    monkeypatch.setitem(backbones._registry, 'toy', dataclasses.replace(SPEC, imagenet=None))
    assert refusal(FeatureCues, 'toy') == '--backbone toy: it has no published ImageNet weights: add --weights PATH'


def test_a_file_alone_is_recognised_where_that_is_unambiguous(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    torch.save(get_model({**TOY, 'num_classes': 3}).state_dict(), path)
    assert isinstance(stored_network(path).backbone, Toy)
    monkeypatch.setitem(backbones._registry, 'twin', dataclasses.replace(SPEC, name='twin'))
    assert 'fit toy and twin' in refusal(stored_network, path)
    assert stored_network(path, backbone='twin', output_stride=16).backbone.output_stride == 16
    (tmp_path / 'config.yml').write_text(yaml.safe_dump({'backbone': 'toy', 'backbone_kwargs': {'output_stride': 16}}))
    assert stored_network(path).backbone.output_stride == 16


def test_names_stages_and_strides_are_asked_of_the_registry(experiment):
    arguments = experiment({**TOY, 'kmeans_kwargs.features': 'late'}, base=KMEANS)
    files = [argument for argument in arguments if argument.endswith('.yml')]
    assert create_config(*files).backbone == 'toy'
    for changes, words in (({'kmeans_kwargs.features': 'layer4'}, "must be one of embedding, early, late, not 'layer4'"),
                           ({'backbone_kwargs': {'output_stride': 8}}, 'output_stride must be one of 4, 16 for backbone: toy'),
                           ({'backbone_kwargs': {'output_stride': 4, 'dilated': False}}, 'contradict'),
                           ({'backbone': 'tyo'}, "nearest: 'toy'")):
        experiment({**TOY, **changes}, base=KMEANS)
        assert words in refusal(create_config, *files)
