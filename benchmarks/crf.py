"""Images per second refined by the dense CRF, with one process and with one per core. One line of JSON.

    python benchmarks/crf.py --images 24

The images are those of Shapes, drawn at about `--size` x `--size`, with random logits of 21 classes on a 64 x 64 grid.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from data.dataset import SegmentationDataset  # noqa: E402
from data.synthetic_shapes import draw_shapes  # noqa: E402
from evaluation.crf import CrfPool  # noqa: E402

CLASSES, GRID, RESOLUTION = 21, 64, (512, 512)


def images_per_second(dataset, grids, processes):
    """The second of two rounds over all images is timed: by then all processes have started. Returns predictions too."""
    with CrfPool(dataset, processes) as pool:
        for _ in range(2):
            start = time.perf_counter()
            jobs = [pool.submit(index, grid, RESOLUTION) for index, grid in enumerate(grids)]
            predictions = [pool.result(job) for job in jobs]
        return len(grids) / (time.perf_counter() - start), predictions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=24, help='images to refine (default: 24)')
    parser.add_argument('--size', type=int, default=320, help='approximate length of their sides (default: 320)')
    args = parser.parse_args()
    torch.manual_seed(0)
    cores = len(os.sched_getaffinity(0))
    grids = 2 * torch.randn(args.images, CLASSES, GRID, GRID)
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes(Path(folder) / 'Shapes', train=1, val=args.images, size=args.size)
        dataset = SegmentationDataset(Path(folder) / 'Shapes', 'val')
        one, first = images_per_second(dataset, grids, 1)
        many, second = images_per_second(dataset, grids, cores)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    print(json.dumps({'benchmark': 'crf', 'images': args.images, 'size': args.size, 'cores': cores,
                      'images_per_second_1_process': round(one, 3), 'images_per_second_1_a_core': round(many, 3),
                      'speed_up': round(many / one, 2)}))


if __name__ == '__main__':
    main()
