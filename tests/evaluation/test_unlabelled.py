"""`kmeans.py` without labels: clusters of photographs, and what is left for people to look at."""
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers.experiments import TOYS_KMEANS
from helpers.toys import IDS, RESOLUTION, D, toy_input
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from data.dataset import SegmentationDataset
from data.loaders import make_loader
from data.palette import VOC_COLOURS
from evaluation.clustering import distances
from evaluation.evaluation_images import EvaluationImages
from evaluation.extraction import extract_prototypes
from evaluation.model_loading import StageNetwork
from kmeans import main
from models.interpolation import resize

CELL, TITLE = (120, 150), 140


@pytest.fixture
def unlabelled(toys, tmp_path):
    """A db_root with `Toys` as one has it of one's own: images, masks and lists."""
    folder = tmp_path / 'datasets' / 'Toys'
    for part in ('images', 'saliency_supervised_model', 'sets'):
        shutil.copytree(toys / 'Toys' / part, folder / part)
    return folder.parent


@pytest.fixture
def run(experiment, unlabelled, toy_checkpoint, tmp_path):
    """run(changes, flags) runs main and returns the content of results.json."""
    def call(changes=None, flags=(), root=unlabelled):
        main([*experiment({'pretraining': str(toy_checkpoint), **(changes or {})}, 'small', root, TOYS_KMEANS), *flags])
        return json.loads((tmp_path / 'output' / 'small' / 'results.json').read_text())
    return call


def product(network, root, hide_background=False, saliency=None):
    dataset = SegmentationDataset(root / 'Toys', 'val', saliency=saliency)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION, 0), 0, torch.device('cpu'), batch_size=5)
    return extract_prototypes(network.to(memory_format=torch.channels_last), loader, torch.device('cpu'), 'none', 0,
                 hide_background=hide_background)


@pytest.mark.slow
def test_predictions_are_clusters_of_the_most_compact_seed(run, unlabelled, toy_network, tmp_path, capsys):
    results = run(flags=['--n_clusters', '5', '--num_visualizations', '3'])
    embedded = product(toy_network, unlabelled)
    whitened = PCA(min(32, *embedded.prototypes.shape), whiten=True, svd_solver='full').fit_transform(embedded.prototypes)
    best = None
    for seed in range(1234, 1239):
        clusters = MiniBatchKMeans(4, batch_size=1000, n_init=3, random_state=seed).fit_predict(whitened)
        spread = sum(((whitened[i] - whitened[clusters == clusters[i]].mean(0)) ** 2).sum() for i in range(len(clusters)))
        if best is None or spread < best[0]:
            best = spread, clusters
    assert results['clusters'] == {name: int(cluster) + 1 for name, cluster in zip(IDS, best[1], strict=True)}
    assert 'mIoU' not in results and 'IoU' not in results and results['n_clusters'] == 5
    assert 'mIoU' not in capsys.readouterr().out
    output = tmp_path / 'output' / 'small'
    for index, name in enumerate(IDS):
        prediction = np.array(Image.open(output / 'predictions' / f'{name}.png'))
        mask = embedded.masks[index].array()
        size = Image.open(unlabelled / 'Toys' / 'images' / f'{name}.jpg').size
        assert prediction.shape == size[::-1] and np.array_equal(prediction, mask * (best[1][index] + 1))
    picture = np.asarray(Image.open(output / 'visualization' / f'{IDS[1]}.png'))
    assert picture.shape[1] == 2 * Image.open(unlabelled / 'Toys' / 'images' / f'{IDS[1]}.jpg').width + 4  # no ground truth


def test_sheet_has_a_row_in_its_colour_for_each_cluster(run, unlabelled, toy_network, tmp_path):
    clusters = run(flags=['--n_clusters', '4'])['clusters']
    sheet = np.asarray(Image.open(tmp_path / 'output' / 'small' / 'clusters.png'))
    assert sheet.shape == (3 * CELL[0], TITLE + 8 * CELL[1], 3)
    for cluster in (1, 2, 3):
        row = sheet[(cluster - 1) * CELL[0]:cluster * CELL[0]]
        assert (row[3:-3, :10] == VOC_COLOURS[cluster]).all()
        cells = [row[3:-3, left:left + CELL[1]] for left in range(TITLE, sheet.shape[1], CELL[1])]
        shown = sum(bool((cell != 255).any()) for cell in cells)
        assert shown == min(8, list(clusters.values()).count(cluster))
    assert (sheet[:, :TITLE] < 100).any()  # text


def test_labels_give_the_sheet_the_colours_of_classes(run, toys, tmp_path):
    run(root=toys)
    sheet = np.asarray(Image.open(tmp_path / 'output' / 'small' / 'clusters.png'))
    bars = {tuple(sheet[number * CELL[0] + 5, 0]) for number in range(9)}
    assert sheet.shape[0] == 9 * CELL[0] and bars <= {tuple(colour) for colour in VOC_COLOURS[:10]} and len(bars) == 9


@pytest.mark.slow
def test_hidden_background(toy_network, unlabelled, run, experiment, user_error):
    network = toy_network.double()
    try:
        expected = []
        for name in IDS:
            mask = np.asarray(Image.open(unlabelled / 'Toys' / 'saliency_supervised_model' / f'{name}.png')) == 255
            mask = cv2.resize(mask.astype(np.uint8), RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST)
            with torch.no_grad():
                embedding = network(toy_input(unlabelled / 'Toys', name).double() * torch.tensor(mask))[0][0]
            total = (embedding * torch.tensor(mask)).sum((1, 2))
            expected.append((total / max(total.norm(), 1e-12)).numpy())
    finally:
        toy_network.float()
    hidden, open_ = (product(toy_network, unlabelled, hide, 'supervised_model').prototypes for hide in (True, False))
    assert hidden.shape == (len(IDS), D) and np.abs(hidden - np.stack(expected)).max() < 1e-4
    assert np.abs(hidden - open_).max() > 0.01
    masks = {'val_db_kwargs.saliency': 'supervised_model', 'kmeans_kwargs.n_clusters': 4}
    assert run({**masks, 'val_db_kwargs.hide_background': True})['clusters'].keys() == set(IDS)
    for change in ({'val_db_kwargs.hide_background': True}, {'kmeans_kwargs.features': 'layer3'}):
        line = user_error(lambda change=change: run({**change, 'kmeans_kwargs.n_clusters': 4}))
        assert 'val_db_kwargs.hide_background and kmeans_kwargs.features need masks' in line


@pytest.mark.parametrize('stage, whiten', [('layer1', True), ('layer3', False)])
def test_clusters_of_backbone_features(toy_network, unlabelled, run, stage, whiten):
    vectors = []
    for name in IDS:
        mask = np.asarray(Image.open(unlabelled / 'Toys' / 'saliency_supervised_model' / f'{name}.png')) == 255
        mask = cv2.resize(mask.astype(np.uint8), RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST)
        backbone = toy_network.backbone.model
        with torch.no_grad():
            x = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(toy_input(unlabelled / 'Toys', name)))))
            for part in ('layer1', 'layer2', 'layer3')[:int(stage[-1])]:
                x = getattr(backbone, part)(x)
        total = (resize(x, RESOLUTION)[0].double() * torch.tensor(mask)).sum((1, 2))
        vectors.append((total / max(total.norm(), 1e-12)).numpy())
    found = extract_prototypes(StageNetwork(toy_network, stage), make_loader(EvaluationImages(SegmentationDataset(
        unlabelled / 'Toys', 'val', saliency='supervised_model'), RESOLUTION, 0), 0, torch.device('cpu'), batch_size=5),
        torch.device('cpu'), 'none', 0).prototypes
    assert np.abs(found - np.stack(vectors)).max() < 1e-4
    results = run({'val_db_kwargs.saliency': 'supervised_model', 'kmeans_kwargs': {
        'n_clusters': 4, 'features': stage, 'whiten': whiten}}, ['--num_seeds', '1'])
    whitened = PCA(min(32, *found.shape), whiten=True, svd_solver='full').fit_transform(found) if whiten else found
    clusters = MiniBatchKMeans(3, batch_size=1000, n_init=3, random_state=1234).fit_predict(whitened)
    assert list(results['clusters'].values()) == (clusters + 1).tolist()


def test_another_split(run, unlabelled):
    ids = (unlabelled / 'Toys' / 'sets' / 'trainaug.txt').read_text().split()
    assert list(run({'val_db_kwargs.split': 'trainaug', 'kmeans_kwargs.n_clusters': 3})['clusters']) == ids


def test_images_without_a_mask_are_left_out(run, unlabelled, capsys):
    (unlabelled / 'Toys' / 'saliency_supervised_model' / f'{IDS[3]}.png').unlink()
    clusters = run({'val_db_kwargs.saliency': 'supervised_model', 'kmeans_kwargs.n_clusters': 3})['clusters']
    assert list(clusters) == [name for name in IDS if name != IDS[3]]
    assert 'has no labels for the split val: there will be no score (1 ids' in capsys.readouterr().out


def test_pascal_voc_has_labels(run, unlabelled, user_error):
    (unlabelled / 'Toys').rename(unlabelled / 'VOCSegmentation')
    assert 'SegmentationClass: the folder is missing' in user_error(lambda: run({'val_db_name': 'VOCSegmentation'}))


def test_the_number_of_clusters_must_be_said(run, unlabelled, user_error):
    assert user_error(run).startswith(f'error: {unlabelled / "Toys"} has no labels, so choose the number of clusters')
    (unlabelled / 'Toys' / 'classes.txt').write_text('background\na\nb\n')  # names without labels say nothing
    assert 'choose the number of clusters' in user_error(run)
    assert '--n_clusters must be at most 255 without labels' in user_error(lambda: run(flags=['--n_clusters', '256']))


def test_distances():
    vectors = np.array([[0.0, 0], [2, 0], [5, 5], [1, 3]])
    assert np.allclose(distances(vectors, np.array([3, 3, 0, 3])), [np.sqrt(2), np.sqrt(2), 0, 2])  # mean of three: (1, 1)
