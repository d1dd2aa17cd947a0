"""Clusters of single objects: each has the vector, the score and the pixels that it has where it is alone."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.experiments import TOYS_KMEANS
from helpers.own import MASKS, mine, own_weights, small_features  # noqa: F401 - fixtures
from helpers.toys import EMPTY, IDS, RESOLUTION
from PIL import Image

import kmeans
import object_clusters
import own_clusters
import segment
from data.dataset import SegmentationDataset
from data.instances import read_instances, write_instances
from data.loaders import make_loader
from evaluation.evaluation_images import EvaluationImages, resize_labels
from evaluation.extraction import extract_prototypes
from evaluation.metrics import confusion_matrix
from evaluation.objects import Objects
from evaluation.saved_clusters import SavedClusters

CPU = torch.device('cpu')


def cut_in_halves(folder, masks=MASKS):
    """Instances of masks: what is left and what is right of the middle of the mask's columns. Returns each image's number."""
    found = {}
    for path in (folder / f'saliency_{masks}').iterdir():
        mask = np.array(Image.open(path)) > 0
        columns = np.flatnonzero(mask.any(0))
        right = np.arange(mask.shape[1]) > (columns.mean() if len(columns) else 0)
        write_instances(folder / f'instances_{masks}' / path.name, mask * (1 + right))
        found[path.stem] = 2 if len(columns) else 0
    return found


@pytest.fixture
def halves(toys, tmp_path):
    """A db_root with `Toys` and two objects in each image but EMPTY."""
    shutil.copytree(toys, tmp_path / 'data')
    cut_in_halves(tmp_path / 'data' / 'Toys')
    return tmp_path / 'data'


def extracted(network, folder, hide_background=False, batch_size=5, **options):
    dataset = SegmentationDataset(folder, 'val', MASKS, labels=True, **options)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION, 10), 0, CPU, batch_size=batch_size)
    return extract_prototypes(network.to(memory_format=torch.channels_last), loader, CPU, 'none', 10,
                              hide_background=hide_background)


@pytest.mark.slow
@pytest.mark.parametrize('hide_background', [False, True])
def test_vectors_and_pixels_are_those_of_each_object_alone(halves, toy_network, hide_background):
    folder, ids = halves / 'Toys', IDS[:7]
    (folder / 'sets' / 'val.txt').write_text('\n'.join(ids))
    found = extracted(toy_network, folder, hide_background, instances=True)
    assert found.ids == ids and found.counts == [0 if name == EMPTY else 2 for name in ids]
    objects = Objects(SegmentationDataset(folder, 'val', MASKS, instances=True), found.counts, found.masks)
    assert objects.ids == [f'{name}#{number}' for name in ids if name != EMPTY for number in (1, 2)]
    alone = []
    for number in (1, 2):
        for name in ids:
            instances = read_instances(folder / f'instances_{MASKS}' / f'{name}.png')
            Image.fromarray((instances == number).astype(np.uint8) * 255).save(folder / f'saliency_{MASKS}' / f'{name}.png')
        alone.append(extracted(toy_network, folder, hide_background))
    rows = [index for index, name in enumerate(ids) if name != EMPTY]
    for number, one in enumerate(alone):
        assert np.abs(found.prototypes[number::2] - one.prototypes[rows]).max() < 1e-5
        assert np.array_equal(found.histograms[number::2, 1], one.histograms[rows, 1])
        for index, name in enumerate(ids):
            mask = one.masks[index].array()
            assert np.array_equal(found.masks[index].array() == number + 1, mask == 1), name
    # Every pixel that has a label counts once.
    assert np.array_equal(found.histograms.sum((0, 1)), alone[0].histograms.sum((0, 1)))
    few = extracted(toy_network, folder, hide_background, batch_size=1, instances=True)
    assert np.abs(few.prototypes - found.prototypes).max() < 1e-5 and np.array_equal(few.histograms, found.histograms)


@pytest.mark.slow
def test_kmeans_of_objects(experiment, halves, toy_checkpoint, tmp_path, user_error):
    changes = {'pretraining': str(toy_checkpoint), 'val_db_kwargs.saliency': MASKS, 'val_db_kwargs.instances': True}

    def run(*flags, **more):
        kmeans.main([*experiment({**changes, **more}, 'small', halves, TOYS_KMEANS), *flags])
    run('--n_clusters', '25', '--num_seeds', '2')  # more than there are images
    output = tmp_path / 'output' / 'small'
    results = json.loads((output / 'results.json').read_text())
    assert set(results['clusters']) == {f'{name}#{number}' for name in IDS if name != EMPTY for number in (1, 2)}
    dataset = SegmentationDataset(halves / 'Toys', 'val', MASKS, labels=True, instances=True)
    confusion, classes_of = np.zeros((10, 10), int), {}
    for sample in dataset:
        prediction = np.array(Image.open(output / 'predictions' / f'{sample["id"]}.png'))
        assert prediction.shape == sample['instances'].shape
        confusion += confusion_matrix(prediction, sample['labels'], 10, sample['id'])
        instances = resize_labels(resize_labels(sample['instances'], RESOLUTION), prediction.shape)
        assert not prediction[instances == 0].any()
        for number in range(1, sample['instances'].max() + 1):
            shown, = np.unique(prediction[instances == number])
            classes_of.setdefault(results['clusters'][f'{sample["id"]}#{number}'], set()).add(shown)
    assert all(len(classes) == 1 for classes in classes_of.values()) and len(classes_of) > 10
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert np.allclose(results['IoU_per_seed'][0], 100 * np.diag(confusion) / np.maximum(union, 1))
    assert not np.array(Image.open(output / 'predictions' / f'{EMPTY}.png')).any()
    assert '34 objects are too few for 35 clusters' in user_error(lambda: run('--n_clusters', '36'))
    assert 'val_db_kwargs.instances' in user_error(lambda: run(**{'val_db_kwargs.saliency': ...}))
    for path in (halves / 'Toys' / f'instances_{MASKS}').iterdir():
        write_instances(path, read_instances(path) * 0)
    assert 'has any object: these must be numbered from 1' in user_error(lambda: run('--n_clusters', '4'))


@pytest.fixture
def own(mine, tmp_path):  # noqa: F811
    """env.yml of `mine`, whose clusters are of two objects in each image."""
    cut_in_halves(tmp_path / 'datasets' / 'mine')
    path = tmp_path / 'output' / 'mine' / 'network.yml'
    path.write_text(path.read_text().replace(f'saliency: {MASKS}', f'saliency: {MASKS}\n  instances: true'))
    return mine


@pytest.mark.slow
@pytest.mark.usefixtures('small_features')
def test_own_clusters_and_segments(own, tmp_path, capsys):
    folder, output = tmp_path / 'datasets' / 'mine', tmp_path / 'output' / 'mine_clusters'

    def clusters(*flags):
        own_clusters.main(['--config_env', own, '--device', 'cpu', *flags])
        return json.loads((output / 'results.json').read_text())
    found = clusters('--clusters', '3')['clusters']
    said = capsys.readouterr().out
    assert '32 objects of 16 images with masks' in said and 'features of 16 new images' in said
    ids = (folder / 'sets' / 'trainaug.txt').read_text().split()
    assert list(found) == [f'{name}#{number}' for name in ids for number in (1, 2)] and len(set(found.values())) == 3
    maps = {name: read_instances(folder / f'instances_{MASKS}' / f'{name}.png') for name in ids}
    wanted = {name: np.array([0, found[f'{name}#1'], found[f'{name}#2']])[maps[name]] for name in ids}
    for name in ids:
        assert np.array_equal(np.array(Image.open(output / 'predictions' / f'{name}.png')), wanted[name])
    page = (output / 'clusters.html').read_text()
    assert '32 objects in 3 clusters' in page and f'title="{ids[0]}#2"' in page
    assert np.asarray(Image.open(output / 'clusters.png')).shape[0] == 3 * 120
    # kmeans.py makes the same of the file that was left.
    kmeans.main(['--config_env', own, '--config_exp', str(output / 'mine_clusters.yml'), '--device', 'cpu'])
    assert json.loads((output / 'results.json').read_text())['clusters'] == found
    # An image whose objects are others: it alone is computed.
    write_instances(folder / f'instances_{MASKS}' / f'{ids[0]}.png', maps[ids[0]] > 0)
    capsys.readouterr()
    again = clusters('--clusters', '20')['clusters']  # more than there are images
    assert 'features of 1 new images' in capsys.readouterr().out and len(again) == 31 and f'{ids[0]}#2' not in again
    # The same photographs as other ones
    write_instances(folder / f'instances_{MASKS}' / f'{ids[0]}.png', maps[ids[0]] * 0)
    (folder / f'instances_{MASKS}' / f'{ids[1]}.png').unlink()
    command = ['--config_env', own, '--clusters', 'mine_clusters', '--images', str(folder), '--device', 'cpu']
    segment.main([*command, '--num_workers', '0'])
    with open(tmp_path / 'output' / 'mine_segment' / 'mine' / 'segments.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['file'], row['object']) for row in rows] == [(f'{ids[0]}.jpg', ''), (f'{ids[1]}.jpg', ''), *(
        (f'{name}.jpg', f'{name}#{number}') for name in ids[2:] for number in (1, 2))]
    assert all(int(row['cluster']) == again[row['object']] for row in rows[2:]) and not rows[0]['cluster']
    predictions = tmp_path / 'output' / 'mine_segment' / 'mine' / 'predictions'
    for name in ids[2:]:
        expected = np.array([0, again[f'{name}#1'], again[f'{name}#2']])[maps[name]]
        assert np.array_equal(np.array(Image.open(predictions / f'{name}.png')), expected)
    assert not np.array(Image.open(predictions / f'{ids[0]}.png')).any() and not (predictions / f'{ids[1]}.png').exists()
    capsys.readouterr()
    segment.main([*command, '--num_workers', '0'])
    assert 'features of 0 new photographs' in (said := capsys.readouterr().out) and 'pictures of 1 ' in said
    assert SavedClusters.load(output / 'clusters.npz').data == {'name': 'mine', 'saliency': MASKS, 'instances': True}


def test_objects_that_have_changed(halves, user_error):
    from utils.errors import UserError
    dataset = SegmentationDataset(halves / 'Toys', 'val', MASKS, instances=True)
    objects = Objects(dataset)
    write_instances(halves / 'Toys' / f'instances_{MASKS}' / f'{EMPTY}.png', np.ones(dataset[0]['image'].shape[:2]))
    with pytest.raises(UserError, match=f'the objects of the image {EMPTY} have changed'):
        objects.label_map(0, np.array([], int))


def test_purity_by_hand(halves, tmp_path, capsys):
    pairs = [(1, 1), (1, 1), (2, 1), (2, 2), (3, 2), (3, 2), (3, 0), (1, 3)]
    assert object_clusters.purity(pairs) == (2 + 2 + 1) / 8
    folder, predictions = halves / 'Toys', tmp_path / 'predictions'
    predictions.mkdir()
    for name in IDS:  # the labels, but nothing where the right half of an object is
        labels = np.array(Image.open(folder / 'SegmentationClass' / f'{name}.png').resize(
            Image.open(folder / 'images' / f'{name}.jpg').size, Image.NEAREST))
        instances = read_instances(folder / f'instances_{MASKS}' / f'{name}.png')
        classes = np.bincount(labels[(labels > 0) & (labels < 255)], minlength=2).argmax()
        Image.fromarray(np.where(instances == 1, max(classes, 1), 0).astype(np.uint8)).save(predictions / f'{name}.png')
    labels = SegmentationDataset(folder, 'val', labels=True)
    void = next(index for index in range(len(labels)) if (labels[index]['labels'] == 255).all())
    write_instances(folder / f'instances_{MASKS}' / f'{IDS[void]}.png', np.zeros(labels[void]['image'].shape[:2]))
    object_clusters.main(['--folder', str(folder), '--predictions', str(predictions), '--split', 'val'])
    report = json.loads(capsys.readouterr().out)
    assert report['objects'] == 32 and report['found'] == 50 and 0 < report['purity'] <= 50


def test_one_image_at_a_time_gives_the_same(toys):
    """Without instances an object is an image."""
    dataset = SegmentationDataset(toys / 'Toys', 'val', MASKS)
    objects = Objects(dataset)
    assert objects.ids == IDS and objects.unit == 'image' and len(objects) == len(dataset)
    for index in (0, 3):
        assert objects.of_image(index) == slice(index, index + 1)
        assert np.array_equal(objects[index]['saliency'], dataset[index]['saliency'])
        assert np.array_equal(objects.label_map(index, np.array([7])), dataset[index]['saliency'] * 7)
