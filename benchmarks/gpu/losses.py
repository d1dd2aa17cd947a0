"""The losses alone, forward and backward, in each form."""
import torch

from contrastive import gathered_losses
from gpu.common import Meter, report, report_time
from pretrain_loss import Losses


def run(settings):
    meter = Meter(settings.device, settings.steps)
    made = Losses(settings.batch, -(-settings.size // 8), settings.size, settings.queue, settings.device)
    compiled = gathered_losses._compiled_chunk
    ways = [('plain', made.plain), ('fused', made.ours), ('gathered', made.gathered)]
    values = {name: way() for name, way in ways}
    for name in ('fused', 'gathered'):
        off = (values[name] / values['plain'] - 1).abs().item()
        report(f'{name} losses equal the plain ones', ok=off < 1e-4, detail=f'off by {off:.1e}')
    if settings.on_gpu:
        report('the chunk is compiled', ok=compiled.compiled, detail=f'triton and a C compiler are needed; {torch.__version__}')
    for name, way in ways:
        report_time(f'{name} losses', *meter.time(way))
    gathered_losses._compiled_chunk = gathered_losses.pixel_chunk
    report_time('gathered losses, not compiled', *meter.time(made.gathered))
    gathered_losses._compiled_chunk = compiled
