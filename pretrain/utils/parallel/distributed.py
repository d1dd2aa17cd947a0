"""All calls of torch.distributed. Without a process group the results are those of a single process."""
import contextlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.parallel import watchdog
from utils.parallel.network import interface_of, is_loopback, meeting_point, own_address
from utils.parallel.ranks import from_environment, in_group, is_main, local_rank, rank, world_size
from utils.parallel.watchdog import TIMEOUT, Watchdog

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # until all processes have come
AGENT_STORE = 'TORCHELASTIC_USE_AGENT_STORE'  # set where the launcher has the store
FOREVER = timedelta(days=30)  # collectives never end a run: the watchdog knows better which process failed

T = TypeVar('T')


def join(device_type: str, backend: str | None = None, url: str = 'env://', patience: float = TIMEOUT) -> None:
    """Join the group of processes that the environment's RANK and WORLD_SIZE describe, as torchrun sets them, if there is one.

    backend: None for nccl on GPUs, otherwise gloo. url: where the processes meet (env://: at MASTER_ADDR and MASTER_PORT).
    patience: seconds without progress before a process counts as hanging. Raises `UserError` if the others don't come.
    """
    number, size = from_environment('RANK', default=-1), from_environment('WORLD_SIZE', default=1)
    if in_group() or size == 1:
        return
    if backend == 'nccl' and device_type != 'cuda':
        raise UserError('--dist-backend nccl needs GPUs: give gloo, or omit the flag')
    backend = backend or ('nccl' if device_type == 'cuda' else 'gloo')
    backend = 'cpu:gloo,cuda:nccl' if backend == 'nccl' else backend  # small tensors are exchanged between the hosts
    url = 'env://' if AGENT_STORE in os.environ else url
    try:
        store, number, size = next(dist.rendezvous(url, number, size, timeout=RENDEZVOUS_TIMEOUT))
        connection = store.clone() if hasattr(store, 'clone') else store  # a wait on the other must not stop the heartbeats
        store, connection = (dist.PrefixStore(f'attempt {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', one)
                             for one in (store, connection))
        _find_each_other(store, number, size, meeting_point(url))
        watchdog.current = Watchdog(dist.PrefixStore('peers', connection), number, size, patience)
        with watched():
            dist.init_process_group(backend, store=dist.PrefixStore('group', store), rank=number, world_size=size,
                                    timeout=FOREVER)
            barrier()
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(_no_meeting(url, error)) from error


def _no_meeting(url: str, error: Exception):
    """The message for processes that could not meet at `url`."""
    reason = (str(error).splitlines() or [''])[0]
    port = re.search(r'port: (\d+)', reason)
    for name, words in (('EADDRINUSE', 'is in use on this machine'), ('EACCES', 'needs more rights to be opened')):
        if name in reason and port:
            return (f'port {port[1]}, where the processes of this run meet ({url}), {words}: use another port, the same for '
                    'all processes')
    return (f'the processes of this run could not meet at {url} ({reason}): start all of them, with the same address and '
            'number of processes')


def _find_each_other(store: dist.Store, number: int, size: int, host: str | None):
    """Exchange who is on which machine. From it follow this process's number on its machine, and the network interface through
    which the machines reach each other, both of which the environment tells from now on, unless it did already."""
    own = own_address(host) if host else None
    store.set(f'here {number}', json.dumps([socket.gethostname(), own]))
    store.wait([f'here {other}' for other in range(size)], RENDEZVOUS_TIMEOUT)
    here = [json.loads(store.get(f'here {other}')) for other in range(size)]
    hosts = [name for name, _ in here]
    os.environ.setdefault('LOCAL_RANK', str(hosts[:number].count(hosts[number])))
    os.environ.setdefault('LOCAL_WORLD_SIZE', str(hosts.count(hosts[number])))
    elsewhere = [address for name, address in here if name != hosts[number] and address and not is_loopback(address)]
    if is_loopback(own) and elsewhere:  # this machine's own name leads to itself alone
        own = own_address(elsewhere[0])
    interface = own and interface_of(own)
    if interface:
        os.environ.setdefault('GLOO_SOCKET_IFNAME', interface)
        if elsewhere:
            os.environ.setdefault('NCCL_SOCKET_IFNAME', interface)


def rendezvous_store() -> tuple[dist.Store, dict[str, str]]:
    """A store for the processes of this machine to meet at, and the environment variables that lead them there: rank 0 joins
    this store, too, instead of starting its own. It is there as long as the object is."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    return store, {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store.port), AGENT_STORE: 'True'}


def leave() -> None:
    """Wait for all processes to come here, and dissolve the group."""
    if not in_group():
        return
    barrier()
    assert watchdog.current is not None  # as `join` has set it
    watchdog.current.close()
    watchdog.current = None
    dist.destroy_process_group()


def _collective():
    """Count one more collective of this process: a process with fewer keeps the others waiting."""
    if watchdog.current:
        watchdog.current.passed += 1


def note(place: str, in_step: bool = False) -> None:
    """Set the place of this process, for messages about lost processes. in_step: all processes pass here equally often."""
    if watchdog.current:
        watchdog.current.place = place
        watchdog.current.passed += in_step


def watched() -> contextlib.AbstractContextManager[None]:
    """A context in which all processes make progress: they `note` it, or take part in collectives. One that hangs is found."""
    return watchdog.current.watched() if watchdog.current else contextlib.nullcontext()


def barrier() -> None:
    """Wait for all processes."""
    all_reduce(torch.zeros(1))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """What the block makes is made once: rank 0 runs it first, then the first process of every other machine, which may have
    disks of its own, then the rest."""
    turn = 0 if is_main() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


@torch.no_grad()
def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of every process's `tensor`, in its place."""
    if world_size() > 1:
        _collective()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate every process's `tensor` (equal shapes) along dimension 0 in rank order, without gradient."""
    if world_size() == 1:
        return tensor
    _collective()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_objects(value: T) -> list[T] | None:
    """Every process's `value` (anything that can be pickled), in rank order, on rank 0; None elsewhere."""
    if world_size() == 1:
        return [value]
    _collective()
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast_object(value: T) -> T:
    """Rank 0's `value` (anything that can be pickled) on every process."""
    if world_size() == 1:
        return value
    _collective()
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def shared_permutation(length: int) -> torch.Tensor:
    """A random permutation of `length` numbers, the same on every process. Only rank 0 draws random numbers."""
    permutation = torch.randperm(length) if is_main() else torch.empty(length, dtype=torch.long)
    if world_size() > 1:
        _collective()
        dist.broadcast(permutation, src=0)
    return permutation


@torch.no_grad()
def take_rows(tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """This process's share of the rows `order` of all processes' `tensor` (equal shapes), concatenated in rank order.

    order: a permutation, on the CPU. Only the rows travel, each to the one process that takes it.
    """
    if world_size() == 1:
        return tensor[order.to(tensor.device, non_blocking=True)]
    _collective()
    rows, mine = len(tensor), rank()
    sources = order.view(world_size(), rows)  # of each process's new rows
    owner = sources.div(rows, rounding_mode='floor')
    sent = torch.cat([row[own == mine] for row, own in zip(sources, owner, strict=True)]) - mine * rows
    tensor = tensor.contiguous()[sent.to(tensor.device, non_blocking=True)]
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, tensor.contiguous(), owner[mine].bincount(minlength=world_size()).tolist(),
                           (owner == mine).sum(1).tolist())
    places = owner[mine].argsort(stable=True)  # they came sorted by owner
    return received[places.argsort().to(tensor.device, non_blocking=True)]


def data_parallel(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`model` with its start state made rank 0's, and gradients averaged over the processes in every backward pass.

    Buffers are not broadcast: batch-norm statistics are each process's own, and the queue is equal without.
    """
    if world_size() == 1:
        return model
    with watched():
        broadcast_state(model)  # DistributedDataParallel leaves out buffers that it does not broadcast later
    wrapped = DistributedDataParallel(model, [device] if device.type == 'cuda' else None, broadcast_buffers=False,
                                      init_sync=False, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _average)
    return wrapped


def _average(_: object, bucket: dist.GradBucket):  # DistributedDataParallel takes no other annotation, nor one as text
    _collective()
    if bucket.buffer().is_cuda or world_size() == 2:
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # PyTorch's annotation lacks None, for all processes
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(_sum_in_order(bucket.buffer().div_(world_size())))
    return future


def _sum_in_order(vector: torch.Tensor):
    """Sum of every process's `vector`, in its place, added from the last rank to the first, as autograd adds up the gradients
    of simulated processes.

    all_reduce adds each element in an order that depends on its place in the vector, and the places of gradients in DDP's
    buckets change after the first step: a run of more than two processes that was cut would end in other bits.
    """
    parts = F.pad(vector, (0, -len(vector) % world_size()))
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts)
    *others, total = received.chunk(world_size())
    for other in reversed(others):
        total += other
    dist.all_gather_into_tensor(parts, total)
    return vector.copy_(parts[:len(vector)])


def require_same(what: str, value: object) -> None:
    """Raise a `UserError` if the processes have different values (that can be pickled). what: in words, for the message."""
    values = gather_objects(value) or []
    odd = broadcast_object([rank for rank, other in enumerate(values) if other != values[0]])
    if odd:
        raise UserError(f'{what} of rank {", ".join(map(str, odd))} differ from those of rank 0: all machines need the same '
                        'files')


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes. Every parameter must have one."""
    for parameter in parameters:
        assert parameter.grad is not None
        all_reduce(parameter.grad)


@torch.no_grad()
def broadcast_state(module: torch.nn.Module) -> None:
    """Give every process rank 0's parameters and buffers."""
    if world_size() == 1:
        return
    for tensor in module.state_dict().values():
        _collective()
        values = tensor.contiguous()  # convolutions may be in another memory format
        dist.broadcast(values, src=0)
        tensor.copy_(values)
