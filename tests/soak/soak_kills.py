"""A run that is killed over and over, also while it writes its checkpoint, ends as if it had never been disturbed."""
import os
import time

from lives import Checkpoints, assert_undisturbed, finish, kill, start, wait_until_gone
from moments import between_steps, in_a_write, in_the_first_write, seeded, while_names_change, while_starting

KILLS = int(os.environ.get('SOAK_KILLS', 50))  # of lives that have made a step


def test_one_process(experiment, tmp_path):
    begun, rng = time.monotonic(), seeded()
    moments = [between_steps, in_a_write, between_steps, in_a_write, while_names_change] * (KILLS // 5)
    moments += [while_starting] * (KILLS // 10)
    rng.shuffle(moments)
    changes = {'epochs': KILLS * 9 // 10, 'num_workers': 2}  # of 3 steps
    arguments = [*experiment(changes | {'checkpoint_every': 1}, name='killed'), '--amp', 'none']
    checkpoints = Checkpoints(tmp_path / 'output' / 'killed', steps=3)
    inside = 0
    for number, moment in enumerate([in_the_first_write, *moments], 1):
        with start(arguments) as run:
            checkpoints.begin()
            when = moment(run, checkpoints, rng)
            kill(run.process.pid)
            gone = wait_until_gone(run, 20)
        written = 0 if moment is while_starting else len(checkpoints.temporaries())
        inside += written > 0
        position = checkpoints.check()
        print(f'kill {number}, {when}{", inside a write" if written else ""}: {checkpoints.saves} steps, {position} in all are '
              f'safe; no process after {gone:.2f} s')
    finish(arguments)
    finish([*experiment(changes, name='undisturbed'), '--amp', 'none'])
    assert_undisturbed(checkpoints.folder, tmp_path / 'output' / 'undisturbed')
    print(f'{len(moments) + 1} kills, {inside} inside a write; {checkpoints.startup:.1f} s to the first step of a life, '
          f'{checkpoints.pace:.2f} s for another: {time.monotonic() - begun:.0f} s')
    assert inside >= KILLS / 3
