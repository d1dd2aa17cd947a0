"""Every call of torch.distributed. Without a process group the answers are those of a single process."""
import torch
from torch import distributed


def _active():
    return distributed.is_available() and distributed.is_initialized()


def rank():
    return distributed.get_rank() if _active() else 0


def world_size():
    return distributed.get_world_size() if _active() else 1


@torch.no_grad()
def gather(tensor):
    """Concatenate every process's `tensor` (equal shapes) along dimension 0 in rank order, without gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def shared_permutation(length, device):
    """A random permutation of `length` numbers, the same on every process (rank 0 draws it)."""
    permutation = torch.randperm(length, device=device)
    if world_size() > 1:
        distributed.broadcast(permutation, src=0)
    return permutation
