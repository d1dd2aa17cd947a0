"""Index copies from host to device don't wait for the device; the meta device, which computes nothing, stands for it."""
import pytest
import torch
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from utils.parallel import distributed


class Copies(TorchDispatchMode):
    """Whether each copy to another device asks not to be waited for."""

    def __init__(self):
        super().__init__()
        self.non_blocking = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is torch.ops.aten._to_copy.default:
            self.non_blocking.append(kwargs.get('non_blocking', False))
        return operation(*args, **kwargs)


@pytest.fixture(params=[1, 2])
def world_size(request):
    if request.param == 1:
        yield 1
        return
    dist.init_process_group('fake', rank=0, world_size=2, store=FakeStore())
    yield 2
    dist.destroy_process_group()


def test_take_rows_copies_its_indices_non_blocking(world_size):
    rows = torch.empty(4, 3, device='meta')
    with Copies() as copies:
        distributed.take_rows(rows, torch.randperm(4 * world_size))
    assert copies.non_blocking == [True] * world_size  # alone: the order; otherwise what is sent, and where what comes belongs
