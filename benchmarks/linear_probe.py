"""An epoch of the linear classifier and its online evaluation, after the first epoch. One line of JSON.

    python benchmarks/linear_probe.py --backbone resnet18 --size 256

ours: as linear_finetune.py runs it, in `--amp` and channels_last, with the validation images' features kept. plain: float32 in
PyTorch's own layout, logits at full size, the network on the validation images in every epoch, boolean passes; it has a
process of its own. Both read the images of Shapes, in the same views; as in PASCAL VOC there are 7 training images to each for
validation.
"""
import argparse
import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from measure import in_own_process, ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from data.dataset import SegmentationDataset  # noqa: E402
from data.label_space import VOID, LabelSpace  # noqa: E402
from data.loaders import epoch_loader, split_loader  # noqa: E402
from data.normalization import to_images  # noqa: E402
from data.synthetic_shapes import CLASSES, draw_shapes  # noqa: E402
from evaluation.evaluation_images import EvaluationImages, resize_labels  # noqa: E402
from evaluation.feature_cache import FeatureCache  # noqa: E402
from evaluation.linear_probe import online_iou  # noqa: E402
from evaluation.linear_training import LinearTrainer  # noqa: E402
from evaluation.training_views import TrainingViews  # noqa: E402
from models.backbones import IMAGENET, backbone_names  # noqa: E402
from models.factory import get_model  # noqa: E402
from plain import plain_hits_and_misses, plain_network  # noqa: E402
from utils.parallel.random_streams import RandomStreams  # noqa: E402
from utils.training.device import keep_freed_memory  # noqa: E402
from utils.training.optimizer import get_optimizer  # noqa: E402
from utils.training.precision import choose_precision  # noqa: E402

CPU = torch.device('cpu')
N_CLASSES = len(CLASSES)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', choices=backbone_names(), default='resnet18')
    parser.add_argument('--size', type=int, default=256, help="side of the network's input (default: 256)")
    parser.add_argument('--batch', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--images', type=int, default=28, help='training images (default: 28)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16'), default='auto', help='precision of ours (default: auto)')
    parser.add_argument('--rounds', type=int, default=4, help='timed epochs of each kind (default: 4)')
    return parser.parse_args()


class Probe:
    """A frozen network of random weights, its optimiser, and loaders of the images of both splits."""

    def __init__(self, folder, backbone, size, batch, layout):
        torch.manual_seed(0)
        self.resolution = (size, size)
        network = get_model({'backbone': backbone, 'num_classes': N_CLASSES - 1})
        self.network = network.to(memory_format=layout).freeze('all')
        self.optimizer = get_optimizer(network.parameters(), 'sgd', lr=0.1, weight_decay=1e-4, momentum=0.9)
        train, val = (SegmentationDataset(folder, split, labels=True) for split in ('trainaug', 'val'))
        self.loader = epoch_loader(TrainingViews(train, LabelSpace(CLASSES), 0, self.resolution), batch, 0, 0, CPU)
        self.val_loader = split_loader(EvaluationImages(val, self.resolution, N_CLASSES), 0, CPU, batch)

    def plain(self):
        """An epoch and its score in the simplest way."""
        self.network.train()
        for batch in self.loader:
            logits = self.network(to_images(batch['image'], CPU, IMAGENET).contiguous())
            loss = F.cross_entropy(logits, batch['labels'].long(), ignore_index=VOID)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.network.eval()
        counts = 0
        with torch.no_grad():
            for batch in self.val_loader:
                logits = self.network(to_images(batch['image'], CPU, IMAGENET).contiguous())
                labels = np.stack([resize_labels(one, self.resolution) for one in batch['labels']])
                counts = counts + plain_hits_and_misses(logits.argmax(1).numpy().astype(np.uint8), labels, N_CLASSES)
        return counts


def plain_epochs(*arguments):
    probe = Probe(*arguments, torch.contiguous_format)
    plain_network(probe.network)
    return probe.plain


def main():
    args = parse_arguments()
    keep_freed_memory()
    precision = choose_precision(args.amp, CPU)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / 'Shapes'
        draw_shapes(folder, train=args.images, val=max(1, args.images // 7), size=args.size)
        settings = folder, args.backbone, args.size, args.batch
        probe = Probe(*settings, torch.channels_last)
        trainer = LinearTrainer(probe.network, probe.optimizer, probe.loader, RandomStreams(0, 0, 1, CPU), precision,
                                Path(temporary) / 'checkpoint.pth.tar', best_model=None)
        with FeatureCache(probe.network, probe.val_loader, CPU, precision, probe.resolution, temporary,
                                keep=True) as kept, \
                in_own_process(functools.partial(plain_epochs, *settings)) as plain:
            def ours():
                trainer.run_epoch()
                online_iou(probe.network.classifier, kept, N_CLASSES)
                trainer.step = 0
            times = take_turns(args.rounds, ours, plain)
    print(json.dumps({'benchmark': 'linear_probe', 'backbone': args.backbone, 'size': args.size, 'batch': args.batch,
                      'images': args.images, 'precision': precision, 'seconds': round(statistics.median(times[0]), 3),
                      'plain_seconds': round(statistics.median(times[1]), 3), 'speed_up': round(ratio(times[1], times[0]), 2)}))


if __name__ == '__main__':
    main()
