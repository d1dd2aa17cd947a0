"""Which device to compute on, and the memory that is kept there."""
import argparse
import ctypes
import sys
from typing import Any, TypeVar

import torch
from torch import nn

from utils.errors import UserError
from utils.parallel import distributed, ranks

Network = TypeVar('Network', bound=nn.Module)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


def choose_device(name: str) -> torch.device:
    """'auto' takes CUDA, else Apple's MPS, else the CPU. Raises `UserError` for a device that is not there."""
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(kind for kind, available in there.items() if available)
    if not there[name]:
        raise UserError(f'--device {name}: PyTorch finds no such device on this machine')
    return torch.device(name)


def keep_freed_memory() -> None:
    """Have this process keep the memory of freed tensors and images for the next ones. glibc gives large blocks back to the
    kernel, which then has to map and clear them anew: some 5% of a training step on a CPU. On other systems it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt and (mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 1 << 25)):  # the most that older ones take
        mallopt(TRIM_THRESHOLD, 1 << 30)


def join_processes(args: argparse.Namespace, **meeting: Any) -> torch.device:
    """The device that --device asks for, after this process has joined the others of its group, if there are any: on a GPU
    each takes its own. meeting: of `distributed.join`."""
    device = choose_device(args.device)
    if device.type == 'cpu':
        keep_freed_memory()
    distributed.join(device.type, patience=args.dist_timeout, **meeting)
    if device.type == 'cuda' and ranks.world_size() > 1:
        gpus, number = torch.cuda.device_count(), ranks.local_rank()
        if 1 < gpus <= number:  # a single one may be this process's own, as SLURM gives them
            raise UserError(f'there are more processes than the {gpus} GPUs of this machine: start fewer')
        device = torch.device('cuda', number % gpus)
        torch.cuda.set_device(device)
    return device


def on_device(network: Network, device: torch.device) -> Network:
    """`network` where it is computed, in the memory format that convolutions are fast in."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs lack this form
