"""Runs of several processes under torchrun: one is lost, or asked to stop, and the run goes on as if nothing had been."""
import os
import re
import signal
import time

import pytest
from helpers.checks import assert_same
from helpers.processes import pid_of
from lives import Checkpoints, assert_undisturbed, finish, kill, metrics, start, wait, wait_until_gone
from moments import between_steps, seeded

from data.synthetic_shapes import draw_shapes
from utils.checkpoint import load_file

ROUNDS = int(os.environ.get('SOAK_ROUNDS', 2))  # of five kills
FOUR = {'epochs': 6, 'train_batch_size': 8, 'moco_kwargs.K': 16, 'num_workers': 4}


def test_kills_of_two_processes(experiment, tmp_path):
    """Whoever is killed, nobody is left waiting."""
    begun, rng = time.monotonic(), seeded()
    victims = [('rank 0',), ('rank 1',), ('rank 0', 'rank 1'), ('rank 0', 'rank 1', 'launcher'), ('launcher',)] * ROUNDS
    rng.shuffle(victims)
    changes = {'epochs': 8 * ROUNDS, 'num_workers': 2}
    arguments = [*experiment(changes | {'checkpoint_every': 1}, name='killed'), '--amp', 'none']
    checkpoints, slowest = Checkpoints(tmp_path / 'output' / 'killed', steps=3), 0
    for number, names in enumerate(victims, 1):
        with start(arguments, processes=2) as run:
            checkpoints.begin()
            when = between_steps(run, checkpoints, rng)
            pids = {'launcher': run.process.pid, **{f'rank {rank}': pid_of(run.process, rank) for rank in range(2)}}
            kill(*[pids[name] for name in names])
            gone = wait_until_gone(run, 60)
            slowest = max(slowest, gone)
        position = checkpoints.check()
        print(f'kill {number}, {" and ".join(names)} {when}: {checkpoints.saves} steps, {position} in all are safe; no process '
              f'after {gone:.1f} s')
    finish(arguments, processes=2)
    finish([*experiment(changes, name='undisturbed'), '--amp', 'none'], processes=2)
    assert_undisturbed(checkpoints.folder, tmp_path / 'output' / 'undisturbed')
    print(f'{len(victims)} kills, no process after at most {slowest:.1f} s; {checkpoints.startup:.1f} s to the first step of a '
          f'life: {time.monotonic() - begun:.0f} s')


@pytest.fixture(scope='module')
def more_images(tmp_path_factory):
    """A db_root with 24 training images: 3 steps of 8."""
    root = tmp_path_factory.mktemp('more')
    draw_shapes(root / 'Shapes', train=24, val=6, size=64)
    return root


def test_four_processes(experiment, tmp_path, more_images):
    """They are what one process simulates; and when one of them is asked to stop, all do, and the run goes on."""
    begun, rng, output = time.monotonic(), seeded(), tmp_path / 'output'

    def arguments(name, **changes):
        return [*experiment(FOUR | changes, name, more_images), '--amp', 'none']

    finish(arguments('undisturbed'), processes=4)
    finish(arguments('simulated', simulate_processes=4))
    real, simulated = (load_file(output / name / 'checkpoint.pth.tar') for name in ('undisturbed', 'simulated'))
    for key in ('model', 'optimizer', 'random', 'epoch'):  # queue and pointer are in the model
        assert_same(real[key], simulated[key], key)
    assert real['model']['module.queue_ptr'].item() == FOUR['epochs'] * 3 * 8 % 16
    for row, want in zip(metrics(output / 'undisturbed'), metrics(output / 'simulated'), strict=True):
        assert row == pytest.approx(want, rel=1e-6)  # means of float32, there of float64
    print('4 processes and 4 simulated ones end in the same weights, queue, optimiser and random states, bit for bit')

    position = 0
    for request in (signal.SIGTERM, signal.SIGUSR1):
        position = stop_one_of_four(arguments('stopped'), output / 'stopped', request, position, rng)
    finish(arguments('stopped'), processes=4)
    assert_undisturbed(output / 'stopped', output / 'undisturbed')
    print(f'2 stops, then the end of an undisturbed run: {time.monotonic() - begun:.0f} s')


def stop_one_of_four(arguments, folder, request, position, rng):
    """Send a signal to a random rank after the end of an epoch, which must leave one checkpoint, of the step under way.

    position: how many steps were safe before. Returns how many are now.
    """
    checkpoints = Checkpoints(folder, steps=3)
    with start(arguments, processes=4) as run:
        wait(run, checkpoints.look, 'an epoch was safe')
        time.sleep(rng.uniform(0, 0.5))
        rank = rng.randrange(4)
        os.kill(pid_of(run.process, rank), request)
        gone = wait_until_gone(run, 20)
        said = run.output()
    codes = dict(sorted(re.findall(r'rank +: (\d).*\n +exitcode +: (-?\d+)', said)))
    state = load_file(checkpoints.path, check=True)
    print(f'{request.name} to rank {rank}: no process after {gone:.1f} s, exit codes {" ".join(codes.values())}, checkpoint '
          f'after {state["epoch"]} epochs and {state["step"]} steps')
    assert codes == dict.fromkeys('0123', '75'), said
    assert said.count('stopped by ') == 1 and len(re.findall('^Traceback', said, re.M)) == 1, said  # torchrun's own
    assert 1 <= state['step'] <= 3 and state['epoch'] * 3 + state['step'] > position
    return state['epoch'] * 3 + state['step']
