"""The cost of a checkpoint for the training, written directly and in the background. One line of JSON.

    python benchmarks/checkpoints.py --backbone resnet18 --size 96 --batch 16 --steps 20

An epoch of the given number of steps is timed without a checkpoint, with one that is written at its end, and with one that is
written while the next epoch is computed, as in main.py, in turns. held: seconds for which the latter makes the training wait.
"""
import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from measure import take_turns
from pretrain_step import Steps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from models.backbones import backbone_names  # noqa: E402
from utils.checkpoint import BackgroundWriter, save_checkpoint, snapshot  # noqa: E402
from utils.training.device import keep_freed_memory  # noqa: E402
from utils.training.precision import choose_precision  # noqa: E402

KINDS = ('none', 'at_once', 'background')


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', choices=backbone_names(), default='resnet18')
    parser.add_argument('--size', type=int, default=96, help='side of a view (default: 96)')
    parser.add_argument('--batch', type=int, default=16, help='images a step (default: 16)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16'), default='auto', help='precision (default: auto)')
    parser.add_argument('--steps', type=int, default=20, help='steps per epoch (default: 20)')
    parser.add_argument('--rounds', type=int, default=5, help='timed epochs of each kind (default: 5)')
    parser.add_argument('--folder', help='folder for the file (default: that of temporary files)')
    return parser.parse_args()


def measure(steps, path, count, rounds, synchronize=False):
    """Seconds of epochs of `count` `steps` (a `Steps`), medians, and the size of the checkpoint at `path`."""
    writer, held = BackgroundWriter(), []

    def state():
        return {'model': steps.model.state_dict(), 'optimizer': steps.optimizer.state_dict()}

    def epoch():
        for _ in range(count):
            steps.whole()
        if synchronize:
            torch.cuda.synchronize()

    def at_once():
        epoch()
        save_checkpoint(state(), path)

    def background():
        begun = time.perf_counter()
        writer.start(functools.partial(save_checkpoint, snapshot(state()), path))
        held.append(time.perf_counter() - begun)
        epoch()
        writer.finish()
    times = take_turns(rounds, epoch, at_once, background)
    medians = {f'{name}_seconds': statistics.median(own) for name, own in zip(KINDS, times, strict=True)}
    return {**medians, 'held_seconds': statistics.median(held[1:]), 'steps': count, 'mib': path.stat().st_size / 2 ** 20}


def main():
    args = parse_arguments()
    precision = choose_precision(args.amp, torch.device('cpu'))
    keep_freed_memory()
    steps = Steps(args.backbone, args.size, args.batch, 128, False, precision)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(steps, Path(folder) / 'checkpoint.pth.tar', args.steps, args.rounds)
    shares = {f'{name}_share': round(1 - found['none_seconds'] / found[f'{name}_seconds'], 4) for name in KINDS[1:]}
    print(json.dumps({'benchmark': 'checkpoints', 'backbone': args.backbone, 'size': args.size, 'batch': args.batch,
                      'precision': precision, **{name: round(value, 4) for name, value in found.items()}, **shares}))


if __name__ == '__main__':
    main()
