"""`linear_finetune.py` end to end: what a run leaves, and how it goes on after a cut."""
import json
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import warm
from helpers.checks import assert_same
from helpers.experiments import LINEAR, RESNET
from helpers.plain_evaluation import CLASSES, IMAGENET, plain_images, plain_iou
from helpers.stored import pretraining_checkpoint
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import utils.training.loop
from evaluation.model_loading import CLASSIFIER, probe_network
from linear_finetune import main
from utils.config import create_config
from utils.config.keys import LINEAR as SCRIPT

ROOT = Path(__file__).resolve().parents[2]


def load(folder, name='checkpoint.pth.tar'):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture(scope='module')
def pretrained_resnet(shapes_root, tmp_path_factory):
    return pretraining_checkpoint(tmp_path_factory.mktemp('resnet') / 'checkpoint.pth.tar', RESNET, shapes_root)


@pytest.fixture
def arguments(experiment, pretrained):
    """arguments(changes, ...) are the script's, for a small run on the pre-trained checkpoint."""
    def make(changes=None, **named):
        return experiment({'pretraining': str(pretrained), **(changes or {})}, base=LINEAR, **named)
    return make


@pytest.mark.slow
def test_what_a_run_leaves(experiment, pretrained_resnet, shapes_root, tmp_path, capsys):
    """Of a ResNet, the backbone of the published files; the other tests have a small one."""
    arguments = experiment({'pretraining': str(pretrained_resnet), **RESNET}, base=LINEAR)
    main(arguments)
    folder, printed = tmp_path / 'output' / 'small', capsys.readouterr().out.splitlines()
    state, best = load(folder), load(folder, 'best_model.pth.tar')
    before = load(pretrained_resnet.parent)['model']
    assert set(state['model']) == set(best) and state['epoch'] == 2 and not any(key.startswith('module.') for key in best)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [1, 2] and [row['lr'] for row in rows] == pytest.approx([0.1, 0.01])
    assert all(row['loss'] > 0 and row['images_per_second'] > 0 and row['skipped_images'] == 0 for row in rows)
    scores = [row['mIoU'] for row in rows]
    assert state['best_iou'] == max(scores) and state['best_epoch'] == scores.index(max(scores))
    for name, tensor in state['model'].items():  # frozen, bit for bit
        if name in CLASSIFIER['deeplab']:
            assert tensor.shape[0] == CLASSES
        else:
            assert torch.equal(tensor, before[f'module.model_q.{name}']) and torch.equal(best[name], tensor), name

    # The final score, from the best model, one image at a time
    network = probe_network(create_config(*arguments[1:4:2], SCRIPT), CLASSES).eval()
    network.load_state_dict(best)
    predictions, labels = [], []
    for name, image, label in plain_images(shapes_root, IMAGENET):
        with torch.no_grad():
            prediction = network(image)[0].argmax(0).numpy().astype(np.uint8)
        predictions.append(cv2.resize(prediction, label.shape[::-1], interpolation=cv2.INTER_NEAREST))
        labels.append(label)
        written = Image.open(folder / 'predictions' / f'{name}.png')
        assert written.mode == 'P' and written.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        assert (np.array(written) == predictions[-1]).mean() > 0.999
    written = [np.array(Image.open(folder / 'predictions' / f'val_{index:04d}.png')) for index in range(len(labels))]
    results = json.loads((folder / 'results.json').read_text())
    iou = plain_iou(written, labels)
    assert np.allclose(list(results['IoU'].values()), iou, rtol=0, atol=1e-9)
    assert results['mIoU'] == pytest.approx(iou.mean(), abs=1e-9) and iou.mean() > 5
    assert list(results['IoU'])[:2] == ['background', 'disc'] and len(results['IoU']) == CLASSES
    assert results['script'] == 'linear_finetune.py' and results['crf'] is False
    assert results['weights'] == str(folder / 'best_model.pth.tar') and results['pretraining'] == str(pretrained_resnet)
    assert printed[-10] == f'mIoU is {results["mIoU"]:.2f}'
    assert printed[-9] == f'IoU class background is {results["IoU"]["background"]:.2f}'

    events = EventAccumulator(str(folder / 'tensorboard'))
    events.Reload()
    assert [event.step for event in events.Images('views')] == [1, 2]
    assert [event.value for event in events.Scalars('mIoU')] == pytest.approx(scores)
    config = yaml.safe_load((folder / 'config.yml').read_text())
    assert config['resolved'] == {'device': 'cpu', 'precision': 'none', 'seed': 3, 'processes': 1}
    assert {path.name for path in folder.iterdir()} == {
        'best_model.pth.tar', 'checkpoint.pth.tar', 'checkpoint.pth.tar.previous', 'config.yml', 'log_file.txt',
        'metrics.jsonl', 'predictions', 'results.json', 'tensorboard'}

    content = (folder / 'results.json').read_bytes()
    main(arguments)
    assert 'This run has finished (2 epochs)' in capsys.readouterr().out and (folder / 'results.json').read_bytes() == content
    (folder / 'results.json').unlink()  # killed during the final evaluation: that alone is done again
    main(arguments)
    printed = capsys.readouterr().out
    assert 'loss' not in printed and 'random weights' not in printed and (folder / 'results.json').read_bytes() == content
    main([*arguments, '--crf-postprocess'])
    refined = json.loads((folder / 'results.json').read_text())
    assert refined['crf'] is True and refined['online_mIoU'] == results['online_mIoU']
    assert_same(load(folder), state)


@pytest.mark.slow
@pytest.mark.parametrize('freeze', ['backbone', 'none'])
def test_partly_frozen_batch_norm(arguments, pretrained, tmp_path, freeze):
    main(arguments({'freeze_batchnorm': freeze, 'epochs': 1}))
    state, before = (torch.load(path, weights_only=True)['model'] for path in (
        tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', pretrained))
    for name, tensor in state.items():
        if name in CLASSIFIER['deeplab']:
            continue
        moves = name.endswith(('running_mean', 'running_var', 'batches_tracked')) and (
            freeze == 'none' or name.startswith('decoder.'))
        assert torch.equal(tensor, before[f'module.model_q.{name}']) != moves, name


@pytest.mark.slow
@pytest.mark.parametrize('freeze, workers, amp, number, position', [
    ('none', 2, 'bf16', 0, 'after 0 epochs and 2 steps'), ('all', 0, 'none', 4, 'after 1 epochs and 3 steps')])
def test_cut_anywhere_and_resumed_is_bit_equal(arguments, tmp_path, monkeypatch, freeze, workers, amp, number, position):
    flags = [*arguments({'epochs': 3, 'checkpoint_every': 2, 'num_workers': workers, 'freeze_batchnorm': freeze}), '--amp', amp]
    folder, kept, save = tmp_path / 'output' / 'small', [], utils.training.loop.save_checkpoint

    def save_and_copy(state, path):
        save(state, path)
        cut = tmp_path / f'cut-{len(kept)}'
        cut.mkdir()
        kept.append([shutil.copy(file, cut) for file in folder.glob('*.pth.tar')])

    monkeypatch.setattr(utils.training.loop, 'save_checkpoint', save_and_copy)
    main(flags)
    monkeypatch.undo()
    final, metrics = [load(folder, name) for name in ('checkpoint.pth.tar', 'best_model.pth.tar')], rows_of(folder)
    results = (folder / 'results.json').read_bytes()
    assert len(kept) == 9  # three an epoch: after two steps, before the validation, and at the end
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


# Killed by the system in the second step of its second epoch
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / 'segmentation')!r})
import linear_finetune
from evaluation import linear_training

class Trainer(linear_training.LinearTrainer):
    def train_step(self, batch):
        if (self.epoch, self.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

linear_training.LinearTrainer = Trainer
linear_finetune.main()
"""


@pytest.mark.slow
def test_killed_and_started_again(arguments, tmp_path):
    """A real process, a real SIGKILL."""
    changes = {'epochs': 3, 'num_workers': 1}
    flags, folder = arguments(changes), tmp_path / 'output' / 'small'
    (tmp_path / 'killed.py').write_text(KILLED)
    assert warm.run(tmp_path / 'killed.py', *flags, out=tmp_path / 'out').returncode == -signal.SIGKILL
    assert load(folder)['epoch'] == 1 and not (folder / 'results.json').exists()
    main(flags)
    assert 'Resuming from' in (folder / 'log_file.txt').read_text()
    main(arguments(changes, name='undisturbed'))
    other = folder.parent / 'undisturbed'
    for key in ('model', 'optimizer', 'best_iou', 'best_epoch'):
        assert_same(load(folder)[key], load(other)[key], key)
    assert_same(load(folder, 'best_model.pth.tar'), load(other, 'best_model.pth.tar'))
    assert rows_of(folder) == rows_of(other)


@pytest.mark.slow
def test_random_weights_and_skipped_images(arguments, shapes_root, tmp_path, capsys):
    root = shutil.copytree(shapes_root, tmp_path / 'own')
    path = root / 'Shapes' / 'images' / 'train_0002.jpg'
    path.write_bytes(path.read_bytes()[:200])
    main(arguments({'pretraining': None, 'on_bad_image': 'skip', 'epochs': 1, 'optimizer': 'adam',
                    'optimizer_kwargs': {'lr': 1e-3}, 'scheduler': 'poly'}, db_root=root))
    folder, printed = tmp_path / 'output' / 'small', capsys.readouterr().out
    assert rows_of(folder)[0]['skipped_images'] == 1 and f'skipped: {path} is not a complete image' in printed
    assert 'random weights' in printed and json.loads((folder / 'results.json').read_text())['pretraining'] is None
