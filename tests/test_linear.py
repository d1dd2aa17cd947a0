"""`linear_finetune.py` end to end, and its parts against the plain order of operations."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import LINEAR
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_main import assert_same
from torch.nn import functional as F

import utils.training
from data.batches import make_loader
from data.dataset import SegmentationDataset
from evaluation.features import ValidationFeatures
from evaluation.images import EvaluationImages
from evaluation.linear import backward_loss, frozen_features, online_iou, predicted_classes
from evaluation.weights import CLASSIFIER, load_frozen_weights, probe_network
from linear_finetune import main
from utils.config import create_config
from utils.config_keys import LINEAR as SCRIPT

ROOT = Path(__file__).resolve().parents[1]
CPU, CLASSES, RESOLUTION = torch.device('cpu'), 9, (40, 32)


def load(folder, name='checkpoint.pth.tar'):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture
def arguments(experiment, pretrained):
    """arguments(changes, ...) are the script's, for a small run on the pre-trained checkpoint."""
    def make(changes=None, **named):
        return experiment({'pretraining': str(pretrained), **(changes or {})}, base=LINEAR, **named)
    return make


@pytest.fixture
def network(arguments):
    """A `LinearNetwork` whose classifier is not small, so that predictions vary."""
    torch.manual_seed(0)
    flags = arguments()
    p = create_config(flags[1], flags[3], SCRIPT)
    network = probe_network(p, CLASSES)
    load_frozen_weights(network, p)
    torch.nn.init.normal_(network.classifier.weight)
    return network.to(memory_format=torch.channels_last)


@pytest.fixture
def images(shapes_root):
    return EvaluationImages(SegmentationDataset(shapes_root / 'Shapes', 'val', labels=True), RESOLUTION)


def plain_images(shapes_root, split='val'):
    """(id, 1 x 3 x 40 x 32 float32, labels H x W) of each image, one at a time."""
    folder = shapes_root / 'Shapes'
    for name in (folder / 'sets' / f'{split}.txt').read_text().split():
        image = cv2.resize(np.asarray(Image.open(folder / 'images' / f'{name}.jpg')), RESOLUTION[::-1],
                           interpolation=cv2.INTER_CUBIC)
        image = (torch.tensor(image) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        yield name, image.permute(2, 0, 1).unsqueeze(0), np.array(Image.open(folder / 'SegmentationClass' / f'{name}.png'))


def plain_iou(predictions, labels):
    """IoU of each class in percent, by scikit-learn, over the valid pixels of all images."""
    valid = [label != 255 for label in labels]
    truth, predicted = (np.concatenate([one[v] for one, v in zip(images, valid, strict=True)])
                        for images in (labels, predictions))
    counts = sklearn_confusion(truth, predicted, labels=range(CLASSES)).astype(float)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return np.where(union > 0, 100 * counts.diagonal() / np.maximum(union, 1), 0)


# Parts, against the plain order of operations


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
    assert [name for name, parameter in network.named_parameters() if parameter.grad is not None] == list(CLASSIFIER)


def test_predictions_are_those_of_the_whole_network(network, images):
    batch = torch.stack([images[index]['image'] for index in range(3)])
    network.eval()
    with torch.no_grad():
        grid = network.classifier(frozen_features(network, batch, CPU, 'none'))
        logits = network(((batch / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))
                         .permute(0, 3, 1, 2))
        found = predicted_classes(grid, RESOLUTION)
    assert found.dtype == np.uint8 and (found == logits.argmax(1).numpy()).mean() > 0.999 and len(np.unique(found)) > 2


def test_kept_features_equal_computed_ones_and_the_plain_online_score(network, images, tmp_path, shapes_root):
    def make(keep):
        return ValidationFeatures(network, make_loader(images, 0, CPU, batch_size=4), CPU, 'none', RESOLUTION, tmp_path, keep)
    kept, computed = make(True), make(False)
    first, second, third, fresh = list(kept), list(kept), list(kept), list(computed)
    assert kept.batches and not computed.batches and not list(tmp_path.glob('*/*tmp*'))  # the file has no name
    for want, *others in zip(first, second, third, fresh, strict=True):
        for ids, features, labels in others:
            assert ids == want[0] and torch.equal(features, want[1]) and np.array_equal(labels, want[2])
            assert features.stride() == want[1].stride()
    predictions, labels = [], []
    for _, image, label in plain_images(shapes_root):
        with torch.no_grad():
            predictions.append(network(image)[0].argmax(0).numpy())
        labels.append(cv2.resize(label, RESOLUTION[::-1], interpolation=cv2.INTER_NEAREST))
    assert np.allclose(online_iou(network.classifier, kept, CLASSES), plain_iou(predictions, labels), atol=0.3)
    with torch.no_grad():
        plain = torch.cat([network.features(image) for _, image, _ in plain_images(shapes_root)])
    assert torch.allclose(torch.cat([features for _, features, _ in second]), plain, rtol=1e-3, atol=1e-4)
    assert np.array_equal(online_iou(network.classifier, kept, CLASSES), online_iou(network.classifier, computed, CLASSES))
    kept.close()
    assert kept.file is None and len(list(kept)) == len(first)


def test_without_room_for_the_features_every_epoch_computes(network, images, tmp_path, caplog):
    features = ValidationFeatures(network, make_loader(images, 0, CPU, batch_size=4), CPU, 'none', RESOLUTION, tmp_path, True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # one batch has 86 kB: the second doesn't fit
    try:
        first = list(features)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'No room to keep the features' in caplog.text and features.file is None and not features.batches
    for a, b in zip(first, features, strict=True):
        assert torch.equal(a[1], b[1])


# The script


def test_what_a_run_leaves(arguments, pretrained, shapes_root, tmp_path, capsys):
    main(arguments())
    folder, printed = tmp_path / 'output' / 'small', capsys.readouterr().out.splitlines()
    state, best, before = load(folder), load(folder, 'best_model.pth.tar'), torch.load(pretrained, weights_only=True)['model']
    assert set(state['model']) == set(best) and state['epoch'] == 2 and not any(key.startswith('module.') for key in best)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [1, 2] and [row['lr'] for row in rows] == pytest.approx([0.1, 0.01])
    assert all(row['loss'] > 0 and row['images_per_second'] > 0 and row['skipped_images'] == 0 for row in rows)
    scores = [row['mIoU'] for row in rows]
    assert state['best_iou'] == max(scores) and state['best_epoch'] == scores.index(max(scores))
    for name, tensor in state['model'].items():  # frozen, bit for bit
        if name in CLASSIFIER:
            assert tensor.shape[0] == CLASSES
        else:
            assert torch.equal(tensor, before[f'module.model_q.{name}']) and torch.equal(best[name], tensor), name

    # The final score, from the best model, one image at a time
    network = probe_network(create_config(*arguments()[1:4:2], SCRIPT), CLASSES).eval()
    network.load_state_dict(best)
    predictions, labels = [], []
    for name, image, label in plain_images(shapes_root):
        with torch.no_grad():
            prediction = network(image)[0].argmax(0).numpy().astype(np.uint8)
        predictions.append(cv2.resize(prediction, label.shape[::-1], interpolation=cv2.INTER_NEAREST))
        labels.append(label)
        written = Image.open(folder / 'predictions' / f'{name}.png')
        assert written.mode == 'P' and written.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        assert (np.array(written) == predictions[-1]).mean() > 0.999
    written = [np.array(Image.open(folder / 'predictions' / f'{name}.png')) for name, _, _ in plain_images(shapes_root)]
    results = json.loads((folder / 'results.json').read_text())
    iou = plain_iou(written, labels)
    assert np.allclose(list(results['IoU'].values()), iou, rtol=0, atol=1e-9)
    assert results['mIoU'] == pytest.approx(iou.mean(), abs=1e-9) and iou.mean() > 5
    assert list(results['IoU'])[:2] == ['background', 'disc'] and len(results['IoU']) == CLASSES
    assert results['script'] == 'linear_finetune.py' and results['crf'] is False
    assert results['weights'] == str(folder / 'best_model.pth.tar') and results['pretraining'] == str(pretrained)
    assert printed[-10] == f'mIoU is {results["mIoU"]:.2f}'
    assert printed[-9] == f'IoU class background is {results["IoU"]["background"]:.2f}'

    events = EventAccumulator(str(folder / 'tensorboard'))
    events.Reload()
    assert [event.step for event in events.Images('views')] == [1, 2]
    assert [event.value for event in events.Scalars('mIoU')] == pytest.approx(scores)
    config = yaml.safe_load((folder / 'config.yml').read_text())
    assert config['resolved'] == {'device': 'cpu', 'precision': 'none', 'seed': 3, 'crf': False}
    assert {path.name for path in folder.iterdir()} == {
        'best_model.pth.tar', 'checkpoint.pth.tar', 'config.yml', 'log_file.txt', 'metrics.jsonl', 'predictions',
        'results.json', 'tensorboard'}

    content = (folder / 'results.json').read_bytes()
    main(arguments())
    assert 'This run had finished (2 epochs)' in capsys.readouterr().out and (folder / 'results.json').read_bytes() == content
    (folder / 'results.json').unlink()  # killed during the final evaluation: that alone is done again
    main(arguments())
    printed = capsys.readouterr().out
    assert 'loss' not in printed and 'random weights' not in printed and (folder / 'results.json').read_bytes() == content
    main([*arguments(), '--crf-postprocess'])
    refined = json.loads((folder / 'results.json').read_text())
    assert refined['crf'] is True and refined['online_mIoU'] == results['online_mIoU']
    assert_same(load(folder), state)


@pytest.mark.parametrize('freeze', ['backbone', 'none'])
def test_partly_frozen_batch_norm(arguments, pretrained, tmp_path, freeze):
    main(arguments({'freeze_batchnorm': freeze, 'epochs': 1}))
    state, before = (torch.load(path, weights_only=True)['model'] for path in (
        tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', pretrained))
    for name, tensor in state.items():
        if name in CLASSIFIER:
            continue
        moves = name.endswith(('running_mean', 'running_var', 'batches_tracked')) and (
            freeze == 'none' or name.startswith('decoder.'))
        assert torch.equal(tensor, before[f'module.model_q.{name}']) != moves, name


@pytest.mark.parametrize('freeze, workers, amp', [('all', 0, 'none'), ('none', 2, 'bf16')])
def test_cut_anywhere_and_resumed_is_bit_equal(arguments, tmp_path, monkeypatch, freeze, workers, amp):
    flags = [*arguments({'epochs': 3, 'checkpoint_every': 2, 'num_workers': workers, 'freeze_batchnorm': freeze}), '--amp', amp]
    folder, kept, save = tmp_path / 'output' / 'small', [], utils.training.save_checkpoint

    def save_and_copy(state, path):
        save(state, path)
        cut = tmp_path / f'cut-{len(kept)}'
        cut.mkdir()
        kept.append([shutil.copy(file, cut) for file in folder.glob('*.pth.tar')])

    monkeypatch.setattr(utils.training, 'save_checkpoint', save_and_copy)
    main(flags)
    monkeypatch.undo()
    final, metrics = [load(folder, name) for name in ('checkpoint.pth.tar', 'best_model.pth.tar')], rows_of(folder)
    results = (folder / 'results.json').read_bytes()
    assert len(kept) == 6  # two an epoch
    for number, position in ((0, 'after 0 epochs and 2 steps'), (3, 'after 2 epochs and 0 steps')):
        for path in (folder / 'log_file.txt', folder / 'results.json', folder / 'best_model.pth.tar'):
            path.unlink()
        for file in kept[number]:
            shutil.copy(file, folder)
        main(flags)
        assert position in (folder / 'log_file.txt').read_text()
        assert_same([load(folder, name) for name in ('checkpoint.pth.tar', 'best_model.pth.tar')], final)
        assert rows_of(folder) == metrics and (folder / 'results.json').read_bytes() == results


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != 'images_per_second'} for row in rows]


def test_killed_and_started_again(arguments, tmp_path):
    """A real process, a real SIGKILL in its second epoch."""
    changes = {'epochs': 3, 'num_workers': 1}
    flags, folder = arguments(changes), tmp_path / 'output' / 'small'
    process = subprocess.Popen([sys.executable, ROOT / 'segmentation' / 'linear_finetune.py', *flags], cwd='/',
                               stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / 'checkpoint.pth.tar').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / 'results.json').exists()
    main(flags)
    assert 'Going on from' in (folder / 'log_file.txt').read_text()
    main(arguments(changes, name='undisturbed'))
    other = folder.parent / 'undisturbed'
    for key in ('model', 'optimizer', 'best_iou', 'best_epoch'):
        assert_same(load(folder)[key], load(other)[key], key)
    assert_same(load(folder, 'best_model.pth.tar'), load(other, 'best_model.pth.tar'))
    assert rows_of(folder) == rows_of(other)


def test_random_weights_and_skipped_images(arguments, shapes_root, tmp_path, capsys):
    root = shutil.copytree(shapes_root, tmp_path / 'own')
    path = root / 'Shapes' / 'images' / 'train_0002.jpg'
    path.write_bytes(path.read_bytes()[:200])
    main(arguments({'pretraining': None, 'on_bad_image': 'skip', 'epochs': 1, 'optimizer': 'adam',
                    'optimizer_kwargs': {'lr': 1e-3}, 'scheduler': 'poly'}, db_root=root))
    folder, printed = tmp_path / 'output' / 'small', capsys.readouterr().out
    assert rows_of(folder)[0]['skipped_images'] == 1 and f'skipped: {path} is not a whole image' in printed
    assert 'random weights' in printed and json.loads((folder / 'results.json').read_text())['pretraining'] is None


def test_classifier_starts_small(arguments):
    network = probe_network(create_config(*arguments()[1:4:2], SCRIPT), CLASSES)
    weight = network.classifier.weight
    assert weight.shape == (CLASSES, 256, 1, 1) and not network.classifier.bias.any()
    assert weight.std().item() == pytest.approx(0.01, rel=0.1) and abs(weight.mean().item()) < 0.001
