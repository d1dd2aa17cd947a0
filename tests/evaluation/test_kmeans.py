"""`kmeans.py` end to end against the plainest way there: every pixel of every image, one at a time.

Single clusterings are chaotic under rounding, so prototypes (D values each) are compared with plain ones to rounding, and
clusters are made from the product's own; all that follows must be equal.
"""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.experiments import TOYS_KMEANS
from helpers.toys import EMPTY, IDS, NETWORK, RESOLUTION, D, plain_embedding, plain_score
from PIL import Image

from data.dataset import SegmentationDataset
from data.loaders import make_loader
from evaluation.evaluation_images import EvaluationImages
from evaluation.extraction import extract_prototypes
from kmeans import main
from models.factory import get_model


@pytest.fixture
def run(experiment, toys, toy_checkpoint, tmp_path):
    """run(changes, flags, ...) runs main and returns the content of results.json."""
    def call(changes=None, flags=(), name='small', root=toys):
        main([*experiment({'pretraining': str(toy_checkpoint), **(changes or {})}, name, root, TOYS_KMEANS), *flags])
        return json.loads((tmp_path / 'output' / name / 'results.json').read_text())
    return call


def product_prototypes(network, root, saliency=None, batch_size=5):
    dataset = SegmentationDataset(root / 'Toys', 'val', saliency=saliency, labels=True)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION, 10), 0, torch.device('cpu'), batch_size=batch_size)
    return extract_prototypes(network.to(memory_format=torch.channels_last), loader, torch.device('cpu'), 'none', 10).prototypes


@pytest.fixture(scope='module')
def reference(toy_network, toys):
    return plain_embedding(toy_network, toys / 'Toys'), product_prototypes(toy_network, toys)


def test_prototypes_are_the_plain_ones(reference, toys):
    embedding, prototypes = reference
    assert np.abs(prototypes - np.stack([prototype for prototype, _, _ in embedding])).max() < 1e-4
    shares = np.array([mask.mean() for _, mask, _ in embedding])
    assert ((shares > 0.02) & (shares < 0.9)).sum() > len(IDS) // 2  # masks worth the test
    assert shares[0] == 0 and not prototypes[0].any()


@pytest.mark.slow
@pytest.mark.parametrize('changes, flags, n_clusters', [
    ({}, [], 10), ({}, ['--n_clusters', '4'], 4), ({'kmeans_kwargs': {'n_clusters': 16}}, [], 16),
    ({'kmeans_kwargs': {'n_clusters': 3}, 'seed': 99}, ['--n_clusters', '10'], 10),
    ({}, ['--n_clusters', '2', '--seed', '7'], 2)], ids=['as classes', 'fewer', 'more', 'flag over YAML', 'one object'])
def test_results_equal_the_plain_way(run, reference, toys, toy_checkpoint, tmp_path, capsys, changes, flags, n_clusters):
    results = run(changes, [*flags, '--num_seeds', '3', '--num_visualizations', '2', '--metrics'])
    printed = capsys.readouterr().out.splitlines()
    first = 7 if '--seed' in flags else changes.get('seed', 1234)
    scores = [plain_score(*reference, n_clusters, first + i) for i in range(3)]
    iou = np.array([row for _, row, _ in scores])
    assert iou.max() > 20 and not iou[:, 9].any()
    assert results['script'] == 'kmeans.py' and results['weights'] == str(toy_checkpoint) and results['crf'] is False
    assert results['n_clusters'] == n_clusters and results['seeds'] == [first, first + 1, first + 2]
    assert list(results['IoU']) == (toys / 'Toys' / 'classes.txt').read_text().split()
    measures = 100 * np.mean([row for _, _, row in scores], axis=0)
    for found, want in ((list(results['IoU'].values()), iou.mean(0)), (results['IoU_per_seed'], iou),
                        (results['mIoU_per_seed'], iou.mean(1)), (results['mIoU'], iou.mean()),
                        ([results[name] for name in ('Accuracy', 'NMI', 'ARI')], measures)):
        assert np.allclose(found, want, rtol=0, atol=1e-9)
    for row in iou:
        assert f'mIoU is {row.mean():.2f}' in printed and f'IoU class background is {row[0]:.2f}' in printed
    assert printed[-1] == f'Average mIoU is {iou.mean():.1f}' and f'NMI is {measures[1]:.2f}' in printed
    output = tmp_path / 'output' / 'small'
    for name, prediction in zip(IDS, scores[0][0], strict=True):  # those of the first seed
        image = Image.open(output / 'predictions' / f'{name}.png')
        assert image.mode == 'P' and np.array_equal(np.array(image), prediction)
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert len(list((output / 'predictions').iterdir())) == len(IDS)
    assert {path.stem for path in (output / 'visualization').iterdir()} == set(IDS[:2])
    for path in (output / 'visualization').iterdir():
        image = np.asarray(Image.open(toys / 'Toys' / 'images' / f'{path.stem}.jpg'))
        picture, (height, width, _) = np.asarray(Image.open(path)), image.shape
        assert picture.shape[0] > height and picture.shape[1] == 3 * width + 8  # with a legend below
        assert np.array_equal(picture[:height, :width], image)


@pytest.mark.slow
def test_given_masks_and_random_weights(run, toys, capsys):
    results = run({'pretraining': None, 'val_db_kwargs.saliency': 'supervised_model',
                   'model_kwargs.use_classification_head': False}, ['--num_seeds', '2'])
    torch.manual_seed(1234)
    network = get_model({**NETWORK, 'model_kwargs': {'ndim': D, 'use_classification_head': False}}).eval()
    embedding = plain_embedding(network, toys / 'Toys', 'saliency_supervised_model')
    prototypes = product_prototypes(network, toys, 'supervised_model')
    assert np.abs(prototypes - np.stack([prototype for prototype, _, _ in embedding])).max() < 1e-4
    assert not prototypes[0].any() and prototypes[1:].any(1).all()  # the empty mask's is zero
    iou = [plain_score(embedding, prototypes, 10, seed)[1] for seed in (1234, 1235)]
    assert np.allclose(results['IoU_per_seed'], iou, rtol=0, atol=1e-9)
    assert results['weights'] is None and 'NMI' not in results and 'random weights' in capsys.readouterr().out


@pytest.mark.slow
def test_formats_and_workers_make_no_difference(run, toy_checkpoint, tmp_path):
    want, output = run(), tmp_path / 'output'
    assert want['seeds'] == [1234, 1235, 1236, 1237, 1238]
    assert len(list((output / 'small' / 'visualization').iterdir())) == len(IDS)
    bare = {key: value for key, value in torch.load(toy_checkpoint)['model'].items() if key.startswith('module.model_q.')}
    torch.save(bare, tmp_path / 'bare.pth')
    # `upsample` is about pre-training: masks are made at the input's size anyway.
    changes = {'pretraining': str(tmp_path / 'bare.pth'), 'num_workers': 2, 'model_kwargs.upsample': False}
    assert run(changes, ['--num_visualizations', '0'], name='bare') == {**want, 'weights': str(tmp_path / 'bare.pth')}
    assert not (output / 'bare' / 'visualization').exists()


@pytest.mark.slow
def test_one_image_at_a_time(run, reference, toy_network, toys):
    prototypes = product_prototypes(toy_network, toys, batch_size=1)
    assert np.abs(prototypes - reference[1]).max() < 1e-4
    results = run({'val_db_kwargs.batch_size': 1}, ['--num_seeds', '2'])
    iou = [plain_score(reference[0], prototypes, 10, seed)[1] for seed in (1234, 1235)]
    assert np.allclose(results['IoU_per_seed'], iou, rtol=0, atol=1e-9)


@pytest.fixture
def fails(run, user_error, tmp_path):
    """fails(changes, ...) runs main, which must fail and leave an earlier result alone, and returns the message."""
    output = tmp_path / 'output' / 'small'
    output.mkdir(parents=True)

    def call(*arguments, **named):
        (output / 'results.json').write_text('previous')
        line = user_error(lambda: run(*arguments, **named)).removeprefix('error: ')
        assert (output / 'results.json').read_text() == 'previous'
        assert {path.name for path in output.iterdir()} <= {'results.json', 'config.yml', 'log_file.txt'}
        return line
    return call


@pytest.mark.slow
def test_checkpoints_that_do_not_fit(fails, toy_network, toy_checkpoint, tmp_path):
    path, trace = tmp_path / 'weights.pth', tmp_path / 'code-was-run'
    changes, hostile = {'pretraining': str(path)}, type('Hostile', (), {'__reduce__': lambda _: (Path.touch, (trace,))})()
    assert fails(changes).endswith(f'pretraining names {path}, which does not exist: make it first, or correct the path')
    path.write_bytes(toy_checkpoint.read_bytes()[:10 ** 6])
    assert fails(changes).startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    good = torch.load(toy_checkpoint)['model']
    broken = {**good, 'module.model_q.head.bias': torch.full((D,), float('nan'))}
    for content, words in (
            ({'model': good, 'epoch': hostile}, 'refused, since loading it would run code'),
            (get_model({'backbone': 'resnet18'}).state_dict(), "none of its keys starts with 'module.model_q.'"),
            ({key: value for key, value in good.items() if key != 'module.model_q.head.bias'}, 'network: missing head.bias'),
            ({**good, 'module.model_q.decoder.4.bias': torch.zeros(21)}, 'network: left over decoder.4.bias'),
            (broken, f'no finite embedding for {EMPTY}')):
        torch.save(content, path)
        line = fails(changes)
        assert words in line and (content is broken or line.startswith(f'{path}: '))
    assert not trace.exists()
    line = fails({'backbone': 'resnet50'})
    assert line.startswith(f'{toy_checkpoint}: its weights do not fit this network: missing backbone.')
    assert fails({'model_kwargs.ndim': 4}).endswith('network: of another shape head.bias, head.weight')


def test_impossible_settings(fails, toys, tmp_path):
    few = f'{toys / "Toys" / "sets" / "val.txt"}: 18 images are too few for 19 clusters'
    assert fails(flags=['--n_clusters', '20']).startswith(few) and fails({'kmeans_kwargs.n_clusters': 20}).startswith(few)
    for flag, value, words in (('--n_clusters', 0, '--n_clusters must'), ('--n_clusters', 1, '--n_clusters must'),
                               ('--num_seeds', 0, '--num_seeds must'), ('--seed', 2 ** 32 - 2, 'from 0 to 4294967295')):
        assert words in fails(flags=[flag, str(value)])
    for changes, words in (({'kmeans_eval': ...}, 'needs kmeans_eval: True'),
                           ({'model_kwargs.use_classification_head': False}, 'val_db_kwargs.saliency must name')):
        line = fails(changes)
        assert line.startswith(f'{tmp_path / "small.yml"}: ') and words in line
    assert 'saliency_none: the folder is missing' in fails({'val_db_kwargs.saliency': 'none'})


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_data(fails, toys, tmp_path, workers):
    folder = shutil.copytree(toys, tmp_path / 'own') / 'Toys'
    image, labels = folder / 'images' / 'val_0009.jpg', folder / 'SegmentationClass' / 'val_0010.png'
    changes, content = {'num_workers': workers}, image.read_bytes()
    image.write_bytes(content[:len(content) // 2])
    assert fails(changes, root=tmp_path / 'own').startswith(f'{image} is not a complete image')
    image.write_bytes(content)
    Image.fromarray(np.full((70, 60), 10, np.uint8)).save(labels)
    line = fails(changes, root=tmp_path / 'own')
    assert line.startswith(f'{labels}: label 10 in its labels, but there are only 10 classes')
    labels.unlink()
    assert fails(changes, root=tmp_path / 'own').startswith(f'{labels} could not be read')
