"""A whole step of pre-training: bare networks, the plain method, ours with each form of the losses."""
import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu.common import Meter, report_time
from gpu.environment import matrix_rate
from plain import plain_network
from pretrain_step import Steps
from utils.training.device import time_convolutions
from utils.training.precision import choose_precision


def make(settings, precision='bf16', layout=torch.channels_last, loss='fused', freeze=False):
    choose_precision(precision, settings.device)
    time_convolutions(settings.device)
    return Steps(settings.backbone, settings.size, settings.batch, settings.queue, freeze, precision, layout, settings.device,
                 loss)


def plain(settings, precision):
    made = make(settings, precision, torch.contiguous_format, 'plain')
    plain_network(made.model)
    if precision == 'none':
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    return made.whole


def kinds(settings):
    """(name, function that makes a step) of each kind; made one after the other, for their memory."""
    for freeze in (False, True):
        frozen = functools.partial(make, settings, freeze=freeze)
        where = ', frozen to layer2' if freeze else ''
        yield f'bare networks{where}', lambda frozen=frozen: frozen().bare
        yield f'ours, fused losses{where}', lambda frozen=frozen: frozen().whole
        yield f'ours, gathered losses{where}', lambda frozen=frozen: frozen(loss='gathered').whole
    yield 'ours, float32', lambda: make(settings, 'none').whole
    yield 'plain method, autocast', lambda: plain(settings, 'bf16')
    yield 'plain method, TF32', lambda: plain(settings, 'none')


def run(settings):
    meter = Meter(settings.device, settings.steps)
    rate, flop = matrix_rate(meter, settings.matrix), 0
    for name, make_way in kinds(settings):
        way = make_way()
        seconds, peak = meter.time(way)
        if name.startswith('bare'):
            with FlopCounterMode(display=False) as counter:
                way()
            flop = counter.get_total_flops()
        share = flop / seconds / rate  # of the arithmetic that the networks need
        report_time(name, seconds, peak, f'{settings.batch / seconds:.4g} images/s', images_per_second=settings.batch / seconds,
                    share_of_matrix_rate=share)
        del way
