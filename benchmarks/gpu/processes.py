"""Two processes compute what one simulates: with NCCL on two GPUs, with gloo on one, or on a CPU."""
import tempfile

import torch

from gpu.common import report
from gpu.shapes import PRETRAINING, Runs, difference

FAR = 1e-3  # relative, on a GPU


def run(settings):
    device = settings.device.type
    cards = torch.cuda.device_count() if settings.on_gpu else 0
    how = 'nccl, two GPUs' if cards > 1 else 'gloo, both on one GPU' if cards else 'gloo, on the CPU'
    sharing = ['--share-gpus', '--dist-backend', 'gloo'] if cards == 1 else []
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, device)
        real = runs.command('pretrain/main.py', 'real', PRETRAINING, '--amp', 'none', *sharing)
        runs.run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *real)
        runs.run(*runs.command('pretrain/main.py', 'simulated', {**PRETRAINING, 'simulate_processes': 2}, '--amp', 'none',
                               '--world-size', '1'))
        off = difference(runs.checkpoint('real')['model'], runs.checkpoint('simulated')['model'])
    report(f'two processes ({how}) against simulated ones', ok=off <= (FAR if settings.on_gpu else 0),
           detail='equal bit for bit' if off == 0 else f'weights off by {off:.1e}')
