"""Evaluations of a backbone alone (`head: none`) against the plain way, with weights from every kind of source."""
import json

import cv2
import numpy as np
import pytest
import torch
from helpers.experiments import LINEAR, RESNET
from helpers.plain_evaluation import IMAGENET, plain_images, plain_iou
from helpers.plain_retrieval import NAMES, plain_class, plain_scores
from helpers.toys import IDS, RESOLUTION, plain_embedding, plain_score
from PIL import Image
from torch.nn import functional as F
from torchvision.models import resnet18

import eval as evaluation_script
import kmeans
import linear_finetune
import retrieval
from data.dataset import SegmentationDataset
from data.loaders import make_loader
from evaluation.evaluation_images import EvaluationImages
from evaluation.extraction import extract_prototypes
from models.factory import get_model

CPU, MASKS = torch.device('cpu'), 'supervised_model'
NETWORK = {'backbone': 'resnet18', 'head': 'none', 'kmeans_eval': True}
BASELINE = {**NETWORK, 'train_db_name': 'Toys', 'val_db_name': 'Toys', 'val_db_kwargs': {'batch_size': 5, 'saliency': MASKS},
            'num_workers': 0, 'transformation_kwargs': {'resolution': list(RESOLUTION)},
            'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': MASKS}}


@pytest.fixture(scope='module')
def weights():
    """A ResNet-18's state dict, with classifier."""
    torch.manual_seed(5)
    return resnet18(weights=None).state_dict()


@pytest.fixture
def source(weights, tmp_path, monkeypatch):
    """source(kind) makes a file of these weights and returns what `pretraining` has to be."""
    def make(kind):
        path = tmp_path / 'weights.pth'
        if kind == 'moco':
            torch.save({'state_dict': {f'module.encoder_q.{key}': value for key, value in weights.items()}}, path)
        elif kind == 'ours':  # of main.py
            backbone = {f'module.model_q.backbone.{key}': value for key, value in weights.items() if not key.startswith('fc.')}
            others = {f'module.model_k.{key}': torch.zeros(1) for key in backbone}
            torch.save({'model': {**backbone, **others, 'module.model_q.head.bias': torch.zeros(8)}, 'epoch': 1}, path)
        elif kind == 'torchvision':
            monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
            path = tmp_path / 'hub' / 'hub' / 'checkpoints' / 'resnet18-f37072fd.pth'  # where torchvision looks first
            path.parent.mkdir(parents=True)
            torch.save(weights, path)
            return 'torchvision://resnet18-IMAGENET1K_V1'
        else:
            torch.save(weights, path)
        return str(path)
    return make


@pytest.fixture(scope='module')
def network(weights):
    network = get_model(NETWORK).eval()
    network.backbone.load_state_dict({key: value for key, value in weights.items() if not key.startswith('fc.')})
    return network.to(memory_format=torch.channels_last)


def upsampled(network):
    """The plain network: an image's embedding at its own size, and no saliency."""
    return lambda image: (F.interpolate(network.backbone(image), RESOLUTION, mode='bilinear', align_corners=False), None)


def product_embedding(network, root, split, at_resolution):
    dataset = SegmentationDataset(root / 'Toys', split, MASKS, labels=True)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION, 10), 0, CPU, batch_size=5)
    return extract_prototypes(network, loader, CPU, 'none', 10, at_resolution)


@pytest.fixture(scope='module')
def embeddings(network, toys):
    """In the plain way, and the product's."""
    plain = plain_embedding(upsampled(network), toys / 'Toys', f'saliency_{MASKS}', normalization=IMAGENET)
    return plain, product_embedding(network, toys, 'val', False).prototypes


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['moco', 'ours', 'plain', 'torchvision'])
def test_kmeans(experiment, toys, embeddings, source, tmp_path, kind):
    kmeans.main([*experiment({'pretraining': source(kind)}, 'small', toys, BASELINE), '--num_seeds', '2'])
    plain, found = embeddings
    assert found.shape == (18, 512) and np.abs(found - np.stack([prototype for prototype, _, _ in plain])).max() < 1e-4
    results = json.loads((tmp_path / 'output' / 'small' / 'results.json').read_text())
    assert np.allclose(results['IoU_per_seed'], [plain_score(plain, found, 10, seed)[1] for seed in (1234, 1235)], atol=1e-9)


@pytest.mark.slow
def test_retrieval(experiment, toys, network, source, tmp_path):
    retrieval.main([*experiment({'pretraining': source('moco')}, 'small', toys, BASELINE), '--num_visualizations', '1'])
    folder = toys / 'Toys'
    ids = (folder / 'sets' / 'trainaug.txt').read_text().split()
    same = {'at_resolution': True, 'normalization': IMAGENET}
    database = plain_embedding(upsampled(network), folder, f'saliency_{MASKS}', ids, 'SegmentationClassAug', **same)
    queries = plain_embedding(upsampled(network), folder, f'saliency_{MASKS}', **same)
    found = {split: product_embedding(network, toys, split, True).prototypes for split in ('trainaug', 'val')}
    iou, _ = plain_scores(database, queries, found['trainaug'], found['val'], range(10))
    results = json.loads((tmp_path / 'output' / 'small' / 'results.json').read_text())
    assert np.allclose(list(results['IoU'].values()), iou, atol=1e-9) and list(results['IoU']) == NAMES
    assert sum(plain_class(mask, labels) > 0 for _, mask, labels in database) == results['database_segments']


@pytest.mark.slow
def test_linear_classifier(experiment, weights, source, shapes_root, tmp_path):
    arguments = experiment({**RESNET, 'head': 'none', 'pretraining': source('plain'), 'optimizer': 'adam', 'epochs': 3,
                            'optimizer_kwargs': {'lr': 0.05}}, base=LINEAR)
    linear_finetune.main(arguments)
    folder = tmp_path / 'output' / 'small'
    best = torch.load(folder / 'best_model.pth.tar', weights_only=True)
    assert best['linear.weight'].shape == (9, 512, 1, 1)
    assert all(torch.equal(value, weights[key.removeprefix('backbone.')]) for key, value in best.items()
               if key.startswith('backbone.'))
    network = get_model({**NETWORK, 'kmeans_eval': False, 'num_classes': 8}).eval()
    network.load_state_dict(best)
    predictions, labels = [], []
    for name, image, label in plain_images(shapes_root, IMAGENET):
        with torch.no_grad():
            features = F.interpolate(network.backbone(image), image.shape[2:], mode='bilinear', align_corners=False)
            prediction = network.linear(features)[0].argmax(0).numpy().astype(np.uint8)
        plain = cv2.resize(prediction, label.shape[::-1], interpolation=cv2.INTER_NEAREST)
        predictions.append(np.array(Image.open(folder / 'predictions' / f'{name}.png')))
        assert (plain == predictions[-1]).mean() > 0.999
        labels.append(label)
    results = json.loads((folder / 'results.json').read_text())
    assert np.allclose(list(results['IoU'].values()), plain_iou(predictions, labels), atol=1e-9)
    evaluation_script.main([*arguments, '--state-dict', str(folder / 'best_model.pth.tar')])
    again = json.loads((folder / 'eval' / 'best_model.pth.tar' / 'results.json').read_text())
    assert again['IoU'] == results['IoU']


def test_random_weights(experiment, toys, tmp_path, capsys):
    kmeans.main([*experiment({'pretraining': None}, 'small', toys, BASELINE), '--num_seeds', '1'])
    assert 'random weights' in capsys.readouterr().out
    assert len(list((tmp_path / 'output' / 'small' / 'predictions').iterdir())) == len(IDS)


@pytest.mark.slow
def test_mistakes(experiment, toys, source, user_error, tmp_path, weights, monkeypatch):
    def fails(changes, script=kmeans):
        return user_error(lambda: script.main(experiment(changes, 'small', toys, BASELINE)))
    path = source('plain')
    for script, key in ((kmeans, 'val_db_kwargs.saliency'), (retrieval, 'val_db_kwargs.saliency'),
                        (retrieval, 'retrieval_kwargs.saliency')):
        assert f'{key} must name' in fails({'pretraining': path, key: None}, script)
    assert 'saliency_none: the folder is missing' in fails({'pretraining': path, 'val_db_kwargs.saliency': 'none'})
    assert 'do not fit this network: missing backbone.' in fails({'pretraining': path, 'backbone': 'resnet50'})
    line = fails({'pretraining': 'torchvision://resnet50-IMAGENET1K_V1'})
    assert 'for backbone: resnet18 there are torchvision://resnet18-IMAGENET1K_V1' in line
    for ours in ({'model': {'module.model_q.head.bias': torch.zeros(8),
                            'module.model_q.backbone.conv1.weight': weights['conv1.weight']}, 'epoch': 1},
                 {'backbone.conv1.weight': weights['conv1.weight'], 'linear.bias': torch.zeros(8)}):
        torch.save(ours, path)
        assert 'do not fit this network: missing backbone.bn1.' in fails({'pretraining': path})
    torch.save({'state_dict': {'encoder.conv1.weight': weights['conv1.weight'], 'decoder.0.weight': torch.zeros(8)}}, path)
    assert 'left over backbone.decoder.0.weight, backbone.encoder.conv1.weight' in fails({'pretraining': path})
    assert "unknown name of weights, available: voc_supervised_pretrained" in fails({'pretraining': 'zoo://moco'})
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'empty'))
    for name in ('HTTPS_PROXY', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')  # nobody listens
    assert 'could not be downloaded' in fails({'pretraining': 'torchvision://resnet18-IMAGENET1K_V1'})
