"""A whole step without cudnn.benchmark, to compare with that of `steps`. In a separate process, since PyTorch reuses the
algorithm that it chose for a shape earlier in the same process."""
import torch

from gpu.common import Meter, report_time
from gpu.steps import make


def run(settings):
    step = make(settings, loss='gathered').whole
    torch.backends.cudnn.benchmark = False
    seconds, peak = Meter(settings.device, settings.steps).time(step)
    report_time('ours, gathered losses, without cudnn.benchmark', seconds, peak, f'{settings.batch / seconds:.4g} images/s')
