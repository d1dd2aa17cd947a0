"""The device for computing, and its memory."""
import argparse
import ctypes
import os
import socket
import sys
from typing import Any, TypeVar

import torch
from torch import nn

from utils.errors import UserError
from utils.parallel import distributed, ranks
from utils.training.gpus import check_kernels, count_gpus, gpu_uuid, shared_gpus

Network = TypeVar('Network', bound=nn.Module)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


def choose_device(name: str) -> torch.device:
    """'auto' takes CUDA, otherwise Apple's MPS, otherwise the CPU. Raises `UserError` for a missing device, and for GPUs that
    this PyTorch can't use."""
    gpus = count_gpus() if name in ('auto', 'cuda') else 0
    there = {'cuda': gpus > 0, 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(kind for kind, available in there.items() if available)
    if not there[name]:
        raise UserError(f'--device {name}: PyTorch does not find this device on this machine')
    for index in range(gpus):
        check_kernels(index)
    return torch.device(name)


def keep_freed_memory() -> None:
    """Have this process keep the memory of freed tensors and images for the next ones. glibc gives large blocks back to the
    kernel, which then has to map and clear them anew: some 5% of a training step on a CPU. On other systems it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt and (mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 1 << 25)):  # the maximum for older versions
        mallopt(TRIM_THRESHOLD, 1 << 30)


def join_processes(args: argparse.Namespace, **meeting: Any) -> torch.device:
    """The device that --device asks for, after this process has joined the others of its group, if there are any: on a GPU
    each takes its own. meeting: of `distributed.join`."""
    if args.deterministic:
        be_deterministic()
    device = choose_device(args.device)
    if device.type == 'cpu':
        keep_freed_memory()
    distributed.join(device.type, patience=args.dist_timeout, **meeting)
    if device.type == 'cuda' and ranks.world_size() > 1:
        gpus, number = torch.cuda.device_count(), ranks.local_rank()
        if 1 < gpus <= number and not args.share_gpus:  # a single one may be this process's own, as SLURM gives them
            raise UserError(f'there are more processes than the {gpus} GPUs of this machine: start fewer processes, or give '
                            '--share-gpus')
        device = torch.device('cuda', number % gpus)
        torch.cuda.set_device(device)
        if not args.share_gpus:
            _refuse_shared_gpus(device)
    return device


def _refuse_shared_gpus(device: torch.device):
    """Raise a `UserError` on every process where two of them have taken the same GPU."""
    taken = distributed.gather_objects((socket.gethostname(), gpu_uuid(device)))
    shared = distributed.broadcast_object(shared_gpus(taken or []))
    if shared:
        lines = [f'ranks {", ".join(map(str, numbers))} are on one GPU of {host} ({uuid})'
                 for (host, uuid), numbers in shared.items()]
        raise UserError(f'{"; ".join(lines)}: start one process for each GPU, or give --share-gpus')


def be_deterministic() -> None:
    """Have PyTorch take algorithms that give the same bits in every run, and warn of operations that have none."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # what cuBLAS needs for it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def time_convolutions(device: torch.device) -> None:
    """Have cuDNN try its algorithms on each shape of a convolution once and keep the fastest, for work whose shapes stay the
    same. Nothing happens without CUDA, nor after `be_deterministic`, since the choice may differ from run to run."""
    if device.type == 'cuda' and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True


def on_device(network: Network, device: torch.device) -> Network:
    """`network` where it is computed, in the memory format that convolutions are fast in."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs lack this form
