"""The losses of pre-training alone, forward and backward: time and peak memory of ours and the plain ones. One line of JSON.

    python benchmarks/pretrain_loss.py --batch 64 --grid 28 --size 224 --queue 128

A third of each image is foreground. Both are timed in turns, in one process, after their losses were found equal. Memory is
the growth of the resident set in fresh processes that compute them once.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from drawn import draw_views
from measure import json_of, peak_resident, ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive import fused_losses, gathered_losses, losses  # noqa: E402
from pretrain_step import NDIM, T  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=64, help='images (default: 64)')
    parser.add_argument('--grid', type=int, default=28, help="side of the network's grid (default: 28)")
    parser.add_argument('--size', type=int, default=224, help='side of a view (default: 224)')
    parser.add_argument('--queue', type=int, default=128, help='K (default: 128)')
    parser.add_argument('--rounds', type=int, default=3, help='timed rounds of each (default: 3)')
    parser.add_argument('--memory-of', choices=('ours', 'plain'), help=argparse.SUPPRESS)
    return parser.parse_args()


class Losses:
    """Both losses on the same grids: query, key, saliency logits, masks and queue."""

    def __init__(self, batch, grid, size, queue, device='cpu'):
        torch.manual_seed(0)
        self.masks = draw_views(batch, size, device)[1]
        self.object_pixels = self.masks[0].flatten(1).sum(1).tolist()
        self.q, self.k = torch.randn(2, batch, NDIM, grid, grid, device=device)
        self.saliency = torch.randn(batch, grid, grid, device=device, requires_grad=True)
        self.queue = F.normalize(torch.randn(NDIM, queue, device=device), dim=0)
        self.q.requires_grad_()

    def ours(self):
        return self._backward(fused_losses)

    def plain(self):
        return self._backward(losses)

    def gathered(self):
        return self._backward(gathered_losses, object_pixels=self.object_pixels)

    def _backward(self, way, **counted):
        prototypes = way.mask_prototypes(self.k, self.masks[1])
        loss = way.contrastive_loss(self.q, self.masks[0], prototypes, self.queue, T, **counted)[0]
        loss = loss + way.saliency_loss(self.saliency, self.masks[0])
        self.q.grad = self.saliency.grad = None
        loss.backward()
        return loss.detach()


def memory_of(way):
    """Bytes by which one call raises this process's peak resident set."""
    (torch.randn(256, 256, requires_grad=True) @ torch.randn(256, 256)).sum().backward()  # the libraries' own buffers
    before = peak_resident(reset=True)
    way()
    return peak_resident() - before


def main():
    args = parse_arguments()
    both = Losses(args.batch, args.grid, args.size, args.queue)
    if args.memory_of:
        print(memory_of(getattr(both, args.memory_of)))
        return
    torch.testing.assert_close(both.ours(), both.plain(), rtol=1e-5, atol=0)
    ours, plain = take_turns(args.rounds, both.ours, both.plain)
    memory, plain_memory = (json_of(__file__, *sys.argv[1:], '--memory-of', way) for way in ('ours', 'plain'))
    print(json.dumps({
        'benchmark': 'pretrain_loss', 'batch': args.batch, 'grid': args.grid, 'size': args.size, 'queue': args.queue,
        'seconds': round(statistics.median(ours), 4), 'plain_seconds': round(statistics.median(plain), 4),
        'speed_up': round(ratio(plain, ours), 2), 'peak_mib': round(memory / 2 ** 20),
        'plain_peak_mib': round(plain_memory / 2 ** 20), 'plain_over_peak': round(plain_memory / memory, 2)}))


if __name__ == '__main__':
    main()
