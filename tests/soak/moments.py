"""When to kill a run: each function waits for its moment, and says in words which it was."""
import os
import random
import secrets
import time

from lives import wait

from utils.checkpoint import previous_checkpoint


def seeded():
    """A random generator for the moments of the kills, whose seed is printed. The environment may set it."""
    seed = int(os.environ.get('SOAK_SEED', secrets.randbelow(10 ** 6)))
    print(f'\nSOAK_SEED={seed}')
    return random.Random(seed)


def in_the_first_write(run, checkpoints, rng):
    wait(run, checkpoints.being_written, 'the first checkpoint was being written')
    return 'in the first write'


def while_starting(run, checkpoints, rng):
    seconds = rng.uniform(0, checkpoints.startup)
    end = time.monotonic() + seconds
    wait(run, lambda: checkpoints.look() >= 0 and time.monotonic() > end, f'{seconds:.2f} s had passed')
    return f'{seconds:.2f} s after its start'


def between_steps(run, checkpoints, rng):
    """At any instant of two steps and their writes."""
    wait(run, checkpoints.look, 'its first step was safe')
    seconds = rng.uniform(0, 2 * checkpoints.pace)
    end = time.monotonic() + seconds
    wait(run, lambda: checkpoints.look() and time.monotonic() > end, f'{seconds:.2f} s had passed')
    return f'{seconds:.2f} s after its first step'


def in_a_write(run, checkpoints, rng):
    """From the first byte to the time when all are there, but perhaps not on the disk yet."""
    _some_steps(run, checkpoints, rng)
    part, late = rng.choice(((rng.random(), 0), (0.99, rng.uniform(0, 0.2))))
    size = part * checkpoints.path.stat().st_size
    wait(run, lambda: (checkpoints.being_written() or -1) >= size, f'{part:.0%} of a checkpoint were there')
    time.sleep(late)
    return f'{late:.2f} s after {part:.0%} of a write'


def while_names_change(run, checkpoints, rng):
    """When the newest checkpoint has the name of the one before, too, which lasts for less than a millisecond."""
    _some_steps(run, checkpoints, rng)
    previous = previous_checkpoint(checkpoints.path)
    wait(run, lambda: checkpoints.look() and previous.exists() and previous.samefile(checkpoints.path),
         'the checkpoint had two names', pause=0)
    return 'when the checkpoint had two names'


def _some_steps(run, checkpoints, rng):
    steps = rng.choice((1, 2))
    wait(run, lambda: checkpoints.look() >= steps, f'{steps} steps were safe')
