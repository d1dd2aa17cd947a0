"""Which device to compute on, and in which precision."""
import contextlib
import ctypes
import logging
import sys
import time

import torch

from utils import distributed
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def choose_device(name):
    """'auto' takes CUDA, else Apple's MPS, else the CPU. Raises `UserError` for a device that is not there."""
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(kind for kind, available in there.items() if available)
    if not there[name]:
        raise UserError(f'--device {name}: PyTorch finds no such device on this machine')
    return torch.device(name)


def keep_freed_memory():
    """Have this process keep the memory of freed tensors and images for the next ones. glibc gives large blocks back to the
    kernel, which then has to map and clear them anew: some 5% of a training step on a CPU. On other systems it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt and (mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 1 << 25)):  # the most that older ones take
        mallopt(TRIM_THRESHOLD, 1 << 30)


def choose_precision(amp, device):
    """Resolve `--amp`: 'auto' becomes 'bf16' where the hardware is fast at it, else 'none'.

    'none' is float32 in earnest: it also keeps CUDA's convolutions from rounding to TF32.
    """
    if amp == 'auto':
        fast = {'cuda': _cuda_has_bfloat16, 'cpu': _cpu_is_fast_at_bfloat16}.get(device.type)
        amp = distributed.broadcast_object('bf16' if fast and fast() else 'none')  # which is a measurement: all need the same
        log.info('--amp auto: %s', 'bf16, in which this device is faster' if amp == 'bf16' else
                 'none, as this device is no faster in bfloat16')
    torch.backends.cudnn.allow_tf32 = amp != 'none'
    return amp


def autocast(device, precision):
    """The context in which a network runs: autocast for 'bf16' and 'fp16', nothing for 'none'."""
    if precision == 'none':
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def _cuda_has_bfloat16():
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_is_fast_at_bfloat16():
    """Some builds run dilated bfloat16 convolutions on slow kernels even where the CPU has the instructions: try one."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
    if not (features.get('avx512_bf16') or features.get('amx_bf16')):
        return False
    image = torch.ones(4, 256, 28, 28).to(memory_format=torch.channels_last)
    weight = torch.ones(256, 256, 3, 3).to(memory_format=torch.channels_last)

    def seconds(dtype):
        x, w = image.to(dtype), weight.to(dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            torch.conv2d(x, w, padding=2, dilation=2)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
