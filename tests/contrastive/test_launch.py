"""How a training becomes several processes, and what becomes of it when it is started twice, or with another number of them."""
import os
import signal

import pytest
import torch
from helpers import warm
from helpers.processes import MAIN, Ranks, wait_for

import contrastive.trainer
from data.loaders import EpochBatchSampler
from main import main

# A machine with two GPUs, as far as the starting process sees; those that it starts find none and compute on the CPU.
TWO_GPUS = f"""
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
import torch
from main import main
if __name__ == '__main__':
    torch.cuda.device_count, torch.cuda.is_available = lambda: 2, lambda: True
    main(sys.argv[1:])
"""
# Two processes, of which the second has a loss that is not finite in its fifth step.
ONE_BAD_LOSS = f"""
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
import main
from contrastive import trainer
from utils.parallel import ranks

class Trainer(trainer.ContrastiveTrainer):
    def train_step(self, batch):
        values = super().train_step(batch)
        return values * float('nan') if ranks.rank() == 1 and (self.epoch, self.step) == (1, 1) else values

trainer.ContrastiveTrainer = Trainer
main.main()
"""


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_a_machine_with_two_gpus_is_used_by_itself(experiment, tmp_path, monkeypatch):
    path, script = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', tmp_path / 'two_gpus.py'
    script.write_text(TWO_GPUS)

    def start(name, changes):
        arguments = experiment({'epochs': 100, **changes})
        arguments[-1] = 'auto'  # device
        return warm.start(script, *arguments, '--amp', 'none', out=tmp_path / name, CUDA_VISIBLE_DEVICES='')
    process = start('first', {})
    try:
        wait_for(path.exists)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 75, process.printed()
    finally:
        process.kill()
    assert '2 on each of 2 processes' in process.printed() and 'stopped by SIGUSR1' in process.printed()
    process = start('second', {'moco_kwargs.K': 6})
    assert process.wait(60) == 2 and process.printed().count('error: ') == 1 and 'moco_kwargs.K' in process.printed()


@pytest.mark.slow
def test_a_bad_loss_of_one_process_stops_all_at_that_step(experiment, tmp_path):
    (tmp_path / 'bad_loss.py').write_text(ONE_BAD_LOSS)
    folder = tmp_path / 'output' / 'small'
    ranks = Ranks(tmp_path / 'bad_loss.py', [*experiment({'epochs': 3}), '--amp', 'none'], tmp_path / 'logs')
    assert ranks.wait(90) == [2, 2]
    message, = ranks.errors()
    ids = sorted(message.partition('images of rank 1 ')[2].partition(':')[0].split())
    batches = EpochBatchSampler(12, 4, 3, rank=1, world_size=2)
    batches.epoch = 1
    assert 'the loss is nan in epoch 2, step 2, images of rank 1 train_' in message
    assert ids == sorted(f'train_{index:04d}' for _, index in list(batches)[1])
    assert load(folder / 'checkpoint.pth.tar')['epoch'] == 1


@pytest.mark.slow
def test_on_another_number_of_processes_each_image_comes_once(experiment, tmp_path, monkeypatch):
    arguments = [*experiment({'epochs': 2, 'checkpoint_every': 1, 'simulate_processes': 2}), '--amp', 'none']
    path, seen = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', []
    step = contrastive.trainer.ContrastiveTrainer.train_step

    def watched_step(trainer, batch):
        seen.append((trainer.epoch, batch['id']))
        if len(seen) == 5:  # the second of three steps of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch)

    monkeypatch.setattr(contrastive.trainer.ContrastiveTrainer, 'train_step', watched_step)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 75 and (load(path)['epoch'], load(path)['step']) == (1, 2)
    main([*experiment({'epochs': 2, 'checkpoint_every': 1, 'simulate_processes': 1}), '--amp', 'none'])
    assert 'The number of processes changes from 2 to 1' in (path.parent / 'log_file.txt').read_text()
    for epoch in range(2):
        ids = [name for number, names in seen if number == epoch for name in names]
        assert len(ids) == 12 and sorted(ids) == [f'train_{index:04d}' for index in range(12)]


@pytest.mark.parametrize('count', [1, 2, 4])
def test_the_batches_of_a_step_are_the_same_on_any_number_of_processes(count):
    parts = [list(EpochBatchSampler(18, 4, seed=5, rank=rank, world_size=count)) for rank in range(count)]
    together = [sum(shares, []) for shares in zip(*parts, strict=True)]
    assert together == list(EpochBatchSampler(18, 4, seed=5)) and len(together) == 4


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(experiment, tmp_path, user_error):
    arguments = [*experiment({'epochs': 300}), '--amp', 'none']
    folder = tmp_path / 'output' / 'small'
    first = warm.start(MAIN, *arguments, out=tmp_path / 'out')
    try:
        wait_for((folder / 'checkpoint.pth.tar').exists)
        line = user_error(lambda: main(arguments))
        assert f'{folder}: another run is writing into this folder (process {first.pid} on ' in line
        assert f'{folder}: another run' in user_error(lambda: main([*arguments, '--fresh'])) and folder.is_dir()
    finally:
        first.kill()
    main([*experiment({'epochs': 1}), '--amp', 'none', '--fresh'])  # the killed one holds it no more
    assert (tmp_path / 'output' / 'small.old-1').is_dir() and not (folder / '.lock').exists()
    assert load(folder / 'checkpoint.pth.tar')['epoch'] == 1


@pytest.mark.parametrize('flags, problem', [
    (['--world-size', '2', '--rank', '2'], '--rank from 0 to 1'), (['--world-size', '2'], '--rank from 0 to 1'),
    (['--rank', '1'], 'needs --world-size'), (['--world-size', '2', '--rank', '0'], 'needs --dist-url tcp://HOST:PORT')])
def test_flags_that_do_not_fit_together(experiment, user_error, monkeypatch, flags, problem):
    for name in ('MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    assert problem in user_error(lambda: main([*experiment(), *flags]))


def test_flags_under_torchrun_are_refused(experiment, user_error, monkeypatch):
    """torchrun says who is who: what was typed is not ignored without a word."""
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('LOCAL_RANK', '0')
    flags = ['--world-size', '2', '--rank', '1', '--dist-url', 'tcp://127.0.0.1:29500']
    assert 'torchrun sets the rank' in user_error(lambda: main([*experiment(), *flags]))


@pytest.mark.slow
def test_what_was_typed_wins_over_what_another_launcher_left(experiment, monkeypatch, tmp_path):
    for name, value in (('LOCAL_RANK', '3'), ('LOCAL_WORLD_SIZE', '4'), ('WORLD_SIZE', '4'), ('RANK', '3')):
        monkeypatch.setenv(name, value)
    main([*experiment({'epochs': 1}), '--world-size', '1'])
    assert load(tmp_path / 'output' / 'small' / 'checkpoint.pth.tar')['epoch'] == 1
    monkeypatch.delenv('MASKCONTRAST_LAUNCHED', raising=False)
