"""Time of a pre-training step compared with its bare networks, and with the plain method. One line of JSON.

    python benchmarks/pretrain_step.py --backbone resnet18 --size 96 --batch 16 --amp bf16

bare: both forward passes, backward, SGD and momentum update of the same networks, in the same precision and layout, with means
of the outputs in place of the losses. plain: `moco_kwargs.loss: plain` with ordinary convolutions, in float32 and PyTorch's own
layout, in a process of its own. They are timed in turns.
"""
import argparse
import functools
import json
import statistics
import sys
from pathlib import Path

import torch

from drawn import draw_views
from measure import in_own_process, ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive.builder import ContrastiveModel  # noqa: E402
from models.backbones import backbone_names  # noqa: E402
from plain import plain_network  # noqa: E402
from utils.training.device import keep_freed_memory  # noqa: E402
from utils.training.optimizer import get_optimizer  # noqa: E402
from utils.training.precision import autocast, choose_precision  # noqa: E402

NDIM, T, M = 32, 0.5, 0.999


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', choices=backbone_names(), default='resnet18')
    parser.add_argument('--size', type=int, default=96, help='side of a view (default: 96)')
    parser.add_argument('--batch', type=int, default=16, help='images a step (default: 16)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16'), default='auto', help='precision (default: auto)')
    parser.add_argument('--freeze', action='store_true', help='freeze the layers up to layer2, as the supervised runs do')
    parser.add_argument('--queue', type=int, default=128, help='K (default: 128)')
    parser.add_argument('--steps', type=int, default=9, help='timed steps of each kind (default: 9)')
    return parser.parse_args()


class Steps:
    """Steps of one model on the same inputs, whole and bare. precision: as of `utils.training.precision.autocast`;
    layout: a memory format."""

    def __init__(self, backbone, size, batch, queue, freeze, precision, layout=torch.channels_last, device='cpu', loss='fused'):
        torch.manual_seed(0)
        self.device, self.precision = torch.device(device), precision
        self.model = ContrastiveModel({
            'backbone': backbone, 'freeze_layers': freeze, 'model_kwargs': {'ndim': NDIM},
            'moco_kwargs': {'T': T, 'm': M, 'K': queue, 'loss': loss}}).to(self.device, memory_format=layout).train()
        self.optimizer = get_optimizer(self.model.parameters(), 'sgd', lr=0.004, weight_decay=1e-4, momentum=0.9)
        images, self.masks = draw_views(batch, size, self.device)
        self.images = [view.contiguous(memory_format=layout) for view in images]
        self.object_pixels = self.masks[0].flatten(1).sum(1).tolist()

    def whole(self):
        with autocast(self.device, self.precision):
            loss = self.model(*self.images, *self.masks, self.object_pixels)['loss']
        self._update(loss)

    def bare(self):
        with autocast(self.device, self.precision):
            embeddings, saliency = self.model.model_q.grid(self.images[0])
            with torch.no_grad():
                self.model.update_key_network()
                self.model.model_k.grid(self.images[1])
        self._update(embeddings.float().mean() + saliency.float().mean())

    def _update(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def plain_steps(settings):
    steps = Steps(*settings, 'none', torch.contiguous_format, loss='plain')
    plain_network(steps.model)
    return steps.whole


def main():
    args = parse_arguments()
    precision = choose_precision(args.amp, torch.device('cpu'))
    settings = args.backbone, args.size, args.batch, args.queue, args.freeze
    keep_freed_memory()
    ours = Steps(*settings, precision)
    with in_own_process(functools.partial(plain_steps, settings)) as theirs:
        whole, bare, plain = take_turns(args.steps, ours.whole, ours.bare, theirs)
    print(json.dumps({
        'benchmark': 'pretrain_step', 'backbone': args.backbone, 'size': args.size, 'batch': args.batch,
        'precision': precision, 'trained': 'above layer2' if args.freeze else 'all layers',
        'seconds': round(statistics.median(whole), 4),
        'bare_seconds': round(statistics.median(bare), 4), 'plain_seconds': round(statistics.median(plain), 4),
        'whole_over_bare': round(ratio(whole, bare), 3), 'speed_up': round(ratio(plain, whole), 2)}))


if __name__ == '__main__':
    main()
