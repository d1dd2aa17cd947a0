"""Driver, GPU, PyTorch, and the rate of the matrix units."""
import os
import platform
import subprocess

import torch

from gpu.common import Meter, report


def run(settings):
    if settings.on_gpu:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            report(f'GPU {index}', value=card.name, unit='', detail=f'capability {card.major}.{card.minor}, '
                   f'{card.total_memory / 2 ** 30:.0f} GiB, {card.multi_processor_count} multiprocessors')
        report('driver', value=_driver(), unit='', detail=f'CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}')
    else:
        report('GPU', skipped='PyTorch finds none here: only the parts for a CPU run')
    report('PyTorch', value=torch.__version__, unit='', detail=f'Python {platform.python_version()}, {os.cpu_count()} cores')
    rate = matrix_rate(Meter(settings.device, settings.steps), settings.matrix if settings.on_gpu else 256)
    report('product of bfloat16 matrices', value=rate / 1e12, unit='TFLOP/s')


def _driver():
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return 'unknown'


def matrix_rate(meter, side):
    """FLOP a second of a product of bfloat16 matrices."""
    a, b = torch.randn(2, side, side, device=meter.device, dtype=torch.bfloat16)
    return 2 * side ** 3 / meter.time(lambda: a @ b)[0]
