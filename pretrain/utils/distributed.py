"""Every call of torch.distributed. Without a process group the answers are those of a single process."""
import contextlib
import os
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.peers import Peers

PATIENCE = 300  # seconds without progress before a process counts as hanging
MEETING = timedelta(minutes=10)  # until all processes have come
FOREVER = timedelta(days=30)  # no collective ends a run: utils/peers.py knows better who is to blame

_peers = None


def _active():
    return distributed.is_available() and distributed.is_initialized()


def rank():
    return distributed.get_rank() if _active() else 0


def world_size():
    return distributed.get_world_size() if _active() else 1


def is_main():
    """Whether this is the process that reports and writes."""
    return rank() == 0


def local_rank():
    """The number of this process on its machine."""
    return _number('LOCAL_RANK', 'SLURM_LOCALID', default=rank())


def local_world_size():
    """How many processes of the group this machine has."""
    return min(_number('LOCAL_WORLD_SIZE', 'SLURM_NTASKS_PER_NODE', default=world_size()), world_size())


def share(count):
    """Of `count` workers for a machine, those of each of its processes."""
    return -(-count // local_world_size())


def _number(*names, default):
    found = [os.environ[name] for name in names if os.environ.get(name, '').isdecimal()]
    return int(found[0]) if found else default


def peers():
    """The `Peers` of this process's group, or None without one."""
    return _peers


def join(device_type, backend=None, url='env://', patience=PATIENCE):
    """Join the group of processes that the environment's RANK and WORLD_SIZE describe, as torchrun sets them, if there is one.

    backend: None for nccl on GPUs, else gloo. url: where the processes meet (env://: at MASTER_ADDR and MASTER_PORT).
    patience: seconds without progress before a process counts as hanging. Raises `UserError` when the others don't come.
    """
    global _peers
    number, size = _number('RANK', default=-1), _number('WORLD_SIZE', default=1)
    if _active() or size == 1:
        return
    backend = backend or ('nccl' if device_type == 'cuda' else 'gloo')
    backend = 'cpu:gloo,cuda:nccl' if backend == 'nccl' else backend  # small tensors are exchanged between the hosts
    try:
        store, number, size = next(distributed.rendezvous(url, number, size, timeout=MEETING))
        distributed.init_process_group(backend, store=distributed.PrefixStore('group', store), rank=number, world_size=size,
                                       timeout=FOREVER)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [''])[0]
        raise UserError(f'the processes of this run could not meet at {url} ({reason}): start all of them, with the same '
                        'address and number of processes') from error
    connection = store.clone() if hasattr(store, 'clone') else store  # a wait on the other must not stop the signs of life
    _peers = Peers(connection, number, size, patience)


def meeting_place():
    """A store for the processes of this machine to meet at, and the environment variables that lead them there. It is there as
    long as the object is."""
    store = distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    return store, {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store.port), 'TORCHELASTIC_USE_AGENT_STORE': 'True'}


def leave():
    """Wait for all processes to come here, and dissolve the group."""
    global _peers
    if not _active():
        return
    barrier()
    _peers.close()
    _peers = None
    distributed.destroy_process_group()


def _collective():
    """Note that this process takes part in one more collective: who has taken part in fewer keeps the others waiting."""
    if _peers:
        _peers.passed += 1


def note(place, in_step=False):
    """Say where this process is, for messages about lost processes. in_step: all processes pass here equally often."""
    if _peers:
        _peers.place = place
        _peers.passed += in_step


def watched():
    """A context in which all processes make progress: they `note` it, or take part in collectives. One that hangs is found."""
    return _peers.watched() if _peers else contextlib.nullcontext()


def barrier():
    """Wait for all processes."""
    total(torch.zeros(1))


@contextlib.contextmanager
def main_first():
    """What the block makes is made once: rank 0 runs it first, then the first process of every other machine, which may have
    disks of its own, then the rest."""
    turn = 0 if is_main() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


@torch.no_grad()
def total(tensor):
    """Sum of every process's `tensor`, in its place."""
    if world_size() > 1:
        _collective()
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def gather(tensor):
    """Concatenate every process's `tensor` (equal shapes) along dimension 0 in rank order, without gradient."""
    if world_size() == 1:
        return tensor
    _collective()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_objects(value):
    """Every process's `value` (anything that can be pickled), in rank order, on rank 0; None elsewhere."""
    if world_size() == 1:
        return [value]
    _collective()
    values = [None] * world_size() if is_main() else None
    distributed.gather_object(value, values)
    return values


def from_main(value):
    """Rank 0's `value` (anything that can be pickled) on every process."""
    if world_size() == 1:
        return value
    _collective()
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def shared_permutation(length):
    """A random permutation of `length` numbers, the same on every process. Only rank 0 draws random numbers."""
    permutation = torch.randperm(length) if is_main() else torch.empty(length, dtype=torch.long)
    if world_size() > 1:
        _collective()
        distributed.broadcast(permutation, src=0)
    return permutation


@torch.no_grad()
def take_rows(tensor, order):
    """This process's share of the rows `order` of all processes' `tensor` (equal shapes), concatenated in rank order.

    order: a permutation, on the CPU. Only the rows travel, each to the one process that takes it.
    """
    if world_size() == 1:
        return tensor[order.to(tensor.device)]
    _collective()
    rows, mine = len(tensor), rank()
    sources = order.view(world_size(), rows)  # of each process's new rows
    owner = sources.div(rows, rounding_mode='floor')
    sent = torch.cat([row[own == mine] for row, own in zip(sources, owner, strict=True)]) - mine * rows
    tensor = tensor.contiguous()[sent.to(tensor.device)]
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    distributed.all_to_all_single(received, tensor.contiguous(), owner[mine].bincount(minlength=world_size()).tolist(),
                                  (owner == mine).sum(1).tolist())
    places = owner[mine].argsort(stable=True)  # they came sorted by owner
    return received[places.argsort().to(tensor.device)]


def parallel(model, device):
    """`model` with its start state made rank 0's, and gradients averaged over the processes in every backward pass.

    Buffers are not broadcast: batch-norm statistics are each process's own, and the queue is equal without.
    """
    if world_size() == 1:
        return model
    share_state(model)  # DistributedDataParallel leaves out buffers that it does not broadcast later
    wrapped = DistributedDataParallel(model, [device] if device.type == 'cuda' else None, broadcast_buffers=False,
                                      init_sync=False, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _average)
    return wrapped


def _average(_, bucket):
    _collective()
    return allreduce_hook(None, bucket)


@torch.no_grad()
def sum_gradients(parameters):
    """Add up the gradients of all processes."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            total(parameter.grad)


@torch.no_grad()
def share_state(module):
    """Give every process rank 0's parameters and buffers."""
    if world_size() == 1:
        return
    for tensor in module.state_dict().values():
        _collective()
        values = tensor.contiguous()  # convolutions may be in another memory format
        distributed.broadcast(values, src=0)
        tensor.copy_(values)
