"""The cost of a checkpoint after each epoch, written directly and in the background."""
import tempfile
from pathlib import Path

import checkpoints
from gpu.common import report
from gpu.steps import make

EPOCH = 10582 // 64  # steps of the published supervised run


def run(settings):
    steps = make(settings, loss='gathered')
    with tempfile.TemporaryDirectory() as folder:
        count, rounds = (2, 1) if settings.small else (40, 3)
        found = checkpoints.measure(steps, Path(folder) / 'checkpoint.pth.tar', count, rounds, synchronize=settings.on_gpu)
    report('a checkpoint', value=found['mib'], unit='MiB')
    for name in ('at_once', 'background'):
        cost = found[f'{name}_seconds'] - found['none_seconds']
        epoch = found['none_seconds'] / found['steps'] * EPOCH
        report(f'{name.replace("_", " ")}: seconds of training that it costs', value=cost, unit='s',
               detail=f'{cost / (epoch + cost):.1%} of an epoch of {EPOCH} steps', **found)
