"""Gradients are added up in one order, wherever they lie in DDP's buckets."""
import os
import sys

import pytest
import torch
from helpers.processes import OF_TESTS, Ranks

from utils.parallel import distributed

WORLD, LENGTH = 3, 10  # which cannot be divided


def worker(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=WORLD)
    own = vectors()[rank]
    torch.save({shift: distributed._sum_in_order(own.roll(shift)).roll(-shift) for shift in (0, 1, 5)}, f'{folder}/rank{rank}')
    torch.distributed.destroy_process_group()


def vectors():
    """Of numbers whose float32 sums depend on the order."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(WORLD, LENGTH, generator=generator) * 10 ** torch.arange(WORLD).view(-1, 1)


@pytest.mark.slow
def test_sums_do_not_depend_on_the_place(tmp_path):
    processes = Ranks(__file__, [tmp_path], tmp_path / 'logs', WORLD, **OF_TESTS)
    assert processes.wait() == [0] * WORLD, processes.printed()
    zero, one, two = vectors()
    assert not torch.equal((two + one) + zero, two + (one + zero))
    for rank in range(WORLD):
        for total in torch.load(tmp_path / f'rank{rank}', weights_only=True).values():
            assert torch.equal(total, (two + one) + zero)


if __name__ == '__main__':
    worker(int(os.environ['RANK']), sys.argv[1])
