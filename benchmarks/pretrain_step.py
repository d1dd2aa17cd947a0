"""What a whole pre-training step costs over its bare networks, and the loss's share of peak memory. One line of JSON.

    python benchmarks/pretrain_step.py --backbone resnet18 --size 96 --batch 16 --amp bf16

bare: both forward passes, backward, SGD and momentum update of the same networks, in the same precision and layout, with a
sum in place of the losses. Both are timed in turns, in one process; the ratio is the median over neighbouring steps.
Memory is the growth of the resident set in fresh processes that run only the losses, lean and plain, on a third of each
image as foreground.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive.builder import ContrastiveModel  # noqa: E402
from contrastive.losses import contrastive_loss, mask_prototypes, saliency_loss  # noqa: E402
from models.interpolation import resize  # noqa: E402
from plain import plain_contrastive_loss, plain_prototypes, plain_saliency_loss  # noqa: E402
from utils.device import autocast, choose_precision  # noqa: E402
from utils.optim import get_optimizer  # noqa: E402

NDIM, T, M = 32, 0.5, 0.999
CPU = torch.device('cpu')


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', choices=('resnet18', 'resnet50'), default='resnet18')
    parser.add_argument('--size', type=int, default=96, help='side of a view (default: 96)')
    parser.add_argument('--batch', type=int, default=16, help='images a step (default: 16)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16'), default='auto', help='precision (default: auto)')
    parser.add_argument('--freeze', action='store_true', help='freeze the layers up to layer2, as the supervised runs do')
    parser.add_argument('--queue', type=int, default=128, help='K (default: 128)')
    parser.add_argument('--steps', type=int, default=15, help='timed steps of each kind (default: 15)')
    parser.add_argument('--memory-of', choices=('lean', 'plain'), help=argparse.SUPPRESS)
    return parser.parse_args()


def views(batch, size):
    """Two views, and masks whose foreground is a third of each image."""
    images = torch.randn(2, batch, 3, size, size)
    masks = torch.zeros(2, batch, size, size, dtype=torch.uint8)
    side = round(size / 3 ** 0.5)
    masks[:, :, size // 5:size // 5 + side, size // 5:size // 5 + side] = 1
    return [view.contiguous(memory_format=torch.channels_last) for view in images], masks


class Steps:
    """A whole and a bare step of one model on the same inputs."""

    def __init__(self, args, precision):
        torch.manual_seed(0)
        self.model = ContrastiveModel({
            'backbone': args.backbone, 'freeze_layers': args.freeze, 'model_kwargs': {'ndim': NDIM},
            'moco_kwargs': {'T': T, 'm': M, 'K': args.queue}}).to(memory_format=torch.channels_last).train()
        self.optimizer = get_optimizer(self.model.parameters(), 'sgd', lr=0.004, weight_decay=1e-4, momentum=0.9)
        self.images, self.masks = views(args.batch, args.size)
        self.precision = precision

    def whole(self):
        with autocast(CPU, self.precision):
            loss = self.model(*self.images, *self.masks)['loss']
        self._update(loss)
        return loss

    def bare(self):
        with autocast(CPU, self.precision):
            embeddings, saliency = self.model.model_q.grid(self.images[0])
            with torch.no_grad():
                self.model._momentum_update()
                self.model.model_k.grid(self.images[1])
        self._update(embeddings.float().mean() + saliency.float().mean())

    def _update(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def time_steps(args, precision):
    """Median seconds of a whole and a bare step, and the median of their ratio in neighbouring steps."""
    steps = Steps(args, precision)
    for _ in range(3):
        steps.whole()
        steps.bare()
    pairs = [(seconds(steps.whole), seconds(steps.bare)) for _ in range(args.steps)]
    whole, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    return whole, bare, statistics.median(a / b for a, b in pairs)


def loss_memory(args):
    """Bytes by which the losses alone raise this process's peak resident set, forward and backward."""
    torch.manual_seed(0)
    masks = views(args.batch, args.size)[1]
    side = -(-args.size // 8)
    q, k = torch.randn(2, args.batch, NDIM, side, side)
    saliency = torch.randn(args.batch, side, side, requires_grad=True)
    queue = torch.nn.functional.normalize(torch.randn(NDIM, args.queue), dim=0)
    q.requires_grad_()
    (torch.randn(256, 256, requires_grad=True) @ torch.randn(256, 256)).sum().backward()  # the libraries' own buffers
    before = peak_resident(reset=True)
    if args.memory_of == 'lean':
        prototypes = mask_prototypes(k, masks[1])
        loss = contrastive_loss(q, masks[0], prototypes, queue, T)[0] + saliency_loss(saliency, masks[0])
    else:
        full = masks.shape[-2:]
        unit = torch.nn.functional.normalize
        prototypes = plain_prototypes(unit(resize(k, full), dim=1), masks[1])
        loss = plain_contrastive_loss(unit(resize(q, full), dim=1), masks[0], prototypes, queue, T)[0]
        loss = loss + plain_saliency_loss(resize(saliency.unsqueeze(1), full).squeeze(1), masks[0])
    loss.backward()
    return peak_resident() - before


def peak_resident(reset=False):
    """The highest resident set in bytes so far; `reset` makes it the present one first (Linux)."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def main():
    args = parse_arguments()
    if args.memory_of:
        print(loss_memory(args))
        return
    precision = choose_precision(args.amp, CPU)
    whole, bare, ratio = time_steps(args, precision)
    memory = {kind: int(subprocess.run([sys.executable, __file__, *sys.argv[1:], '--memory-of', kind], check=True,
                                       capture_output=True, text=True).stdout) for kind in ('lean', 'plain')}
    print(json.dumps({
        'benchmark': 'pretrain_step', 'backbone': args.backbone, 'size': args.size, 'batch': args.batch,
        'precision': precision, 'freeze': args.freeze, 'whole_seconds': round(whole, 4), 'bare_seconds': round(bare, 4),
        'whole_over_bare': round(ratio, 3), 'loss_peak_mib': round(memory['lean'] / 2 ** 20, 1),
        'plain_loss_peak_mib': round(memory['plain'] / 2 ** 20, 1),
        'loss_memory_over_plain': round(memory['lean'] / memory['plain'], 3)}))


if __name__ == '__main__':
    main()
