"""The precision of the networks: float32, or autocast to half precision."""
import contextlib
import logging
import time

import torch

from utils.parallel import distributed

log = logging.getLogger('maskcontrast')

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def choose_precision(amp: str, device: torch.device) -> str:
    """Resolve `--amp`: 'auto' becomes 'bf16' where the hardware is fast at it, otherwise 'none'.

    Everything outside autocast is true float32: on CUDA neither convolutions nor matrix products round to TF32.
    """
    if amp == 'auto':
        fast = {'cuda': _cuda_has_bfloat16, 'cpu': _cpu_is_fast_at_bfloat16}.get(device.type)
        amp = distributed.broadcast_object('bf16' if fast and fast() else 'none')  # which is a measurement: all need the same
        log.info('--amp auto: %s', 'bf16, which is faster on this device' if amp == 'bf16' else
                 'none, since bfloat16 is not faster on this device')
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision('highest')  # also where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE asks for less
    return amp


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
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

    def seconds(dtype: torch.dtype):
        x, w = image.to(dtype), weight.to(dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            torch.conv2d(x, w, padding=2, dilation=2)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
