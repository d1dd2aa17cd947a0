"""Time and memory of a step at several batch sizes, until memory runs out."""
import dataclasses

import torch

from gpu.common import Meter, report, report_time
from gpu.steps import make


def run(settings):
    meter = Meter(settings.device, 1 if settings.small else 3)
    for freeze in (False, True):
        for batch in settings.batches:
            what = f'batch {batch}{", frozen to layer2" if freeze else ""}'
            try:
                made = make(dataclasses.replace(settings, batch=batch, queue=2 * batch), loss='gathered', freeze=freeze)
                report_time(what, *meter.time(made.whole, warm_up=2))
            except torch.OutOfMemoryError:
                report(what, value='does not fit', unit='')
                break
            finally:
                made = None
