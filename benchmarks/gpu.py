"""The pre-training step on a GPU: time, memory, and what feeds it. One line of JSON, its rows on stderr as they come.

    python benchmarks/gpu.py --backbone resnet50 --size 224 --batch 64 --compile

bare: both forward passes, backward, SGD and momentum update in bfloat16. plain: `moco_kwargs.loss: plain` with ordinary
convolutions, in TF32 and in bfloat16 autocast. ours: what main.py runs; with `--compile` also with compiled networks. Each
without and with the layers up to layer2 frozen. Then the losses alone, the loader with its workers, ours fed by it, and ours at
several batch sizes.
With `--device cpu` and small sizes it runs without a GPU. It needs torch, torchvision, Pillow, OpenCV, NumPy and PyYAML only.
"""
import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from drawn import draw_images

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive.view_pairs import ViewPairs  # noqa: E402
from data.dataset import SegmentationDataset  # noqa: E402
from data.loaders import epoch_loader  # noqa: E402
from data.normalization import to_images  # noqa: E402
from models.backbones import IMAGENET, backbone_names  # noqa: E402
from plain import plain_network  # noqa: E402
from pretrain_loss import Losses  # noqa: E402
from pretrain_step import Steps  # noqa: E402
from utils.training.device import choose_device  # noqa: E402
from utils.training.precision import choose_precision  # noqa: E402

GIB = 2 ** 30


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('auto', 'cuda', 'cpu'), default='auto', help='where (default: auto)')
    parser.add_argument('--backbone', choices=backbone_names(), default='resnet50')
    parser.add_argument('--size', type=int, default=224, help='side of a view (default: 224)')
    parser.add_argument('--batch', type=int, default=64, help='images a step (default: 64)')
    parser.add_argument('--batches', type=int, nargs='*', default=(8, 16, 32, 64, 128), help='batches whose memory is measured')
    parser.add_argument('--queue', type=int, default=128, help='K (default: 128)')
    parser.add_argument('--steps', type=int, default=20, help='timed steps of each kind (default: 20)')
    parser.add_argument('--workers', type=int, default=16, help='of the loader (default: 16)')
    parser.add_argument('--images', type=int, default=1024, help='images that are drawn for the loader (default: 1024)')
    parser.add_argument('--matrix', type=int, default=8192, help='side of the matrices whose product is timed (default: 8192)')
    parser.add_argument('--compile', action='store_true', help='also time ours with compiled networks')
    args = parser.parse_args(argv)
    if args.device != 'cpu' and not torch.cuda.is_available():
        parser.error('there is no GPU; to try this script without one, give --device cpu and small sizes')
    return args


class Meter:
    """Times calls on one device, and says what they cost at most in memory."""

    def __init__(self, device, steps):
        self.device, self.steps = device, steps

    def synchronize(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def time(self, way, warm_up=3):
        """Mean seconds of a call, and the peak of the allocated memory in GiB (None on a CPU)."""
        gc.collect()  # of models before this one, which hold references in circles
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(warm_up):
            way()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self.steps):
            way()
        self.synchronize()
        seconds = (time.perf_counter() - start) / self.steps
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.device.type == 'cuda' else None


def matrix_rate(meter, side):
    """FLOP a second of a product of bfloat16 matrices."""
    a, b = torch.randn(2, side, side, device=meter.device, dtype=torch.bfloat16)
    return 2 * side ** 3 / meter.time(lambda: a @ b)[0]


def step_kinds(args, freeze, device):
    """(name, function that makes a step) of each kind; made one after the other, for their memory."""
    def steps(precision='bf16', layout=torch.channels_last, loss='fused'):
        choose_precision(precision, device)
        torch.backends.cuda.matmul.allow_tf32 = False
        return Steps(args.backbone, args.size, args.batch, args.queue, freeze, precision, layout, device, loss)

    def plain(precision):
        made = steps(precision, torch.contiguous_format, 'plain')
        plain_network(made.model)
        if precision == 'none':
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        return made.whole

    def compiled():
        made = steps()
        for network in (made.model.model_q, made.model.model_k):
            network.grid = torch.compile(network.grid)
        return made.whole

    kinds = [('bare', lambda: steps().bare), ('plain, TF32', lambda: plain('none')), ('plain, autocast', lambda: plain('bf16')),
             ('ours', lambda: steps().whole)]
    return [*kinds, ('ours, compiled', compiled)] if args.compile else kinds


def time_steps(args, meter, rate):
    rows = []
    for freeze in (False, True):
        for name, make in step_kinds(args, freeze, meter.device):
            way = make()
            seconds, peak = meter.time(way)
            rows.append({'step': name, 'frozen': freeze, 'ms': seconds * 1e3, 'images_per_second': args.batch / seconds,
                         'peak_gib': peak})
            if name == 'bare':
                with FlopCounterMode(display=False) as counter:
                    way()
                flop = counter.get_total_flops()
            rows[-1]['share_of_matrix_rate'] = flop / seconds / rate  # of the arithmetic that the networks need
            del way
            if args.compile:
                torch.compiler.reset()
            show(rows[-1])
    return rows


def time_losses(args, meter):
    side = -(-args.size // 8)
    losses = Losses(args.batch, side, args.size, args.queue, meter.device)
    rows = []
    for name in ('ours', 'plain'):
        seconds, peak = meter.time(getattr(losses, name))
        rows.append({'losses': name, 'ms': seconds * 1e3, 'peak_gib': peak})
        show(rows[-1])
    return rows


def time_loader(args, meter):
    """Images a second of the loader alone, and of ours fed by it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / 'drawn'
        draw_images(folder, args.images)
        pairs = ViewPairs(SegmentationDataset(folder, 'trainaug', 'drawn'), 0, args.size)
        loader = epoch_loader(pairs, args.batch, 0, args.workers, meter.device)
        steps = Steps(args.backbone, args.size, args.batch, args.queue, False, 'bf16', device=meter.device)

        def feed(batch):
            steps.images = [to_images(batch[view], meter.device, IMAGENET) for view in ('query', 'key')]
            steps.masks = [batch[view].to(meter.device, non_blocking=True) for view in ('query_mask', 'key_mask')]
            steps.whole()
        row = {'loader_images_per_second': epoch_rate(loader, meter, lambda batch: None),
               'fed_images_per_second': epoch_rate(loader, meter, feed), 'workers': args.workers}
        show(row)
        return row


def epoch_rate(loader, meter, use):
    """Images a second over the second epoch, when all workers have started."""
    for epoch in range(2):
        loader.batch_sampler.epoch = epoch
        meter.synchronize()
        start = time.perf_counter()
        for batch in loader:
            use(batch)
        meter.synchronize()
    return len(loader) * loader.batch_sampler.batch_size / (time.perf_counter() - start)


def memory_by_batch(args, meter):
    rows = []
    for freeze in (False, True):
        for batch in args.batches:
            steps = Steps(args.backbone, args.size, batch, args.queue, freeze, 'bf16', device=meter.device)
            seconds, peak = Meter(meter.device, 2).time(steps.whole, warm_up=2)
            rows.append({'batch': batch, 'frozen': freeze, 'ms': seconds * 1e3, 'peak_gib': peak})
            show(rows[-1])
            del steps
    return rows


def show(row):
    values = {key: f'{value:.4g}' if isinstance(value, float) else value for key, value in row.items()}
    print('| ' + ' | '.join(f'{key} {value}' for key, value in values.items()) + ' |', file=sys.stderr, flush=True)


def main(argv=None):
    args = parse_arguments(argv)
    device = choose_device(args.device)
    meter = Meter(device, args.steps)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'
    rate = matrix_rate(meter, args.matrix)
    show({'device': name, 'torch': torch.__version__, 'matrix_tflops': rate / 1e12})
    print(json.dumps({'benchmark': 'gpu', 'device': name, 'torch': torch.__version__, 'backbone': args.backbone,
                      'size': args.size, 'batch': args.batch, 'matrix_tflops': rate / 1e12,
                      'steps': time_steps(args, meter, rate), 'losses': time_losses(args, meter),
                      'loader': time_loader(args, meter), 'memory': memory_by_batch(args, meter)}))


if __name__ == '__main__':
    main()
