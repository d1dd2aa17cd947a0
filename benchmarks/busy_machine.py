"""A training step beside another busy process, compared with the same step on a quiet machine.

    python benchmarks/busy_machine.py [--rounds 5]

Each measurement is a fresh process that trains a ResNet-18 on views of 96, batch 16, with one thread per core; `ours` has the
environment that the scripts set (utils/parallel/workers.py: prepare_threads), `default` PyTorch's. The busy process keeps one
core at work. Prints a line of JSON; ratios are of images a second, busy over quiet.
"""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from utils.parallel.workers import cores, prepare_threads  # noqa: E402

BATCH, SIZE, STEPS = 16, 96, 6


def measure():
    """Print the images a second of some steps."""
    from pretrain_step import Steps
    from utils.training.device import keep_freed_memory
    keep_freed_memory()
    steps = Steps('resnet18', SIZE, BATCH, 128, False, 'none')
    steps.whole()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        steps.whole()
        seconds.append(time.perf_counter() - start)
    print(BATCH / statistics.median(seconds))


def rate(ours):
    """Images a second of a fresh process, with our environment or without."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(('OMP_', 'GOMP_'))}
    if ours:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(env)
        prepare_threads()
        env = dict(os.environ)
        os.environ.clear()
        os.environ.update(before)
    done = subprocess.run([sys.executable, __file__, '--measure'], env=env, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def spin():
    while True:
        pass


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, help='repetitions of each measurement, in turns (default: 3)')
    parser.add_argument('--measure', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        measure()
        return
    rates = {(who, load): [] for who in ('ours', 'default') for load in ('quiet', 'busy')}
    for _ in range(args.rounds):
        for who in ('ours', 'default'):
            rates[who, 'quiet'].append(rate(who == 'ours'))
        other = multiprocessing.Process(target=spin, daemon=True)
        other.start()
        for who in ('ours', 'default'):
            rates[who, 'busy'].append(rate(who == 'ours'))
        other.kill()
        other.join()
    medians = {f'{who}_{load}': round(statistics.median(found), 2) for (who, load), found in rates.items()}
    print(json.dumps({'benchmark': 'busy_machine', 'cores': cores(), 'batch': BATCH, 'size': SIZE, **medians,
                      'ours_busy_over_quiet': round(medians['ours_busy'] / medians['ours_quiet'], 3),
                      'default_busy_over_quiet': round(medians['default_busy'] / medians['default_quiet'], 3),
                      'quiet_ours_over_default': round(medians['ours_quiet'] / medians['default_quiet'], 3)}))


if __name__ == '__main__':
    main()
