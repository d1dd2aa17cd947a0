"""The rank of this process in a run; a process without a group is the only one. Nothing here loads PyTorch."""
import os
import sys


def _group():
    """torch.distributed if it has a process group; without importing it there is none."""
    dist = sys.modules.get('torch.distributed')
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def in_group() -> bool:
    """Whether this process has joined a process group."""
    return _group() is not None


def rank() -> int:
    """The number of this process in its group, 0 without one."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """The number of processes in the group, 1 without one."""
    group = _group()
    return group.get_world_size() if group else 1


def is_main() -> bool:
    """Whether this is the process that reports and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine."""
    return from_environment('LOCAL_RANK', 'SLURM_LOCALID', default=rank())


def local_world_size() -> int:
    """How many processes of the group this machine has."""
    return min(from_environment('LOCAL_WORLD_SIZE', 'SLURM_NTASKS_PER_NODE', default=world_size()), world_size())


def per_process(count: int) -> int:
    """Of `count` workers for a machine, those of each of its processes."""
    return -(-count // local_world_size())


def from_environment(*names: str, default: int) -> int:
    """The number in the first of these environment variables that holds one."""
    found = [os.environ[name] for name in names if os.environ.get(name, '').isdecimal()]
    return int(found[0]) if found else default
