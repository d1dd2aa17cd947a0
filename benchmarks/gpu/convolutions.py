"""The atrous convolutions of the decoder in each form of `models/atrous.py`: forward, and both gradients."""
import torch

from gpu.common import Meter, report, report_time
from models.atrous import FORMS, GPU_FORM
from models.networks import ATROUS_RATES
from utils.training.device import time_convolutions


def run(settings):
    time_convolutions(settings.device)
    grid, channels = -(-settings.size // 8), 2048 if settings.backbone == 'resnet50' else 512
    meter, totals = Meter(settings.device, settings.steps), dict.fromkeys(FORMS, 0.0)
    x = torch.randn(settings.batch, channels, grid, grid, device=settings.device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(256, channels, 3, 3, device=settings.device, dtype=torch.bfloat16) / (9 * channels) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    for rate in [rate for rate in ATROUS_RATES if rate < grid] or [2]:
        want = FORMS['convolution'](x.double(), weight.double(), rate)
        for name, form in FORMS.items():
            off = ((form(x, weight, rate) - want).norm() / want.norm()).item()
            report(f'{name}, rate {rate}', ok=off < 2e-2, detail=f'off by {off:.1e}, of bfloat16')

            def way(form=form, rate=rate):
                x.grad = weight.grad = None
                form(x, weight, rate).float().mean().backward()
            seconds, peak = meter.time(way)
            totals[name] += seconds
            report_time(f'{name}, rate {rate}', seconds, peak)
    fastest = min(totals, key=totals.get)
    report('fastest form', value=fastest, unit='', detail=f'models/atrous.py takes GPU_FORM = {GPU_FORM!r}')
