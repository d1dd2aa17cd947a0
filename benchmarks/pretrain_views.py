"""Images per second for reading image and mask and making two views, on one core. One line of JSON.

    python benchmarks/pretrain_views.py [--folder DATA_SET --saliency NAME] --size 224

ours: the items that pre-training reads, as uint8, which is normalised on the device. cached: the same from decoded images.
plain: torchvision's transforms on PIL images, which normalise, in a process of its own. All three go through the same images in
turns, in one thread. Without `--folder` images of 500 x 375 are drawn.
"""
import argparse
import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from drawn import HEIGHT, WIDTH, draw_images
from measure import in_own_process, ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive.augmentations import HUE, JITTER, LOG_RATIO, P_FLIP, P_GRAYSCALE, P_JITTER, SCALE  # noqa: E402
from contrastive.view_pairs import COVER, ViewPairs  # noqa: E402
from data.dataset import SegmentationDataset  # noqa: E402
from models.backbones import IMAGENET  # noqa: E402
from utils.training.device import keep_freed_memory  # noqa: E402

RATIO = tuple(np.exp(LOG_RATIO))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', help='a data set to read from (the first images of trainaug), instead of drawn images')
    parser.add_argument('--saliency', help='its masks: saliency_<this>/')
    parser.add_argument('--size', type=int, default=224, help='side of a view (default: 224)')
    parser.add_argument('--images', type=int, default=48, help='number of images (default: 48)')
    parser.add_argument('--rounds', type=int, default=9, help='timed rounds over the images (default: 9)')
    args = parser.parse_args()
    if (args.folder is None) != (args.saliency is None):
        parser.error('--folder and --saliency need each other')
    return args


class PlainPairs:
    """Two views of an image by torchvision's transforms, until both masks pass."""

    def __init__(self, dataset, size):
        self.dataset, self.size = dataset, [size, size]
        self.jitter = transforms.ColorJitter(JITTER, JITTER, JITTER, HUE)

    def __getitem__(self, index):
        name = self.dataset.ids[index]
        image = Image.open(self.dataset.images / f'{name}.jpg').convert('RGB')
        mask = Image.open(self.dataset.masks / f'{name}.png')
        while True:
            pair = [self.view(image, mask) for _ in range(2)]
            if all(COVER[0] < mask.float().mean() < COVER[1] for _, mask in pair):
                return pair

    def view(self, image, mask):
        crop = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
        image = TF.resized_crop(image, *crop, self.size, InterpolationMode.BILINEAR)
        mask = TF.resized_crop(mask, *crop, self.size, InterpolationMode.NEAREST)
        if torch.rand(1) < P_JITTER:
            image = self.jitter(image)
        if torch.rand(1) < P_GRAYSCALE:
            image = TF.to_grayscale(image, 3)
        if torch.rand(1) < P_FLIP:
            image, mask = TF.hflip(image), TF.hflip(mask)
        return TF.normalize(TF.to_tensor(image), *IMAGENET), torch.from_numpy(np.array(mask) // 255)


def plain_round(folder, saliency, size, count):
    """A function that makes plain pairs of the first `count` images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = PlainPairs(SegmentationDataset(folder, 'trainaug', saliency, drop_missing=True), size)
    return lambda: [pairs[i] for i in range(count)]


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder, saliency = Path(args.folder or Path(temporary) / 'drawn'), args.saliency or 'drawn'
        if not args.folder:
            draw_images(folder, args.images)
        ours, cached = (ViewPairs(SegmentationDataset(folder, 'trainaug', saliency, drop_missing=True, cache=cache), 0,
                                  args.size) for cache in (None, Path(temporary) / 'cache'))
        count = min(args.images, len(ours))
        with in_own_process(functools.partial(plain_round, folder, saliency, args.size, count)) as plain:
            times = take_turns(args.rounds, lambda: [ours[0, i] for i in range(count)],
                               lambda: [cached[0, i] for i in range(count)], plain)
    rates = [count / statistics.median(column) for column in times]
    print(json.dumps({'benchmark': 'pretrain_views', 'images': count, 'size': args.size,
                      **({} if args.folder else {'width': WIDTH, 'height': HEIGHT}),
                      'images_per_second': round(rates[0], 1), 'cached_images_per_second': round(rates[1], 1),
                      'plain_images_per_second': round(rates[2], 1), 'speed_up': round(ratio(times[2], times[0]), 2),
                      'cached_speed_up': round(ratio(times[2], times[1]), 2)}))


if __name__ == '__main__':
    main()
