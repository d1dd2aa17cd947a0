"""A saliency model compared with labels: mean IoU of its masks with all labelled objects, and images per second. Without
labels, --against uses the masks of another model instead, for example a supervised one.

    python benchmarks/saliency_masks.py --folder ../datasets/VOCSegmentation --split val [--model robust_background]

Prints one line of JSON. Images are resized to a longer side of 400 pixels, and one core is used. An image whose mask is left
out for covering less than 1% counts as IoU 0. Void pixels are left out.
"""
import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'pretrain'))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.dataset import SegmentationDataset  # noqa: E402
from data.label_space import VOID  # noqa: E402
from saliency.estimators import BACKBONE, MODELS, ROBUST_BACKGROUND, VIT, get_estimator  # noqa: E402
from saliency.mask_generation import SMALLEST, object_mask  # noqa: E402


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', required=True, help='a data set with labels, or with other masks')
    parser.add_argument('--split', default='val', help='default: val')
    parser.add_argument('--model', default=ROBUST_BACKGROUND, choices=MODELS, help='default: %(default)s')
    parser.add_argument('--against', metavar='MASKS', help='compare with the masks saliency_<MASKS>/ instead of labels')
    parser.add_argument('--weights', help='of tokencut or feature_cues: weights of the network')
    parser.add_argument('--backbone', default=BACKBONE, help='of feature_cues (default: %(default)s)')
    parser.add_argument('--vit', default=VIT, help='of tokencut (default: %(default)s)')
    parser.add_argument('--side', type=int, default=400, help='longer side of the images in pixels (default: 400)')
    return parser.parse_args(argv)


def intersection_over_union(mask, labels):
    valid, truth = labels != VOID, (labels != VOID) & (labels > 0)
    found = (mask > 0) & valid
    union = (found | truth).sum()
    return float((found & truth).sum() / union) if union else 1.0


def measure(dataset, estimator, side):
    """IoU (None for a mask that is left out) and seconds of each image."""
    scores, seconds = [], []
    for index in tqdm(range(len(dataset)), disable=None):
        sample = dataset[index]
        image, labels = sample['image'], sample['saliency' if dataset.masks else 'labels']
        scale = side / max(labels.shape)
        size = round(labels.shape[1] * scale), round(labels.shape[0] * scale)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        start = time.perf_counter()
        mask = object_mask(estimator(image))
        seconds.append(time.perf_counter() - start)
        scores.append(intersection_over_union(mask, labels) if mask.mean() >= SMALLEST else None)
    return scores, seconds


def main(argv=None):
    args = parse_arguments(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = SegmentationDataset(args.folder, args.split, saliency=args.against, labels=not args.against,
                                  drop_missing=bool(args.against))
    estimator = get_estimator(args.model, vit=args.vit, weights=args.weights, backbone=args.backbone)
    with threadpool_limits(1):
        scores, seconds = measure(dataset, estimator, args.side)
    print(json.dumps({'benchmark': 'saliency_masks', 'model': args.model, 'split': args.split, 'images': len(scores),
                      'mean_IoU': round(100 * float(np.mean([score or 0.0 for score in scores])), 1),
                      'left_out': scores.count(None), 'images_per_second': round(1 / float(np.median(seconds)), 2)}))


if __name__ == '__main__':
    main()
