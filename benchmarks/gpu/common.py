"""Shared parts of the sections: sizes, rows of the report, and a meter of time and memory."""
import gc
import json
import time
from dataclasses import dataclass

import torch

from utils.training.device import choose_device
from utils.training.precision import choose_precision

GIB = 2 ** 30


@dataclass(frozen=True)
class Settings:
    """device: where. small: to try a section, not to measure. The rest is the step of the published supervised run."""
    device: torch.device
    small: bool
    backbone: str = 'resnet50'
    size: int = 224
    batch: int = 64
    queue: int = 128
    steps: int = 20
    batches: tuple[int, ...] = (8, 16, 32, 64, 128)
    workers: tuple[int, ...] = (4, 8)
    images: int = 1024
    matrix: int = 8192

    @property
    def on_gpu(self):
        return self.device.type == 'cuda'


SMALL = {'backbone': 'resnet18', 'size': 32, 'batch': 4, 'queue': 8, 'steps': 1, 'batches': (2, 4), 'workers': (1,),
         'images': 8, 'matrix': 64}


def make_settings(device, small):
    settings = Settings(choose_device(device), small, **(SMALL if small else {}))
    choose_precision('none', settings.device)  # float32 without TF32
    return settings


def report(what, **row):
    """A row. ok: of a check; or value and unit: of a measurement. detail: more, in words. Other numbers are kept as well."""
    print(json.dumps({'what': what, **row}), flush=True)


def skip(what, why):
    report(what, skipped=why)


class Meter:
    """Measures time and peak memory of calls on one device."""

    def __init__(self, device, steps):
        self.device, self.steps = device, steps

    def synchronize(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def time(self, way, warm_up=3):
        """Mean seconds of a call, and the peak of the allocated memory in GiB (None on a CPU)."""
        gc.collect()  # of models before this one, which hold references in circles
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(warm_up):
            way()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self.steps):
            way()
        self.synchronize()
        seconds = (time.perf_counter() - start) / self.steps
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.device.type == 'cuda' else None


def report_time(what, seconds, peak, detail='', **row):
    """A row of milliseconds, with the peak of the memory in its details."""
    memory = '' if peak is None else f'{peak:.3g} GiB at the peak'
    report(what, value=seconds * 1e3, unit='ms', detail=', '.join(filter(None, (detail, memory))), peak_gib=peak, **row)
