"""`main.py` as several real processes: torchrun, MoCo's flags, requests to stop, and processes that die, hang or fail."""
import os
import re
import shutil
import signal
import socket

import pytest
import torch
from helpers import warm
from helpers.checks import assert_same
from helpers.processes import MAIN, Ranks, errors, exit_codes, torchrun, wait_for

from data.loaders import EpochBatchSampler
from main import main


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder):
    return torch.load(folder / 'checkpoint.pth.tar', weights_only=True)


@pytest.fixture
def training(experiment, tmp_path):
    """training(changes, flags) starts two processes of a small training. Returns them and the run's folder."""
    started = []

    def start(changes=None, flags=(), **named):
        started.append(Ranks(MAIN, [*experiment(changes, **named), '--amp', 'none', *flags], tmp_path / f'{len(started)}'))
        return started[-1], tmp_path / 'output' / 'small'
    yield start
    for ranks in started:
        ranks.kill()


# Rank 1 is asked to stop in the first step of the second of its epochs
STOPPED = f"""
import os, signal, sys
sys.path.insert(0, {str(MAIN.parent)!r})
import main
from contrastive import trainer
from utils.parallel import ranks

class Trainer(trainer.ContrastiveTrainer):
    def train_step(self, batch):
        if ranks.rank() == 1 and (self.epoch, self.step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_step(batch)

trainer.ContrastiveTrainer = Trainer
main.main()
"""


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_like_simulated_processes(training, experiment, tmp_path, one_thread):
    """SIGTERM to rank 1 alone: the second start ends in the weights, bit for bit, of one process that was never stopped and
    computes what two would."""
    changes = {'epochs': 4, 'num_workers': 2, 'checkpoint_every': 2}
    half, folder = ('--amp', 'bf16'), tmp_path / 'output' / 'small'
    (tmp_path / 'stopped.py').write_text(STOPPED)
    log = tmp_path / 'log'
    torchrun(tmp_path / 'stopped.py', [*experiment(changes), *half], log).wait(60)
    assert exit_codes(log) == {0: 75, 1: 75}, log.read_text()
    assert log.read_text().count('repeat the command') == 1 and not errors(log)
    assert 3 < at(folder) <= 5  # those that were under way
    ranks, _ = training(changes, half)
    assert ranks.wait() == [0, 0], ranks.printed()
    written = (folder / 'log_file.txt').read_text()
    assert written.count('batches of 4: 2 on each of 2 processes') == 2 and written.count('Epoch 4/4') == 1

    main([*experiment({**changes, 'num_workers': 0, 'simulate_processes': 2}, name='simulated'), *half])
    stopped, simulated = load(folder), load(tmp_path / 'output' / 'simulated')
    for key in ('model', 'optimizer', 'random', 'epoch', 'step'):
        assert_same(stopped[key], simulated[key], key)


def at(folder):
    """Steps until the checkpoint."""
    state = load(folder)
    return 3 * state['epoch'] + state['step']


@pytest.mark.slow
def test_a_killed_process_is_named_and_ends_the_others(training):
    ranks, folder = training({'epochs': 300})
    wait_for((folder / 'checkpoint.pth.tar').exists)
    ranks.processes[1].kill()
    assert ranks.wait(30) == [3, -signal.SIGKILL], ranks.printed()
    message, = ranks.errors()
    assert re.search(r'rank 1 has died or hangs \((epoch \d+, step \d|at the start)\)', message)  # at its last heartbeat
    assert message in (folder / 'log_file.txt').read_text()
    assert load(folder)['epoch'] >= 1


@pytest.fixture
def image(shapes_root, tmp_path):
    """In a copy of the data set, the file that rank 1 reads for its second step."""
    folder = shutil.copytree(shapes_root / 'Shapes', tmp_path / 'datasets' / 'Shapes')
    batches = list(EpochBatchSampler(12, batch_size=4, seed=3, rank=1, world_size=2))
    _, index = batches[1][1]
    return folder / 'images' / f'{(folder / "sets" / "trainaug.txt").read_text().split()[index]}.jpg'


@pytest.mark.slow
def test_a_process_that_hangs_is_named(training, image):
    """An image never comes: its file is a pipe that nobody writes to."""
    image.unlink()
    os.mkfifo(image)
    ranks, _ = training(flags=('--dist-timeout', '3'), db_root=image.parents[2])
    assert ranks.wait(90) == [3, 3], ranks.printed()
    message, = ranks.errors()
    assert 'rank 1 hangs (epoch 1, step 2): no progress for 3 s' in message


@pytest.mark.slow
def test_a_bad_image_of_one_process_ends_all(training, image):
    image.write_bytes(image.read_bytes()[:300])
    ranks, folder = training(db_root=image.parents[2])
    assert ranks.wait(60) == [2, 2], ranks.printed()
    message, = ranks.errors()
    assert str(image) in message and message.startswith('error: rank 1: ')
    assert message in (folder / 'log_file.txt').read_text()


@pytest.mark.slow
def test_mocos_flags_join_processes_by_hand(experiment, tmp_path):
    """As on two machines, each with its own command; the processes meet at the first one's."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    arguments = [*experiment({'epochs': 1}), '--amp', 'none', '--dist-url', f'tcp://127.0.0.1:{port}', '--dist-backend', 'gloo',
                 '--multiprocessing-distributed', '--world-size', '2']
    both = [warm.start(MAIN, *arguments, '--rank', rank, out=tmp_path / f'{rank}.log') for rank in range(2)]
    assert [process.wait(90) for process in both] == [0, 0], [process.printed() for process in both]
    assert '2 on each of 2 processes' in both[0].printed() and both[1].printed().strip() == ''
    assert load(tmp_path / 'output' / 'small')['epoch'] == 1
