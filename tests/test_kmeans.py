"""`kmeans.py` end to end against the plainest way there: every pixel of every image, one at a time.

Axes: M images, D embedding, C classes. Single clusterings are chaotic under rounding, so prototypes are compared with plain
ones to rounding, and clusters are made from the product's own; all that follows must be equal.
"""
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kmeans import main
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, adjusted_rand_score, normalized_mutual_info_score

from data.dataset import SegmentationDataset
from data.shapes import draw_shapes
from evaluation.embedding import embed
from evaluation.images import EvaluationImages, make_loader
from models.factory import get_model
from models.interpolation import resize

RESOLUTION = (48, 40)
IMAGES, D = 18, 8
EMPTY = 'val_0017'  # the first of the split; its masks are empty, predicted and given
NETWORK = {'backbone': 'resnet18', 'model_kwargs': {'ndim': D, 'head': 'linear', 'upsample': True}, 'kmeans_eval': True}
KMEANS = {**NETWORK, 'val_db_name': 'Toys', 'val_db_kwargs': {'batch_size': 5}, 'num_workers': 0, 'head': 'deeplab',
          'backbone_kwargs': {'dilated': True}, 'transformation_kwargs': {'resolution': list(RESOLUTION)}}


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    """A db_root with `Toys`: Shapes whose last class never occurs, with labels of other sizes and an all-void image."""
    root = tmp_path_factory.mktemp('toys')
    folder = root / 'Toys'
    draw_shapes(folder, train=2, val=IMAGES, size=64)
    with open(folder / 'classes.txt', 'a') as file:
        file.write('unicorn\n')
    ids = (folder / 'sets' / 'val.txt').read_text().split()
    (folder / 'sets' / 'val.txt').write_text('\n'.join(reversed(ids)))
    for name, change in (('val_0001', lambda image: image.resize((150, 111), Image.NEAREST)),
                         ('val_0002', lambda image: image.resize((30, 41), Image.NEAREST)),
                         ('val_0003', lambda image: image.point(lambda _: 255)),
                         ('val_0004', lambda image: Image.fromarray(np.array(image)))):  # gray instead of palette
        path = folder / 'SegmentationClass' / f'{name}.png'
        change(Image.open(path)).save(path)
    empty = folder / 'saliency_supervised_model' / f'{EMPTY}.png'
    Image.open(empty).point(lambda value: value // 255 * 254).save(empty)
    return root


def split(folder):
    return (folder / 'sets' / 'val.txt').read_text().split()


def plain_input(folder, name):
    """1 x 3 x 48 x 40 float32, normalised."""
    image = cv2.resize(np.asarray(Image.open(folder / 'images' / f'{name}.jpg').convert('RGB')), RESOLUTION[::-1],
                       interpolation=cv2.INTER_CUBIC)
    image = (torch.tensor(image) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    return image.permute(2, 0, 1).unsqueeze(0)


@pytest.fixture(scope='module')
def network(toys):
    """A network whose saliency head is fitted to the data set's masks, so that masks are partial, and one is empty."""
    torch.manual_seed(0)
    network, folder = get_model(NETWORK), toys / 'Toys'
    images = torch.cat([plain_input(folder, name) for name in split(folder)])
    masks = [np.array(Image.open(folder / 'saliency_supervised_model' / f'{name}.png')) == 255 for name in split(folder)]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        network(images)  # in train mode: batch norm takes the statistics of the images
        network.eval()
        features = network.decoder(network.backbone(images)).permute(0, 2, 3, 1)
        small = [cv2.resize(mask.astype(np.float32), features.shape[2:0:-1], interpolation=cv2.INTER_AREA) for mask in masks]
        weight = torch.ones(features.shape[:3])
        weight[split(folder).index(EMPTY)] = 100
        A, w, target = features.reshape(-1, 256), weight.reshape(-1, 1), torch.tensor(np.stack(small)).reshape(-1, 1)
        fitted = torch.linalg.solve(A.T @ (w * A) + torch.eye(256), A.T @ (w * target))
        network.classification_head.weight.copy_(fitted.view(1, 256, 1, 1))
        # Scale the logits so that the threshold lies in the widest gap near it: rounding then flips no pixel.
        near = resize((features @ fitted).permute(0, 3, 1, 2), RESOLUTION).flatten().sort().values
        near = near[(near > 0.3) & (near < 0.4)]
        widest = near.diff().argmax()
        network.classification_head.weight.mul_(0.5 / (near[widest] + near[widest + 1]) * 2)
    return network


def save_checkpoint(network, path):
    """As main.py leaves it."""
    state = {f'module.{part}.{key}': value for part in ('model_q', 'model_k') for key, value in network.state_dict().items()
             if part == 'model_q' or key.startswith('head')}
    state |= {'module.queue': torch.zeros(D, 8), 'module.queue_ptr': torch.zeros(1, dtype=torch.long)}
    torch.save({'model': state, 'optimizer': {}, 'epoch': 3}, path)
    return path


@pytest.fixture(scope='module')
def checkpoint(network, tmp_path_factory):
    return save_checkpoint(network, tmp_path_factory.mktemp('weights') / 'checkpoint.pth.tar')


@pytest.fixture
def run(experiment, toys, checkpoint, tmp_path):
    """run(changes, flags, ...) runs main and returns the content of results.json."""
    def call(changes=None, flags=(), name='small', root=toys):
        arguments = experiment({'pretraining': str(checkpoint), **(changes or {})}, name, root, KMEANS)
        main([*arguments, *flags])
        return json.loads((tmp_path / 'output' / name / 'results.json').read_text())
    return call


# The plain way


@torch.no_grad()
def plain_embedding(network, folder, saliency=None):
    """Per image: prototype (D float64), mask and labels, both at the labels' size."""
    found = []
    for name in split(folder):
        embedding, logit = (output[0] for output in network(plain_input(folder, name)))
        mask, weight = logit > 0.5, logit
        if saliency:
            given = (np.array(Image.open(folder / saliency / f'{name}.png')) == 255).astype(np.uint8)
            mask = torch.tensor(cv2.resize(given, RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST)) == 1
            weight = torch.ones(RESOLUTION)
        prototype = torch.zeros(D, dtype=torch.float64)
        for row, column in mask.nonzero().tolist():
            prototype += embedding[:, row, column].double() * weight[row, column].double()
        if mask.any():
            prototype /= prototype.norm()
        labels = np.array(Image.open(folder / 'SegmentationClass' / f'{name}.png'))
        size = Image.open(folder / 'images' / f'{name}.jpg').size
        if labels.shape != size[::-1]:
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(mask.numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        found.append((prototype, mask == 1, labels))
    return found


def product_prototypes(network, root, saliency=None, batch_size=5):
    dataset = SegmentationDataset(root / 'Toys', 'val', saliency=saliency, labels=True)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION), batch_size, 0, torch.device('cpu'))
    return embed(network.to(memory_format=torch.channels_last), loader, torch.device('cpu'), 'none', 10).prototypes


def plain_score(embedding, prototypes, n_clusters, seed, classes=10):
    """Predicted classes of every image, IoU of each class, and accuracy, NMI and ARI, all from full predictions."""
    whitened = PCA(min(32, *prototypes.shape), whiten=True, svd_solver='full').fit_transform(prototypes)
    clusters = MiniBatchKMeans(n_clusters - 1, batch_size=1000, n_init=3, random_state=seed).fit_predict(whitened)
    ids = [np.where(mask, cluster + 1, 0) for (_, mask, _), cluster in zip(embedding, clusters, strict=True)]
    pixels = np.concatenate([p[labels != 255] for p, (_, _, labels) in zip(ids, embedding, strict=True)])
    truth = np.concatenate([labels[labels != 255] for _, _, labels in embedding])

    def iou(predicted, predicted_value, c):
        union = ((predicted == predicted_value) | (truth == c)).sum()
        return ((predicted == predicted_value) & (truth == c)).sum() / union if union else 0.0

    pairs = np.array([[iou(pixels, i, c) for c in range(classes)] for i in range(n_clusters)])
    if n_clusters == classes:
        classes_of = linear_sum_assignment(-pairs)[1]
    else:
        classes_of = np.array([min(c for c in range(classes) if row[c] == max(row)) for row in pairs])
    measures = [accuracy_score(truth, classes_of[pixels]), normalized_mutual_info_score(truth, pixels),
                adjusted_rand_score(truth, pixels)]
    return [classes_of[p] for p in ids], [100 * iou(classes_of[pixels], c, c) for c in range(classes)], measures


@pytest.fixture(scope='module')
def reference(network, toys):
    return plain_embedding(network, toys / 'Toys'), product_prototypes(network, toys)


def test_prototypes_are_the_plain_ones(reference, toys):
    embedding, prototypes = reference
    shares = np.array([mask.mean() for _, mask, _ in embedding])
    assert prototypes.shape == (IMAGES, D)
    assert np.abs(prototypes - torch.stack([prototype for prototype, _, _ in embedding]).numpy()).max() < 1e-4
    assert ((shares > 0.02) & (shares < 0.9)).sum() > IMAGES // 2  # masks worth the test
    assert split(toys / 'Toys')[0] == EMPTY and shares[0] == 0 and not prototypes[0].any()


@pytest.mark.parametrize('changes, flags, n_clusters', [
    ({}, [], 10), ({}, ['--n_clusters', '4'], 4), ({'kmeans_kwargs': {'n_clusters': 16}}, [], 16),
    ({'kmeans_kwargs': {'n_clusters': 3}, 'seed': 99}, ['--n_clusters', '10'], 10),
    ({}, ['--n_clusters', '2', '--seed', '7'], 2)], ids=['as classes', 'fewer', 'more', 'flag over YAML', 'one object'])
def test_results_equal_the_plain_way(run, reference, toys, checkpoint, tmp_path, capsys, changes, flags, n_clusters):
    results = run(changes, [*flags, '--num_seeds', '3', '--num_visualizations', '2', '--metrics'])
    printed = capsys.readouterr().out.splitlines()
    first = int(flags[3]) if '--seed' in flags else changes.get('seed', 1234)
    scores = [plain_score(*reference, n_clusters, first + i) for i in range(3)]
    names = (toys / 'Toys' / 'classes.txt').read_text().split()
    iou = np.array([row for _, row, _ in scores])

    assert iou[:, 0].min() > 20 and not iou[:, names.index('unicorn')].any()
    assert results['script'] == 'kmeans.py' and results['weights'] == str(checkpoint) and results['crf'] is False
    assert results['n_clusters'] == n_clusters and results['seeds'] == [first, first + 1, first + 2]
    assert list(results['IoU']) == names
    assert np.allclose(list(results['IoU'].values()), iou.mean(0), rtol=0, atol=1e-9)
    assert np.allclose(results['mIoU_per_seed'], iou.mean(1), rtol=0, atol=1e-9)
    assert np.allclose(results['IoU_per_seed'], iou, rtol=0, atol=1e-9)
    assert results['mIoU'] == pytest.approx(iou.mean(), abs=1e-9)
    measures = 100 * np.mean([row for _, _, row in scores], axis=0)
    assert np.allclose([results[name] for name in ('Accuracy', 'NMI', 'ARI')], measures, rtol=0, atol=1e-9)

    for row in iou:
        assert f'mIoU is {row.mean():.2f}' in printed and f'IoU class background is {row[0]:.2f}' in printed
    assert printed[-1] == f'Average mIoU is {iou.mean():.1f}'
    assert f'NMI is {measures[1]:.2f}' in printed

    output = tmp_path / 'output' / 'small'
    for name, prediction in zip(split(toys / 'Toys'), scores[0][0], strict=True):  # those of the first seed
        image = Image.open(output / 'predictions' / f'{name}.png')
        assert image.mode == 'P' and np.array_equal(np.array(image), prediction)
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert len(list((output / 'predictions').iterdir())) == IMAGES
    pictures = sorted((output / 'visualization').iterdir())
    assert sorted(path.stem for path in pictures) == sorted(split(toys / 'Toys')[:2])
    for path in pictures:
        image = np.asarray(Image.open(toys / 'Toys' / 'images' / f'{path.stem}.jpg'))
        picture, (height, width) = np.asarray(Image.open(path)), image.shape[:2]
        assert picture.shape == (height, 3 * width + 8, 3)  # image, ground truth and prediction, and what keeps them apart
        assert np.array_equal(picture[:, :width], image)


def test_given_masks_and_random_weights(run, toys, tmp_path):
    results = run({'pretraining': None, 'val_db_kwargs.saliency': 'supervised_model',
                   'model_kwargs.use_classification_head': False}, ['--num_seeds', '2'])
    torch.manual_seed(1234)
    network = get_model({**NETWORK, 'model_kwargs': {'ndim': D, 'use_classification_head': False}}).eval()
    # The plain network needs some logits; that they are not looked at is what this tests.
    with_logits = torch.nn.Module()
    with_logits.forward = lambda images: (network(images)[0], torch.full((1, *RESOLUTION), -5.0))
    embedding = plain_embedding(with_logits, toys / 'Toys', 'saliency_supervised_model')
    prototypes = product_prototypes(network, toys, 'supervised_model')
    assert np.abs(prototypes - torch.stack([prototype for prototype, _, _ in embedding]).numpy()).max() < 1e-4
    assert not prototypes[0].any() and prototypes[1:].any(1).all()
    iou = [plain_score(embedding, prototypes, 10, seed)[1] for seed in (1234, 1235)]
    assert results['weights'] is None and 'NMI' not in results
    assert np.allclose(results['IoU_per_seed'], iou, rtol=0, atol=1e-9)
    assert 'random weights' in (tmp_path / 'output' / 'small' / 'log_file.txt').read_text()


def test_formats_and_workers_make_no_difference(run, checkpoint, tmp_path):
    want = run()
    assert want['seeds'] == [1234, 1235, 1236, 1237, 1238]
    assert len(list((tmp_path / 'output' / 'small' / 'visualization').iterdir())) == IMAGES
    bare = {key: value for key, value in torch.load(checkpoint)['model'].items() if key.startswith('module.model_q.')}
    torch.save(bare, tmp_path / 'bare.pth')
    # `upsample` is about pre-training: masks are made at the input's size anyway.
    changes = {'pretraining': str(tmp_path / 'bare.pth'), 'num_workers': 2, 'model_kwargs.upsample': False}
    assert run(changes, ['--num_visualizations', '0'], name='bare') == {**want, 'weights': str(tmp_path / 'bare.pth')}
    assert not list((tmp_path / 'output' / 'bare' / 'visualization').iterdir())


def test_one_image_at_a_time(run, reference, network, toys):
    embedding, prototypes = reference
    alone = product_prototypes(network, toys, batch_size=1)
    assert np.abs(alone - prototypes).max() < 1e-4
    results = run({'val_db_kwargs.batch_size': 1}, ['--num_seeds', '2'])
    iou = [plain_score(embedding, alone, 10, seed)[1] for seed in (1234, 1235)]
    assert np.allclose(results['IoU_per_seed'], iou, rtol=0, atol=1e-9)


# Errors


@pytest.fixture
def fails(run, user_error, tmp_path):
    """fails(changes, ...) runs main, which must fail and leave an earlier result alone, and returns the message."""
    def call(*arguments, **named):
        output = tmp_path / 'output' / 'small'
        output.mkdir(parents=True, exist_ok=True)
        (output / 'results.json').write_text('previous')
        line = user_error(lambda: run(*arguments, **named)).removeprefix('error: ')
        assert (output / 'results.json').read_text() == 'previous'
        assert {path.name for path in output.iterdir()} <= {'results.json', 'config.yml', 'log_file.txt'}
        return line
    return call


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_checkpoints_that_do_not_fit(fails, network, checkpoint, tmp_path):
    path, trace = tmp_path / 'weights.pth', tmp_path / 'code-was-run'
    changes = {'pretraining': str(path)}
    assert fails(changes) == f'{path}: there is no such checkpoint file'
    path.write_bytes(checkpoint.read_bytes()[:10 ** 6])
    assert fails(changes).startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    good = torch.load(checkpoint)['model']
    broken = {key: value * float('nan') if key.endswith('q.head.bias') else value for key, value in good.items()}
    for content, words in (
            ({'model': good, 'epoch': Payload(trace)}, 'refused, since loading it would run code'),
            (get_model({'backbone': 'resnet18'}).state_dict(), "none of its keys starts with 'module.model_q.'"),
            (torch.zeros(3), 'not a pre-training checkpoint'), ({'model': 3}, 'not a pre-training checkpoint'),
            ({key: value for key, value in good.items() if key != 'module.model_q.head.bias'}, 'network: missing head.bias'),
            ({**good, 'module.model_q.decoder.4.bias': torch.zeros(21)}, 'network: left over decoder.4.bias'),
            (broken, f'no finite embedding for {EMPTY}')):
        torch.save(content, path)
        line = fails(changes)
        assert words in line and (content is broken or line.startswith(f'{path}: '))
    assert not trace.exists()
    assert fails({'backbone': 'resnet50'}).startswith(f'{checkpoint}: its weights do not fit this network: missing backbone.')
    assert fails({'model_kwargs.ndim': 4}).endswith('network: of another shape head.weight, head.bias')


def test_impossible_settings(fails, toys, tmp_path):
    few = f'{toys / "Toys" / "sets" / "val.txt"}: {IMAGES} images are too few for 19 clusters'
    assert fails(flags=['--n_clusters', '20']).startswith(few)
    assert fails({'kmeans_kwargs': {'n_clusters': 20}}).startswith(few)
    for flags in (['--n_clusters', '0'], ['--n_clusters', '1'], ['--num_seeds', '0'], ['--seed', '-1'],
                  ['--seed', str(2 ** 32 - 2)]):
        assert f'{flags[0].removeprefix("--num_")}' in fails(flags=flags)
    for changes, words in (({'kmeans_eval': ...}, 'needs kmeans_eval: True'),
                           ({'model_kwargs.use_classification_head': False}, 'val_db_kwargs.saliency must name'),
                           ({'model_kwargs.ndims': 8}, "unknown key 'model_kwargs.ndims'")):
        line = fails(changes)
        assert line.startswith(f'{tmp_path / "small.yml"}: ') and words in line
    assert 'saliency_none: the folder is missing' in fails({'val_db_kwargs.saliency': 'none'})


@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_data(fails, toys, tmp_path, workers):
    folder = shutil.copytree(toys, tmp_path / 'own') / 'Toys'
    image, labels = folder / 'images' / 'val_0009.jpg', folder / 'SegmentationClass' / 'val_0010.png'
    changes, content = {'num_workers': workers}, image.read_bytes()
    image.write_bytes(content[:len(content) // 2])
    assert fails(changes, root=tmp_path / 'own').startswith(f'{image} is not a whole image')
    image.write_bytes(content)
    Image.fromarray(np.full((70, 60), 10, np.uint8)).save(labels)
    line = fails(changes, root=tmp_path / 'own')
    assert line.startswith('val_0010: label 10 in its labels, but there are only 10 classes')
    labels.unlink()
    assert fails(changes, root=tmp_path / 'own').startswith(f'{labels} could not be read')
