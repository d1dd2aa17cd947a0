"""Loaders: samplers, batches, and the worker processes that read them."""
import shutil
import warnings
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from utils.errors import UserError
from utils.parallel.preemption import SIGNALS
from utils.parallel.ranks import local_world_size, per_process, rank, world_size
from utils.parallel.workers import end_on_lost_batch, end_with_parent, hide_lost_connections, obey_only_parent

SHARED_MEMORY = Path('/dev/shm')  # on Linux, where workers pass tensors
PREFETCHED = 2  # batches that each worker prepares, as PyTorch has it
IN_USE = 2  # batches besides: the one that is computed on, and the one that is handed over
TENSORS, PAGE = 4, 4096  # of a batch; a tensor takes whole pages of this many bytes


class Items(Protocol):
    """A data set of dicts, for example a `SegmentationDataset` or pairs of views of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> dict[str, Any]: ...


class EpochBatchSampler(torch.utils.data.Sampler):
    """Batches of (epoch, index) keys: a new order in every epoch, incomplete last batches dropped.

    length: images of the data set. batch_size: global; every process takes its share of each batch.
    `epoch` and `start` (the first step) are set before each iteration.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.length, self.seed = length, seed
        self.batch_size, self.share, self.rank = batch_size, batch_size // world_size, rank
        self.epoch = self.start = 0

    def __len__(self):
        return self.length // self.batch_size

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for step in range(self.start, len(self)):
            first = step * self.batch_size + self.rank * self.share
            yield [(self.epoch, int(index)) for index in order[first:first + self.share]]


def split_batches(length: int, batch_size: int, rank: int, world_size: int) -> torch.utils.data.BatchSampler:
    """A sampler of a process's part of the batches of consecutive indices: in rank order they are those of a single process.

    Its `sampler` is the range of this process's indices, which may be empty.
    """
    batches = -(-length // batch_size)
    first, end = (batches * number // world_size * batch_size for number in (rank, rank + 1))
    return torch.utils.data.BatchSampler(range(min(first, length), min(end, length)), batch_size, drop_last=False)


def item_rng(seed: int, epoch: int, name: str) -> np.random.Generator:
    """A numpy Generator for one image in one epoch: the same whichever worker reads it, and whatever was read before."""
    return np.random.default_rng([seed, epoch, int.from_bytes(name.encode(), 'little')])


def make_loader(dataset: Items, num_workers: int, device: torch.device, **options: Any) -> torch.utils.data.DataLoader:
    """A DataLoader of `dataset` for batches that go to `device`. options: of the DataLoader, for example `batch_size`.

    A batch is a dict: tensors of the items are stacked, other values are lists.
    Its own generator keeps it from drawing its workers' seeds from the global one, which would then depend on how often
    a run was cut. PyTorch's warning about more workers than cores is left out: files from GPU servers ask for eight.
    Raises `UserError` if shared memory, through which workers pass their batches, is too small for them. The data set's
    `item_bytes` is the size of an item, if it has this attribute.
    """
    sampler = options.get('batch_sampler')
    items: Any = options.get('batch_size') or getattr(sampler, 'share', 0) or getattr(sampler, 'batch_size', 1)
    _check_shared_memory(getattr(dataset, 'item_bytes', 0) * items, num_workers)
    warnings.filterwarnings('ignore', message='This DataLoader will create')  # which comes when it starts them, too
    # PyTorch's annotation wants its own class `Dataset`, though any with these two methods will do.
    return torch.utils.data.DataLoader(dataset, num_workers=num_workers,  # type: ignore[arg-type]
                                       pin_memory=device.type == 'cuda', worker_init_fn=_start_worker,
                                       generator=torch.Generator(), collate_fn=_collate, **options)


def _check_shared_memory(batch_bytes: int, workers: int, folder: Path = SHARED_MEMORY):
    """Raise a `UserError` if the batches that the workers of this machine's processes prepare don't fit into the folder."""
    if not workers or not batch_bytes or not folder.is_dir():
        return
    batches = (workers * PREFETCHED + IN_USE) * local_world_size()
    needed, free = batches * (batch_bytes + TENSORS * PAGE), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f'{folder} has {free >> 20} MiB free, but num_workers: {workers} need up to {-(-needed >> 20)} MiB '
                        'there for their batches: give the container more (docker run --shm-size), or lower num_workers or the '
                        'batch size')


def epoch_loader(dataset: Items, batch_size: int, seed: int, num_workers: int,
                 device: torch.device) -> torch.utils.data.DataLoader:
    """A DataLoader of this process's share of `EpochBatchSampler`, whose workers live as long as it does.

    batch_size: of all processes together. num_workers: of all on this machine.
    """
    batches = EpochBatchSampler(len(dataset), batch_size, seed, rank(), world_size())
    return make_loader(dataset, per_process(num_workers), device, batch_sampler=batches, persistent_workers=num_workers > 0)


def split_loader(dataset: Items, num_workers: int, device: torch.device, batch_size: int) -> torch.utils.data.DataLoader:
    """A DataLoader of this process's part of `dataset`, in order. num_workers: of the machine."""
    return make_loader(dataset, per_process(num_workers), device,
                       batch_sampler=split_batches(len(dataset), batch_size, rank(), world_size()))


def _collate(items: list[dict[str, Any]]):
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {key: torch.stack(values) if torch.is_tensor(values[0]) else values for key, values in batch.items()}


def _start_worker(_: int):
    obey_only_parent(SIGNALS)  # before there are threads, which would not
    end_with_parent()
    end_on_lost_batch()
    hide_lost_connections()
    cv2.setNumThreads(0)  # workers are the parallelism: OpenCV's threads would only fight for the cores (torch sets its own)
