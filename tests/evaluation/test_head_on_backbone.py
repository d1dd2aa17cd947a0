"""`head: linear`: pre-training without a decoder, and everything that reads its checkpoint."""
import json

import pytest
import torch
from helpers.experiments import KMEANS, LINEAR, PRETRAINING

import kmeans
import linear_finetune
import main
from evaluation.learning_curve.scoring import BACKBONE, NETWORK, network_grids
from evaluation.model_loading import stored_network
from models.factory import get_model
from utils.checkpoint.kept import kept_path


def test_heads_are_convolutions_of_the_backbones_grid():
    torch.manual_seed(0)
    network = get_model({'backbone': 'resnet18', 'head': 'linear', 'model_kwargs': {'ndim': 5}}).eval()
    assert {key for key in network.state_dict() if not key.startswith('backbone.')} == {
        'head.weight', 'head.bias', 'classification_head.weight'}
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        grid, (embeddings, saliency) = network.backbone(images)[0], network.grid(images)
        grids = network_grids(network, images)
    want = torch.einsum('dc,chw->dhw', network.head.weight[:, :, 0, 0], grid) + network.head.bias[:, None, None]
    assert torch.allclose(embeddings[0], want, atol=1e-5)
    want = torch.einsum('c,chw->hw', network.classification_head.weight[0, :, 0, 0], grid)
    assert torch.allclose(saliency[0], want, atol=1e-5)
    assert torch.equal(grids.embedded[NETWORK], embeddings) and list(grids.linear) == [BACKBONE]


@pytest.mark.slow
def test_from_pretraining_to_scores(experiment, tmp_path):
    arguments = experiment({'head': 'linear', 'epochs': 1, 'keep_every': 1, 'model_kwargs.ndim': 6}, base=PRETRAINING)
    main.main([*arguments, '--amp', 'none'])
    folder = tmp_path / 'output' / 'small'
    checkpoint = folder / 'checkpoint.pth.tar'
    network = stored_network(kept_path(folder, 1))
    assert network.decoder is None and network.head.weight.shape == (6, 96, 1, 1)
    given = {'head': 'linear', 'pretraining': str(checkpoint), 'model_kwargs': {'ndim': 6}}
    kmeans.main([*experiment(given, 'kmeans', base=KMEANS), '--num_seeds', '1'])
    linear_finetune.main(experiment({'head': 'linear', 'pretraining': str(checkpoint), 'epochs': 1}, 'linear', base=LINEAR))
    scores = [json.loads((tmp_path / 'output' / name / 'results.json').read_text())['mIoU'] for name in ('kmeans', 'linear')]
    assert all(0 < score <= 100 for score in scores)
    best = torch.load(tmp_path / 'output' / 'linear' / 'best_model.pth.tar', weights_only=True)
    trained = torch.load(checkpoint, weights_only=True)['model']
    key = 'backbone.model.bn1.weight'
    assert best[key].equal(trained[f'module.model_q.{key}']) and 'linear.weight' in best
