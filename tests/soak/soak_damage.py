"""A damaged checkpoint never leads to another state than a whole one, nor to a start from nothing."""
import os
import shutil
import time

from helpers.checks import assert_same
from lives import finish
from moments import seeded

from utils.checkpoint import load_file, previous_checkpoint
from utils.training.resume import earlier_state

DAMAGES = int(os.environ.get('SOAK_DAMAGES', 30))
EDGE = 2 ** 16  # bytes at either end: for example of the archive's directory


def flip(path, rng, first, end):
    place, bit = rng.randrange(first, end), rng.randrange(8)
    with open(path, 'r+b') as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f'bit {bit} of byte {place} flipped'


def flip_anywhere(path, rng):
    return flip(path, rng, 0, path.stat().st_size)


def flip_at_an_edge(path, rng):
    size = path.stat().st_size
    return flip(path, rng, *rng.choice(((0, EDGE), (size - EDGE, size))))


def truncate(path, rng):
    size = path.stat().st_size
    length = rng.choice((rng.randrange(size), rng.randrange(EDGE), size - 1 - rng.randrange(EDGE)))
    os.truncate(path, length)
    return f'truncated to {length} bytes'


def test_damaged_checkpoints(experiment, tmp_path):
    begun, rng = time.monotonic(), seeded()
    arguments = [*experiment({'checkpoint_every': 1}), '--amp', 'none']
    finish(arguments)
    path, kept = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', tmp_path / 'whole'
    shutil.copy(path, kept)
    newest, before = load_file(path), load_file(previous_checkpoint(path))
    assert (before['epoch'], before['step'], newest['epoch'], newest['step']) == (1, 2, 2, 0)

    seen = 0
    for number in range(DAMAGES):
        shutil.copy(kept, path)
        done = (flip_anywhere, flip_at_an_edge, truncate)[number % 3](path, rng)
        goes_on = number % 5 == 0
        if goes_on:
            finish(arguments)
        state = load_file(path, check=True) if goes_on else earlier_state(path)
        aside = list(path.parent.glob('checkpoint.pth.tar.old-*'))
        assert_same(state, before if aside and not goes_on else newest, done)
        print(f'{number + 1}: {done}: {"set aside" if aside else "means nothing"}{", and gone on" if goes_on else ""}')
        seen += len(aside)
        for file in aside:
            file.unlink()
    print(f'{DAMAGES} damages, of which {seen} were seen: {time.monotonic() - begun:.0f} s')
    assert seen > DAMAGES / 2
