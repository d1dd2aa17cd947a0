"""knn.py and its parts against brute force: every patch compared with every other in float64, one at a time."""
import json

import cv2
import numpy as np
import pytest
import torch
from helpers.experiments import RESNET, TOYS_KMEANS
from helpers.plain_evaluation import HALF, IMAGENET
from helpers.plain_retrieval import NAMES
from helpers.toys import RESOLUTION, toy_input
from PIL import Image
from torch.nn import functional as F

import knn
from evaluation.nearest_patches import PatchMemory, patch_histograms, sample_patches
from models.factory import get_model

TOYS_KNN = {**TOYS_KMEANS, 'train_db_name': 'Toys',
            'knn_kwargs': {'memory_size': None, 'k': 7, 'temperature': 0.1, 'block': 13}}
CLASSES = 10


@pytest.fixture
def run(experiment, toys, toy_checkpoint, tmp_path):
    """run(changes, ...) runs knn.py and returns its results and their folder."""
    def call(changes=None, root=toys, flags=('--num_visualizations', '2')):
        knn.main([*experiment({'pretraining': str(toy_checkpoint), **(changes or {})}, 'small', root, TOYS_KNN), *flags])
        folder = tmp_path / 'output' / 'small'
        return json.loads((folder / 'results.json').read_text()), folder
    return call


# Parts


def test_labels_of_patches():
    rng = np.random.default_rng(0)
    for shape, (h, w) in (((12, 8), (3, 4)), ((11, 7), (4, 3)), ((5, 5), (5, 5))):
        labels = rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8)
        expected = np.zeros((h, w, 4), int)
        for row in range(shape[0]):
            for column in range(shape[1]):
                if labels[row, column] != 255:
                    expected[row * h // shape[0], column * w // shape[1], labels[row, column]] += 1
        assert (patch_histograms(labels, (h, w), 4) == expected.reshape(-1, 4)).all()


def test_rare_classes_are_remembered_first():
    histograms = np.zeros((100, 3), int)
    histograms[:90, 0], histograms[90:96, 1] = 4, 4  # the last four are void
    assert (sample_patches(histograms, None, np.random.default_rng(0)) == np.arange(96)).all()
    assert (sample_patches(histograms, 96, np.random.default_rng(0)) == np.arange(96)).all()
    found = [sample_patches(histograms, 12, np.random.default_rng(seed)) for seed in range(50)]
    assert all(len(kept) == 12 and (np.diff(kept) > 0).all() and kept[-1] < 96 for kept in found)
    assert np.mean([(kept >= 90).mean() for kept in found]) > 0.25  # of all patches they are 6%
    assert (sample_patches(histograms, 12, np.random.default_rng(3)) == found[3]).all()


def plain_soft_labels(queries, features, labels, k, temperature):
    result = []
    for query in queries.astype(float):
        products = features.astype(float) @ query
        nearest = np.argsort(-products)[:k]
        weights = np.exp(products[nearest] / temperature)
        result.append(weights @ labels[nearest] / weights.sum())
    return np.stack(result)


@pytest.mark.parametrize('block', [1, 3, 10, 64, 1000])
@pytest.mark.parametrize('k', [1, 5, 64, 80])
def test_soft_labels(block, k):
    torch.manual_seed(0)
    features, queries = (F.normalize(torch.randn(count, 6), dim=1) for count in (64, 29))
    labels = torch.rand(64, 4).softmax(1)
    found = PatchMemory(features, labels, k, 0.05, block).soft_labels(queries)
    expected = plain_soft_labels(queries.numpy(), features.numpy(), labels.numpy(), k, 0.05)
    assert np.abs(found.numpy() - expected).max() < 1e-5


# The script


def plain_patches(network, folder, name, normalization):
    with torch.no_grad():
        grid = network.grid(toy_input(folder, name, normalization))[0][0]
    vectors = grid.flatten(1).t().double().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), grid.shape[1:]


def plain_labels(labels, grid):
    """Share of each class in each patch, NaN where all is void. labels: at the network's input size."""
    H, W = labels.shape
    shares = np.full((*grid, CLASSES), np.nan)
    for row in range(grid[0]):
        for column in range(grid[1]):
            part = labels[row * H // grid[0]:(row + 1) * H // grid[0], column * W // grid[1]:(column + 1) * W // grid[1]]
            part = part[part != 255]
            if part.size:
                shares[row, column] = np.bincount(part, minlength=CLASSES) / part.size
    return shares.reshape(-1, CLASSES)


def plain_knn(network, folder, k, temperature, normalization=HALF):
    """The prediction for each image of val, and IoU in percent."""
    features, shares = [], []
    for name in (folder / 'sets' / 'trainaug.txt').read_text().split():
        vectors, grid = plain_patches(network, folder, name, normalization)
        labels = np.array(Image.open(folder / 'SegmentationClassAug' / f'{name}.png'))
        labels = cv2.resize(labels, RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST)
        features.append(vectors)
        shares.append(plain_labels(labels, grid))
    features, shares = np.concatenate(features), np.concatenate(shares)
    known = ~np.isnan(shares[:, 0])
    predictions, hits, union = {}, np.zeros(CLASSES), np.zeros(CLASSES)
    for name in (folder / 'sets' / 'val.txt').read_text().split():
        queries, grid = plain_patches(network, folder, name, normalization)
        soft = plain_soft_labels(queries, features[known], shares[known], k, temperature)
        size = np.array(Image.open(folder / 'images' / f'{name}.jpg')).shape[:2]
        soft = F.interpolate(torch.tensor(soft.T.reshape(1, CLASSES, *grid)), size=size, mode='bilinear', align_corners=False)
        predictions[name] = prediction = soft[0].argmax(0).numpy()
        truth = cv2.resize(np.array(Image.open(folder / 'SegmentationClass' / f'{name}.png')), size[::-1],
                           interpolation=cv2.INTER_NEAREST)
        for c in range(CLASSES):
            valid = truth != 255
            hits[c] += ((prediction == c) & (truth == c) & valid).sum()
            union[c] += (((prediction == c) | (truth == c)) & valid).sum()
    return predictions, 100 * hits / np.maximum(union, 1), int(known.sum())


def assert_as_plain(results, folder, plain):
    predictions, iou, known = plain
    assert results['memory_patches'] == known and list(results['IoU']) == NAMES
    for name, prediction in predictions.items():
        found = np.array(Image.open(folder / 'predictions' / f'{name}.png'))
        assert found.shape == prediction.shape and (found == prediction).mean() > 0.998
    found = list(results['IoU'].values())
    assert np.allclose(found, iou, atol=0.3) and np.isclose(results['mIoU'], np.mean(found))


@pytest.mark.slow
def test_a_pretrained_network(run, toys, toy_network):
    results, folder = run()
    assert_as_plain(results, folder, plain_knn(toy_network.eval(), toys / 'Toys', 7, 0.1))
    assert results['script'] == 'knn.py' and results['train_split'] == 'trainaug' and results['k'] == 7
    assert len(list((folder / 'visualization').iterdir())) == 2 and (folder / 'contact_sheet.png').exists()
    assert results['mIoU'] > 5  # all background: some 7 of 10 classes


@pytest.mark.slow
def test_a_backbone_alone(run, toys, tmp_path):
    torch.manual_seed(5)
    network = get_model({**TOYS_KNN, **RESNET, 'head': 'none'}).eval()
    torch.save(network.backbone.state_dict(), tmp_path / 'weights.pth')
    results, folder = run({**RESNET, 'head': 'none', 'pretraining': str(tmp_path / 'weights.pth'), 'knn_kwargs.k': 3})
    assert_as_plain(results, folder, plain_knn(network, toys / 'Toys', 3, 0.1, IMAGENET))


@pytest.mark.slow
def test_a_bounded_memory(run):
    results, folder = run({'knn_kwargs.memory_size': 16 * 5 + 3})
    assert results['memory_patches'] == 16 * 5
    predictions = {path.name: path.read_bytes() for path in (folder / 'predictions').iterdir()}
    run({'knn_kwargs.memory_size': 16 * 5, 'num_workers': 2, 'knn_kwargs.block': 1000})
    again = {path.name: path.read_bytes() for path in (folder / 'predictions').iterdir()}
    assert again == predictions  # the choice doesn't depend on workers and blocks
    run({'knn_kwargs.memory_size': 16 * 5}, flags=('--num_visualizations', '0', '--seed', '9'))
    assert {path.name: path.read_bytes() for path in (folder / 'predictions').iterdir()} != predictions


def test_without_labels_of_the_images_to_segment(run, toys, tmp_path):
    root = tmp_path / 'datasets' / 'Toys'
    root.mkdir(parents=True)
    for name in ('images', 'SegmentationClassAug', 'sets', 'classes.txt'):
        (root / name).symlink_to(toys / 'Toys' / name)
    results, folder = run(root=root.parent)
    assert 'mIoU' not in results and len(list((folder / 'predictions').iterdir())) == 18


def test_mistakes(run, user_error, tmp_path):
    file = tmp_path / 'small.yml'
    assert user_error(lambda: run({'knn_kwargs.memory_size': 15})).startswith(
        f'error: {file}: knn_kwargs.memory_size (15) must be at least the number of images in the memory (16)')
    assert user_error(lambda: run({'knn_kwargs.k': 0})) == f'error: {file}: knn_kwargs.k must be at least 1, not 0'
    assert 'knn.py needs kmeans_eval: True' in user_error(lambda: run({'kmeans_eval': ...}))
    assert "unknown key 'knn_kwargs.K'" in user_error(lambda: run({'knn_kwargs.K': 3}))
    assert 'sets/none.txt could not be read' in user_error(lambda: run({'knn_kwargs.train_split': 'none'}))
