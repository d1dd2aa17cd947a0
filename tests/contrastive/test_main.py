"""`main.py` end to end: what a run leaves, how it goes on after a cut, and when it refuses."""
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from helpers import warm
from helpers.checks import assert_same
from helpers.experiments import RESNET
from helpers.processes import MAIN, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

import utils.training.loop
from contrastive.advice import PAGE, short_run
from contrastive.trainer import view_figure
from main import main


def load(folder):
    return torch.load(folder / 'checkpoint.pth.tar', weights_only=True)


@pytest.mark.slow
def test_what_a_run_leaves(experiment, tmp_path, capsys):
    """Of a ResNet, the backbone of the published files; the other tests have a small one."""
    arguments = experiment(RESNET)
    main([*arguments, '--amp', 'none'])
    folder = tmp_path / 'output' / 'small'
    state = load(folder)
    assert state['epoch'] == 2 and all(key.startswith('module.') for key in state['model'])
    assert {'module.queue', 'module.queue_ptr', 'module.model_q.head.bias', 'module.model_k.head.bias'} <= set(state['model'])
    assert state['model']['module.queue_ptr'].item() == (2 * 3 * 4) % 8

    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [1, 2]
    assert rows[1]['lr'] == pytest.approx(0.01 * 0.5 ** 0.9)
    for row in rows:
        assert row['loss'] == pytest.approx(row['contrastive_loss'] + row['saliency_loss'])
        assert 0 <= row['acc1'] <= row['acc5'] <= 100 and row['images_per_second'] > 0 and row['skipped_images'] == 0

    config = yaml.safe_load((folder / 'config.yml').read_text())
    assert config['moco_kwargs'] == {'T': 0.5, 'm': 0.9, 'K': 8, 'loss': 'auto', 'contrast': 'pixel'}
    assert config['checkpoint_every'] is None
    assert config['resolved'] == {'device': 'cpu', 'precision': 'none', 'seed': 3, 'processes': 1}
    assert config['versions']['torch'] == torch.__version__.partition('+')[0]

    printed = capsys.readouterr().out
    log = (folder / 'log_file.txt').read_text()
    assert 'Epoch 2/2: loss' in printed and 'Epoch 2/2: loss' in log and 'Finished' in log

    events = EventAccumulator(str(folder / 'tensorboard'))
    events.Reload()
    assert {'loss', 'contrastive_loss', 'saliency_loss', 'acc1', 'acc5', 'lr', 'images_per_second'} <= set(
        events.Tags()['scalars'])
    assert [(event.step, event.value) for event in events.Scalars('loss')] == [
        (row['epoch'], pytest.approx(row['loss'])) for row in rows]
    assert [event.step for event in events.Images('views')] == [1, 2]

    before = (folder / 'checkpoint.pth.tar').read_bytes()
    main(arguments)  # finished: says so and changes nothing
    assert 'has finished' in capsys.readouterr().out
    assert (folder / 'checkpoint.pth.tar').read_bytes() == before

    main([*arguments, '--fresh', '--amp', 'none'])  # starts over, keeps the old folder, and a seed repeats
    assert (tmp_path / 'output' / 'small.old-1' / 'checkpoint.pth.tar').read_bytes() == before
    assert_same(load(folder), state)


@pytest.mark.slow
@pytest.mark.parametrize('amp, workers, number, position', [
    ('bf16', 2, 0, 'after 0 epochs and 2 steps'), ('none', 0, 3, 'after 2 epochs and 0 steps')])
def test_cut_anywhere_and_resumed_is_bit_equal(experiment, tmp_path, monkeypatch, amp, workers, number, position):
    """A checkpoint of an undisturbed run, inside an epoch or between two, leads to the same end."""
    arguments = [*experiment({'epochs': 3, 'checkpoint_every': 2, 'num_workers': workers}), '--amp', amp]
    folder, kept, save = tmp_path / 'output' / 'small', [], utils.training.loop.save_checkpoint

    def save_and_copy(state, path):
        save(state, path)
        kept.append(shutil.copy(path, tmp_path / f'cut-{len(kept)}'))

    monkeypatch.setattr(utils.training.loop, 'save_checkpoint', save_and_copy)
    main(arguments)
    monkeypatch.undo()
    final, metrics = load(folder), (folder / 'metrics.jsonl').read_text()
    assert len(kept) == 6  # two an epoch
    positions = [(cut['epoch'], cut['step']) for cut in (torch.load(path, weights_only=True) for path in kept)]
    assert positions == [(0, 2), (1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]
    shutil.copy(kept[number], folder / 'checkpoint.pth.tar')
    (folder / 'log_file.txt').unlink()
    main(arguments)
    log = (folder / 'log_file.txt').read_text()
    assert position in log and log.count('trainaug: ') == log.count('trainaug: 12 images, 12 masks (0 empty)') == 1
    assert_same(load(folder), final)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    for row, want in zip(rows, map(json.loads, metrics.splitlines()), strict=True):
        row.pop('images_per_second'), want.pop('images_per_second')
        assert row == want


# Killed by the system in the second step of its second epoch
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(MAIN.parent)!r})
import main
from contrastive import trainer

class Trainer(trainer.ContrastiveTrainer):
    def train_step(self, batch):
        if (self.epoch, self.step) == (1, 1):
            self.writer.finish()  # of the first epoch's checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

trainer.ContrastiveTrainer = Trainer
main.main()
"""


@pytest.mark.slow
def test_killed_and_started_again(experiment, tmp_path):
    """A real process, a real SIGKILL."""
    changes = {'epochs': 3, 'num_workers': 1}
    arguments = [*experiment(changes), '--amp', 'none']
    metrics = tmp_path / 'output' / 'small' / 'metrics.jsonl'
    (tmp_path / 'killed.py').write_text(KILLED)
    assert warm.run(tmp_path / 'killed.py', *arguments, out=tmp_path / 'out').returncode == -signal.SIGKILL
    assert len(metrics.read_text().splitlines()) == load(metrics.parent)['epoch'] == 1
    (metrics.parent / '.checkpoint.pth.tar.1.tmp').write_text('what a kill inside a write leaves')
    main(arguments)
    assert 'Resuming from' in (metrics.parent / 'log_file.txt').read_text()
    assert not list(metrics.parent.glob('.*.tmp'))
    main([*experiment(changes, name='undisturbed'), '--amp', 'none'])
    killed, undisturbed = load(metrics.parent), load(tmp_path / 'output' / 'undisturbed')
    for key in ('model', 'optimizer', 'random', 'epoch'):
        assert_same(killed[key], undisturbed[key], key)
    assert [json.loads(line)['epoch'] for line in metrics.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_frozen_layers_stay_bit_equal_to_the_file_of_initial_weights(experiment, tmp_path):
    weights = resnet18(weights=None).state_dict()
    torch.save(weights, tmp_path / 'resnet18.pth')
    changes = {**RESNET, 'freeze_layers': True, 'epochs': 1, 'backbone_kwargs.pretraining': 'imagenet_classification',
               'backbone_kwargs.state_dict': str(tmp_path / 'resnet18.pth')}
    main(experiment(changes))
    log = (tmp_path / 'output' / 'small' / 'log_file.txt').read_text()
    assert 'This run is short: 1 epochs of 3 steps of 4 are 12 pairs of views.' in log and 'docs/learning-curves.md' in log
    state = load(tmp_path / 'output' / 'small')
    assert state['config']['backbone_kwargs']['pretraining'] == 'imagenet_classification'
    (tmp_path / 'resnet18.pth').unlink()
    main(experiment(changes))  # finished: the file of initial weights is not needed any more
    for network in ('model_q', 'model_k'):
        for key, value in weights.items():
            if key.startswith('fc.'):
                continue
            same = torch.equal(state['model'][f'module.{network}.backbone.{key}'], value)
            assert same == key.startswith(('conv1', 'bn1', 'layer1', 'layer2')), key


@pytest.mark.slow
def test_starts_from_a_moco_file(experiment, tmp_path):
    weights = {f'module.encoder_q.{key}': value for key, value in resnet18(weights=None).state_dict().items()}
    torch.save({'state_dict': weights}, tmp_path / 'moco.pth.tar')
    changes = {**RESNET, 'epochs': 1, 'optimizer_kwargs.lr': 1e-12, 'optimizer_kwargs.weight_decay': 0,
               'backbone_kwargs.pretraining': 'imagenet_moco',
               'backbone_kwargs.moco_state_dict': str(tmp_path / 'moco.pth.tar')}
    main(experiment(changes))
    model = load(tmp_path / 'output' / 'small')['model']
    assert torch.allclose(model['module.model_q.backbone.conv1.weight'], weights['module.encoder_q.conv1.weight'])


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{'model_kwargs.use_classification_head': False}, {'model_kwargs.upsample': False},
                                     {**RESNET, 'backbone_kwargs.dilated': False},
                                     {'train_batch_size': 1, 'transformation_kwargs.crop_size': 30}])
def test_other_settings_train(experiment, tmp_path, changes):
    main(experiment({'epochs': 1, **changes}))
    row = json.loads((tmp_path / 'output' / 'small' / 'metrics.jsonl').read_text())
    assert row['contrastive_loss'] > 0
    assert (row['saliency_loss'] == 0) == ('model_kwargs.use_classification_head' in changes)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(experiment, tmp_path, user_error):
    folder = tmp_path / 'output' / 'small'
    changes = {'epochs': 2, 'optimizer_kwargs.lr': '1e30'}
    line = user_error(lambda: main([*experiment(changes), '--amp', 'none']))
    assert 'epoch 1, step 2, images train_' in line and 'no checkpoint was written yet' in line
    assert line.removeprefix('error: ') in (folder / 'log_file.txt').read_text()
    assert not (folder / 'metrics.jsonl').exists() and not (folder / 'checkpoint.pth.tar').exists()
    line = user_error(lambda: main([*experiment(changes | {'checkpoint_every': 1}), '--amp', 'none']))
    assert 'the weights are not finite after epoch 0, step 1' in line and not (folder / 'checkpoint.pth.tar').exists()


@pytest.mark.slow
def test_another_configuration_is_refused(experiment, tmp_path, user_error):
    folder = tmp_path / 'output' / 'small'
    main([*experiment({'epochs': 1}), '--amp', 'none'])
    before = (folder / 'checkpoint.pth.tar').read_bytes()
    finished = {'epochs': 1, 'optimizer_kwargs.lr': 0.5}
    assert 'optimizer_kwargs.lr differs from' in user_error(lambda: main([*experiment(finished), '--amp', 'none']))
    changes = {'epochs': 2, 'optimizer_kwargs.weight_decay': 0.1, 'train_batch_size': 2, 'num_workers': 1}
    line = user_error(lambda: main([*experiment(changes), '--amp', 'none']))
    assert 'train_batch_size, epochs, optimizer_kwargs.weight_decay differ from' in line and '--override' in line
    assert (folder / 'checkpoint.pth.tar').read_bytes() == before
    main([*experiment(changes), '--amp', 'none', '--override'])
    state = load(folder)
    assert state['epoch'] == 2 and state['optimizer']['param_groups'][0]['weight_decay'] == 0.1
    adam = {'epochs': 3, 'optimizer': 'adam', 'optimizer_kwargs': {'lr': 1e-3}}
    main([*experiment(adam), '--amp', 'none', '--override'])
    assert 'exp_avg' in load(folder)['optimizer']['state'][0]


@pytest.mark.slow
def test_a_learning_rate_of_the_heads_own(experiment, tmp_path):
    """Two groups, whose rates the schedule multiplies alike; given to a run that had none, its optimiser begins anew."""
    folder = tmp_path / 'output' / 'small'
    main([*experiment({'epochs': 1}), '--amp', 'none'])
    before = load(folder)['model']
    own = {'epochs': 2, 'optimizer_kwargs.head_lr': 1e-9}
    main([*experiment(own), '--amp', 'none', '--override'])
    after = load(folder)
    rates = [group['lr'] for group in after['optimizer']['param_groups']]
    assert rates == pytest.approx([0.01 * 0.5 ** 0.9, 1e-9 * 0.5 ** 0.9], rel=1e-9, abs=0)
    for part, moved in (('backbone.model.layer4.0.downsample.1', True), ('decoder.0.convs.0.0', False), ('head', False)):
        key = f'module.model_q.{part}.weight'
        assert torch.allclose(after['model'][key], before[key], atol=1e-6) != moved, part
    main([*experiment(own | {'epochs': 3}), '--amp', 'none', '--override'])  # goes on with both groups
    assert load(folder)['epoch'] == 3


def test_only_short_runs_from_trained_weights_are_warned_of():
    assert short_run('imagenet_classification', 62, 25, 16)
    assert short_run('imagenet_classification', 63, 25, 16) is None
    assert short_run(None, 1, 1, 16) is None  # for example of `make demo`
    assert (Path(__file__).resolve().parents[2] / PAGE).is_file()


def test_view_figure_shows_each_mask_in_its_place():
    for stride, size in ((1, 8), (8, 64), (8, 60)):
        mask = torch.zeros(1, -(-size // stride), -(-size // stride), dtype=torch.uint8)
        mask[0, -1, -1] = 1
        views = torch.full((1, size, size, 3), 200, dtype=torch.uint8)
        figure = view_figure({'query': views, 'key': views, 'query_mask': mask, 'key_mask': mask})
        assert figure.shape == (size, 4 * size, 3)
        shown = figure[:, size:2 * size, 0] == 200
        expected = torch.nn.functional.interpolate(mask[None].float(), scale_factor=stride)[0, 0, :size, :size] == 1
        assert torch.equal(torch.from_numpy(shown), expected) and shown.any() and not shown.all()


@pytest.mark.slow
def test_a_seed_given_once_stays_with_the_run(experiment, tmp_path):
    folder = tmp_path / 'output' / 'small'
    main([*experiment({'epochs': 1, 'seed': None}), '--seed', '5'])
    main([*experiment({'epochs': 2, 'seed': None}), '--override'])
    assert load(folder)['seed'] == 5
    assert yaml.safe_load((folder / 'config.yml').read_text())['resolved']['seed'] == 5


@pytest.mark.slow
def test_interrupted(experiment, tmp_path):
    """Ctrl-C in a terminal: one line, exit code 130."""
    process = warm.start(MAIN, *experiment({'epochs': 1000}), out=tmp_path / 'out', err=tmp_path / 'err')
    wait_for(lambda: 'Epoch 1/' in process.printed())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.errors().splitlines() == ['error: interrupted']
