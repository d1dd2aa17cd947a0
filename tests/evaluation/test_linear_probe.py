"""The parts of the linear classifier against the plain order of operations."""
import contextlib
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.experiments import LINEAR
from helpers.plain_evaluation import CLASSES, HALF, RESOLUTION, plain_images, plain_iou
from helpers.processes import largest_file
from torch.nn import functional as F

from data.dataset import SegmentationDataset
from data.label_space import LabelSpace
from data.loaders import split_loader
from evaluation.crf import CrfPool
from evaluation.evaluation_images import EvaluationImages
from evaluation.feature_cache import FeatureCache
from evaluation.inference import segment
from evaluation.linear_probe import backward_loss, class_logits, frozen_features, online_iou, predicted_classes
from evaluation.linear_training import LinearTrainer
from evaluation.model_loading import CLASSIFIER, load_frozen_weights, probe_network
from evaluation.predictions import write_predictions
from utils.config import create_config
from utils.config.keys import LINEAR as SCRIPT
from utils.errors import UserError
from utils.parallel.random_streams import RandomStreams
from utils.training.optimizer import get_optimizer

CPU = torch.device('cpu')


@pytest.fixture
def network(experiment, pretrained):
    """A `LinearNetwork` whose classifier is not small, so that predictions vary."""
    torch.manual_seed(0)
    flags = experiment({'pretraining': str(pretrained)}, base=LINEAR)
    p = create_config(flags[1], flags[3], SCRIPT)
    network = probe_network(p, CLASSES)
    assert not network.classifier.bias.any() and network.classifier.weight.shape == (CLASSES, 256, 1, 1)
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    load_frozen_weights(network, p)
    torch.nn.init.normal_(network.classifier.weight)
    return network.to(memory_format=torch.channels_last).eval()


@pytest.fixture
def images(shapes_root):
    return EvaluationImages(SegmentationDataset(shapes_root / 'Shapes', 'val', labels=True), RESOLUTION, CLASSES)


def loader_of(images, batch_size=4):
    return split_loader(images, 0, CPU, batch_size)


def test_loss_and_gradient_equal_those_of_the_plain_order(network):
    """Plain: upsample the 256 channels, classify each pixel, one cross-entropy over the batch."""
    rng = np.random.default_rng(0)
    features = torch.rand(3, 256, 5, 4)
    labels = torch.from_numpy(rng.choice([0, 1, 5, 8, 255], (3, *RESOLUTION)))
    labels[1] = 255  # an image without a valid pixel
    weight, bias = (parameter.detach().double().requires_grad_() for parameter in network.classifier.parameters())
    pixels = F.interpolate(features.double(), RESOLUTION, mode='bilinear', align_corners=False)
    plain = F.cross_entropy(F.conv2d(pixels, weight, bias), labels, ignore_index=255)
    plain.backward()
    loss = backward_loss(network.classifier, features, labels)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for found, want in zip(network.classifier.parameters(), (weight, bias), strict=True):
        assert torch.allclose(found.grad.double(), want.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_of_void_has_no_loss_and_no_gradient(network):
    loss = backward_loss(network.classifier, torch.rand(2, 256, 5, 4), torch.full((2, *RESOLUTION), 255))
    assert loss.item() == 0 and not network.classifier.weight.grad.any()


def test_only_the_classifier_has_a_graph(network, images):
    batch = torch.stack([images[index]['image'] for index in range(2)])
    features = frozen_features(network.train(), batch, CPU, 'none')
    assert not features.requires_grad and features.grad_fn is None
    backward_loss(network.classifier, features, torch.zeros(2, *RESOLUTION, dtype=torch.long))
    assert [name for name, parameter in network.named_parameters() if parameter.grad is not None] == list(CLASSIFIER['deeplab'])


def test_predictions_are_those_of_the_plain_order(network, images, shapes_root):
    """Plain: upsample the 256 channels of one image, classify each pixel."""
    batch = torch.stack([images[index]['image'] for index in range(6)])
    with torch.no_grad():
        found = predicted_classes(class_logits(network.classifier, frozen_features(network, batch, CPU, 'none'), range(6)),
                                  RESOLUTION)
        for prediction, (_, image, _) in zip(found, plain_images(shapes_root, HALF), strict=True):
            pixels = F.interpolate(network.features(image).double(), RESOLUTION, mode='bilinear', align_corners=False)
            logits = torch.einsum('cd,dyx->cyx', network.classifier.weight[..., 0, 0].double(), pixels[0])
            assert (prediction == logits.argmax(0).numpy()).mean() > 0.997
            assert torch.allclose(network(image)[0].double(), logits, rtol=1e-3, atol=1e-3)
    assert found.dtype == np.uint8 and len(np.unique(found)) > 2


def test_logits_that_are_not_finite_name_the_image(network):
    features = torch.zeros(3, 256, 5, 4)
    features[1, 7, 2, 2] = float('nan')
    with pytest.raises(UserError, match='no finite logits for b: try --amp none'):
        class_logits(network.classifier, features, ['a', 'b', 'c'])


# Validation features


@pytest.fixture
def features(network, images, tmp_path):
    """features(keep) makes `FeatureCache` that keep their file in an empty folder."""
    folder = tmp_path / 'features'
    folder.mkdir()
    return lambda keep: FeatureCache(network, loader_of(images), CPU, 'none', RESOLUTION, folder, keep)


def assert_equal_passes(*passes):
    for batches in zip(*passes, strict=True):
        ids, features, labels = batches[0]
        for other in batches[1:]:
            assert other[0] == ids and torch.equal(other[1], features) and np.array_equal(other[2], labels)
            assert other[1].stride() == features.stride()


def test_kept_features_equal_computed_ones_and_plain_ones(features, network, shapes_root, tmp_path):
    with features(True) as kept, features(False) as computed:
        first, second, fresh = list(kept), list(kept), list(computed)
        assert kept.file and not computed.file and not list((tmp_path / 'features').iterdir())  # the file has no name
        assert_equal_passes(first, second, fresh)
        next(iter(kept))  # a pass that is broken off
        assert_equal_passes(first, kept)
        found = online_iou(network.classifier, kept, CLASSES)
        assert np.array_equal(found, online_iou(network.classifier, computed, CLASSES))
    assert kept.file is None
    with torch.no_grad():
        plain = torch.cat([network.features(image) for _, image, _ in plain_images(shapes_root, HALF)])
    assert torch.allclose(torch.cat([values for _, values, _ in second]), plain, rtol=1e-3, atol=1e-4)
    predictions = [prediction for _, values, _ in second for prediction in predicted_classes(
        network.classifier(values).detach(), RESOLUTION)]
    labels = [cv2.resize(label, RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST)
              for _, _, label in plain_images(shapes_root, HALF)]
    assert np.allclose(found, plain_iou(predictions, labels), rtol=0, atol=1e-9) and (found > 0).sum() > 1


@pytest.mark.parametrize('failure', ['file size', 'no folder', 'reserve'])
def test_without_room_every_pass_computes(features, tmp_path, caplog, monkeypatch, failure):
    limit = largest_file(100_000) if failure == 'file size' else contextlib.nullcontext()  # one batch has 86 kB, not two
    if failure == 'no folder':
        validation = features(True)
        (tmp_path / 'features').rmdir()
    elif failure == 'reserve':
        free = shutil.disk_usage(tmp_path).free
        monkeypatch.setattr('evaluation.feature_cache.RESERVE', free)
    with limit, validation if failure == 'no folder' else features(True) as validation:
        told, first = validation.seen, list(validation)
        assert 'No room to keep the features' in caplog.text and validation.file is None
        assert told is None and len(validation.seen.images) == 6  # not of the pass that was broken off
        assert_equal_passes(first, validation)
    assert sum(len(ids) for ids, _, _ in first) == 6


# Best model


def test_weights_that_are_not_finite_never_become_the_best(network, tmp_path):
    optimizer = get_optimizer(network.parameters(), 'sgd', lr=0.1)
    trainer = LinearTrainer(network, optimizer, None, RandomStreams(0, 0, 1, CPU), 'none', tmp_path / 'checkpoint.pth.tar',
                            best_model=tmp_path / 'best_model.pth.tar')
    trainer.epoch = 0
    trainer.save_epoch(10.0)
    before = [path.read_bytes() for path in sorted(tmp_path.glob('*.pth.tar'))]
    network.classifier.bias.data[0] = float('nan')
    trainer.epoch = 1
    with pytest.raises(UserError, match='the weights are not finite'):
        trainer.save_epoch(20.0)
    assert [path.read_bytes() for path in sorted(tmp_path.glob('*.pth.tar'))] == before and len(before) == 2


@pytest.mark.slow
def test_a_best_model_that_was_not_written_any_more_comes_from_the_checkpoint(network, tmp_path):
    def trainer():
        optimizer = get_optimizer(network.parameters(), 'sgd', lr=0.1)
        return LinearTrainer(network, optimizer, None, RandomStreams(0, 0, 1, CPU), 'none', tmp_path / 'checkpoint.pth.tar',
                             best_model=best)
    best = tmp_path / 'best_model.pth.tar'
    first = trainer()
    for first.epoch, iou, bias in ((0, 10.0, 1), (1, 20.0, 2), (2, 15.0, 3)):  # the best is the second
        network.classifier.bias.data[:] = bias
        first.save_epoch(iou)
        if first.epoch == 2:
            shutil.copy(first.checkpoint, tmp_path / 'second')
            torch.save(network.state_dict() | {'decoder.4.bias': torch.ones(CLASSES)}, best)  # the first: killed before
            again = trainer()
            again.resume(torch.load(tmp_path / 'second', weights_only=True), 'second')
            assert (again.best_epoch, again.best_iou) == (1, 20.0)
    assert (torch.load(best, weights_only=True)['decoder.4.bias'] == 2).all()


# Predictions and pictures


@pytest.mark.slow
@pytest.mark.parametrize('ahead', [0, 3, 100])
def test_a_backlog_of_the_crf_changes_nothing(network, images, ahead):
    with CrfPool(images.dataset, 2) as pool:
        found = list(segment(network, loader_of(images), CPU, 'none', pool, ahead))
        want = list(segment(network, loader_of(images, 6), CPU, 'none', pool))
    assert len(found) == 6 and all((a == b).mean() > 0.99 for a, b in zip(found, want, strict=True))


def test_an_evaluation_takes_the_place_of_an_earlier_one_only_when_it_is_whole(images, tmp_path):
    dataset, space = images.dataset, LabelSpace(tuple(f'class {number}' for number in range(CLASSES)))
    shapes = [dataset[index]['labels'].shape for index in range(6)]

    def run(value, pictures, fails=False):
        predictions = (np.full((2, 2) if fails and index == 4 else shape, value, np.uint8)
                       for index, shape in enumerate(shapes))
        return write_predictions(tmp_path, dataset, predictions, space, pictures)

    def content():
        return {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    first = run(1, None)
    assert first.dtype == np.int64 and first[1].sum() == first.sum() and first.sum() > 0
    (tmp_path / 'results.json').write_text('the score of the first')
    before = content()
    assert len(before) == 6 + 6 + 1 + 1
    with pytest.raises(UserError, match='val_0004: the labels are .* and the prediction 2 x 2'):
        run(2, None, fails=True)
    assert content() == before
    run(3, 2)
    after = content()
    assert Path('results.json') not in after and len(after) == 6 + 2 + 1  # nothing of the first is left
    assert not list(tmp_path.glob('.*')) and all(after[path] != before[path] for path in after)


def test_one_id_twice(images, tmp_path):
    images.dataset.ids = [images.dataset.ids[0]] * 40
    shape = images.dataset[0]['labels'].shape
    write_predictions(tmp_path, images.dataset, [np.zeros(shape, np.uint8)] * 40, LabelSpace(('x',) * CLASSES), 0)
    assert os.listdir(tmp_path / 'predictions') == [f'{images.dataset.ids[0]}.png']
