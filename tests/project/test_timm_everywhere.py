"""One line of YAML changes the backbone: small networks of timm, with random weights, go through all scripts, the export and
torch.hub."""
import json

import hubconf
import numpy as np
import onnxruntime
import pytest
import torch
from helpers.checks import assert_same, refusal
from helpers.experiments import KMEANS, LINEAR, RETRIEVAL

import export
import kmeans
import knn
import linear_finetune
import main
import retrieval
from contrastive.trainer import ContrastiveTrainer
from evaluation.model_loading import stored_network
from models.backbones import find_backbone
from models.factory import get_model

VIT, CONVNEXT, RESNET = 'timm/test_vit', 'timm/test_convnext', 'timm/test_resnet'
NEIGHBOURS = {**{key: value for key, value in KMEANS.items() if key not in ('kmeans_kwargs', 'val_db_kwargs')},
              'train_db_name': 'Shapes', 'knn_kwargs': {'k': 3}}
SETTINGS = {  # what changes in the experiment files, the first layer that learns, and features to cluster
    VIT: ({'backbone': VIT, 'backbone_kwargs': {}, 'head': 'linear', 'freeze_layers': 2}, 'blocks.2.', 'keys'),
    CONVNEXT: ({'backbone': CONVNEXT, 'backbone_kwargs': {'output_stride': 16}, 'head': 'linear', 'freeze_layers': 1,
                'model_kwargs': {'ndim': 6, 'upsample': True, 'use_classification_head': False}}, 'stages.1.', 'stages.2'),
    RESNET: ({'backbone': RESNET, 'backbone_kwargs': {'output_stride': 8}, 'head': 'deeplab', 'freeze_layers': True}, 'layer3.',
             'layer3')}


def load(path):
    return torch.load(path, weights_only=True)


def results(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture(params=SETTINGS)
def backbone(request):
    return request.param


def pretraining(experiment, backbone, name='small', epochs=2):
    changes = {**SETTINGS[backbone][0], 'model_kwargs.ndim': 6, 'checkpoint_every': 2, 'epochs': epochs}
    main.main([*experiment(changes, name=name), '--amp', 'none'])


@pytest.mark.slow
def test_resumes_inside_an_epoch(experiment, backbone, tmp_path, monkeypatch):
    """Stopped after a step that wrote a checkpoint, it ends in the weights of a run that was never stopped. What is frozen is
    as it was."""
    pretraining(experiment, backbone, 'whole')
    step = ContrastiveTrainer.train_step

    def stop_late(self, batch):
        if (self.epoch, self.step) == (1, 2):
            raise KeyboardInterrupt
        return step(self, batch)
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveTrainer, 'train_step', stop_late)
        with pytest.raises(SystemExit):
            pretraining(experiment, backbone, 'cut')
    pretraining(experiment, backbone, 'cut')
    whole, cut = (load(tmp_path / 'output' / name / 'checkpoint.pth.tar') for name in ('whole', 'cut'))
    for key in ('model', 'optimizer', 'random'):
        assert_same(whole[key], cut[key], key)
    torch.manual_seed(whole['seed'])
    network = get_model({'model_kwargs': {'ndim': 6}, **SETTINGS[backbone][0]})
    state = {key: value for key, value in network.state_dict().items() if key.startswith('backbone.')}
    learns = f'backbone.model.{SETTINGS[backbone][1]}'
    first = next(index for index, key in enumerate(state) if key.startswith(learns))
    same = {key: whole['model'][f'module.model_q.{key}'].equal(value) for key, value in state.items()}
    assert all(list(same.values())[:first])  # of others some hardly move, behind small layer scales
    assert not all(equal for key, equal in same.items() if key.startswith(learns))
    assert all(not same[key] for key in list(same)[first:] if key.endswith(('running_mean', 'num_batches_tracked')))


@pytest.mark.slow
@pytest.mark.parametrize('backbone', [VIT, CONVNEXT])  # most other tests have the ResNet
def test_evaluations_export_and_hub(experiment, backbone, tmp_path):
    pretraining(experiment, backbone, epochs=1)
    changes, _, stage = SETTINGS[backbone]
    checkpoint = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar'
    given = {**{key: value for key, value in changes.items() if key != 'freeze_layers'}, 'pretraining': str(checkpoint),
             'model_kwargs': changes.get('model_kwargs', {'ndim': 6})}
    for features in ('embedding', stage):
        kmeans.main([*experiment({**given, 'kmeans_kwargs.features': features}, 'kmeans', base=KMEANS), '--num_seeds', '1'])
        assert 0 < results(tmp_path / 'output' / 'kmeans')['mIoU'] <= 100
    retrieval.main([*experiment(given, 'retrieval', base=RETRIEVAL), '--num_visualizations', '0'])
    assert 'mIoU' in results(tmp_path / 'output' / 'retrieval')
    knn.main([*experiment(given, 'knn', base=NEIGHBOURS), '--num_visualizations', '0'])
    assert 'mIoU' in results(tmp_path / 'output' / 'knn')
    linear = {**given, 'transformation_kwargs.resolution': [48, 32], 'epochs': 1,
              'model_kwargs': {'use_classification_head': backbone == VIT}}
    linear_finetune.main(experiment(linear, 'linear', base=LINEAR))
    best = tmp_path / 'output' / 'linear' / 'best_model.pth.tar'
    network = stored_network(best)  # whose config.yml says which backbone it is
    assert network.backbone.name == backbone

    out = tmp_path / 'network.onnx'
    export.main(['--weights', str(checkpoint), '--out', str(out), '--size', '32', '48'])
    network, images = stored_network(checkpoint).eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        outputs = [output for output in network(images) if output is not None]
    session = onnxruntime.InferenceSession(str(out))
    names = ['embeddings', 'saliency'] if backbone == VIT else ['embeddings']  # which is without a saliency head
    assert [output.name for output in session.get_outputs()] == names
    for wanted, got in zip(outputs, session.run(None, {'images': images.numpy()}), strict=True):
        assert np.abs(got - wanted.numpy()).max() < 1e-4 * wanted.abs().max()
    hub = hubconf.maskcontrast(str(checkpoint))
    assert_same(dict(hub.state_dict()), dict(network.state_dict()))
    (mean, deviation), white = find_backbone(backbone).normalization, np.full((40, 40, 3), 255, np.uint8)
    white = hubconf.preprocessing((32, 48), hub)(white)[0, :, 0, 0]
    assert torch.allclose(white, (1 - torch.tensor(mean)) / torch.tensor(deviation))


@pytest.mark.slow
def test_mistakes_in_sizes(tmp_path):
    torch.save({'model': {f'module.model_q.{key}': value for key, value in get_model({
        'backbone': VIT, 'head': 'linear', 'model_kwargs': {'ndim': 6}}).state_dict().items()},
        'config': {'backbone': VIT}}, tmp_path / 'vit.pth')
    arguments = ['--weights', str(tmp_path / 'vit.pth'), '--out', str(tmp_path / 'vit.onnx')]
    with pytest.raises(SystemExit):
        export.main([*arguments, '--size', '40', '64'])
    assert not (tmp_path / 'vit.onnx').exists()
    hub = hubconf.maskcontrast(str(tmp_path / 'vit.pth'))
    with pytest.raises(ValueError, match='40 x 64 pixels must be multiples of 16, the patch of backbone: timm/test_vit'):
        hubconf.preprocessing((40, 64), hub)
    del hub
    torch.save({'backbone.conv1.weight': torch.zeros(2), 'linear.bias': torch.zeros(3)}, tmp_path / 'other.pth')
    assert 'timm/<name>' in refusal(stored_network, tmp_path / 'other.pth')
