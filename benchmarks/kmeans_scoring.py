"""The cost of scoring K-means and retrieval, without network and clustering. One line of JSON.

    python benchmarks/kmeans_scoring.py --images 200 --seeds 5

ours: a histogram of labels inside and outside each mask, once, from which the confusion matrix of every seed follows. plain,
for each seed: predictions of all images, and the IoU of every pair of prediction and class by boolean passes over all pixels;
one seed is timed, since all take the same time. Retrieval: the same histograms against 21 x 3 boolean passes. Both ways must
agree.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from measure import ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from data.label_space import VOID  # noqa: E402
from evaluation.clustering import score  # noqa: E402
from evaluation.evaluation_images import resize_labels  # noqa: E402
from evaluation.metrics import clustering_confusion, confusion_matrix, iou_matrix  # noqa: E402
from plain import hits_and_misses, plain_hits_and_misses  # noqa: E402

CLASSES, RESOLUTION = 21, (512, 512)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=200, help='number of images (default: 200)')
    parser.add_argument('--height', type=int, default=375, help='height of an image (default: 375)')
    parser.add_argument('--width', type=int, default=500, help='width of an image (default: 500)')
    parser.add_argument('--seeds', type=int, default=5, help='clusterings to score (default: 5)')
    parser.add_argument('--rounds', type=int, default=3, help='timed rounds of ours (default: 3); of plain K-means, 1')
    return parser.parse_args()


def draw(images, height, width):
    """Masks at the network's resolution and labels at the images' size: M x 512 x 512 and M x height x width uint8."""
    rng = np.random.default_rng(0)
    masks, labels = [], []
    for _ in range(images):
        blobs = cv2.resize(rng.normal(size=(6, 8)).astype(np.float32), RESOLUTION[::-1], interpolation=cv2.INTER_CUBIC)
        masks.append((blobs > 0.5).astype(np.uint8))
        coarse = rng.choice([0, 0, 0, *rng.integers(1, CLASSES, 3), VOID], (6, 8)).astype(np.uint8)
        labels.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))
    return masks, np.stack(labels)


def histograms(masks, labels):
    """Pixels outside and inside each mask by label, at the labels' size: M x 2 x C."""
    return np.stack([confusion_matrix(resize_labels(mask, label.shape), label, CLASSES, 'x', ids=2)
                     for mask, label in zip(masks, labels, strict=True)])


def predictions(masks, clusters, shape):
    """Cluster + 1 inside the masks, 0 elsewhere, at the labels' size: M x height x width uint8."""
    return np.stack([resize_labels(mask * np.uint8(cluster + 1), shape) for mask, cluster in zip(masks, clusters, strict=True)])


def plain_iou_matrix(predicted, labels):
    """IoU of every predicted id with every class by boolean passes over all pixels, as published."""
    valid = labels != VOID
    iou = np.zeros((CLASSES, CLASSES))
    for row in range(CLASSES):
        for column in range(CLASSES):
            one, other = (predicted == row) & valid, (labels == column) & valid
            iou[row, column] = (one & other).sum() / max((one | other).sum(), 1)
    return iou


def main():
    args = parse_arguments()
    masks, labels = draw(args.images, args.height, args.width)
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, CLASSES - 1, (args.seeds, args.images))

    def ours():
        counted = histograms(masks, labels)
        return [score(counted, seed, CLASSES) for seed in clusters]

    def retrieval():
        return clustering_confusion(histograms(masks, labels), clusters[0], CLASSES - 1)

    def plain_retrieval():
        return plain_hits_and_misses(predictions(masks, clusters[0], labels.shape[1:]), labels, CLASSES)

    def plainly(clusters):
        return plain_iou_matrix(predictions(masks, clusters, labels.shape[1:]), labels)

    start = time.perf_counter()
    plain = plainly(clusters[0])
    plain_seconds = time.perf_counter() - start
    assert np.allclose(iou_matrix(ours()[0].by_id), plain)
    assert np.array_equal(hits_and_misses(retrieval()), plain_retrieval())
    (own,), pair = take_turns(args.rounds, ours), take_turns(args.rounds, retrieval, plain_retrieval)
    seconds = statistics.median(own)
    print(json.dumps({
        'benchmark': 'kmeans_scoring', 'images': args.images, 'height': args.height, 'width': args.width, 'seeds': args.seeds,
        'seconds': round(seconds, 4), 'plain_seconds': round(plain_seconds * args.seeds, 4),
        'speed_up': round(plain_seconds * args.seeds / seconds, 1), 'retrieval_seconds': round(statistics.median(pair[0]), 4),
        'plain_retrieval_seconds': round(statistics.median(pair[1]), 4),
        'retrieval_speed_up': round(ratio(pair[1], pair[0]), 1)}))


if __name__ == '__main__':
    main()
