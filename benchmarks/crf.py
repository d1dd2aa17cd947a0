"""How many images a second the dense CRF refines with one process and with one a core. One line of JSON.

    python benchmarks/crf.py --images 24

Photograph-like images of 500 x 375 with the logits of 21 classes on a 64 x 64 grid, as for PASCAL VOC.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from evaluation.crf import CrfPool  # noqa: E402

CLASSES, GRID, RESOLUTION = 21, 64, (512, 512)


class Noise:
    """A data set of smooth random images, 375 x 500 x 3 uint8."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        coarse = cv2.resize(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        return {'image': cv2.add(coarse, rng.integers(0, 12, coarse.shape).astype(np.uint8))}


def images_per_second(dataset, grids, processes):
    with CrfPool(dataset, processes) as pool:
        for job in [pool.submit(index, grids[0], RESOLUTION) for index in range(processes)]:
            pool.result(job)  # the processes have started
        start = time.perf_counter()
        predictions = [pool.result(job) for job in
                       [pool.submit(index, grid, RESOLUTION) for index, grid in enumerate(grids)]]
        return len(grids) / (time.perf_counter() - start), predictions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=24, help='images to refine (default: 24)')
    args = parser.parse_args()
    torch.manual_seed(0)
    dataset, cores = Noise(args.images), len(os.sched_getaffinity(0))
    grids = 2 * torch.randn(args.images, CLASSES, GRID, GRID)
    one, first = images_per_second(dataset, grids, 1)
    many, second = images_per_second(dataset, grids, cores)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    print(json.dumps({'benchmark': 'crf', 'images': args.images, 'cores': cores, 'images_per_second_1_process': round(one, 3),
                      'images_per_second_1_a_core': round(many, 3), 'speed_up': round(many / one, 2)}))


if __name__ == '__main__':
    main()
