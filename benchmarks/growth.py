"""How time and memory grow: of a training step with batch and view, of K-means and retrieval with the images. One line of JSON.

    python benchmarks/growth.py

Every row is measured in a process of its own: seconds of one step (median of `--steps`) or of one scoring, and the peak of the
resident set, of which about half a GiB are the libraries.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from measure import json_of, peak_resident, take_turns

ROOT = Path(__file__).resolve().parents[1]
CLASSES, NDIM, SEEDS = 21, 32, 5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batches', type=int, nargs='*', default=(4, 8, 16, 32), help='batch sizes at views of 96 (default: '
                                                                                       '4 8 16 32)')
    parser.add_argument('--sizes', type=int, nargs='*', default=(96, 160, 224), help='view sizes at batch 8 (default: 96 160 '
                                                                                     '224)')
    parser.add_argument('--memory', type=int, nargs=2, default=(4, 16), help='batch sizes of ResNet-50 (default: 4 16)')
    parser.add_argument('--memory-size', type=int, default=224, help='view size of ResNet-50 (default: 224)')
    parser.add_argument('--splits', type=int, nargs='*', default=(500, 5000, 50000), help='numbers of images (default: 500 '
                                                                                          '5000 50000)')
    parser.add_argument('--steps', type=int, default=3, help='timed steps (default: 3)')
    parser.add_argument('--row', help=argparse.SUPPRESS)
    return parser.parse_args()


def step_row(batch, size, count, backbone='resnet18', freeze=False):
    """Seconds and peak memory of a step in the precision that main.py would choose."""
    sys.path.insert(0, str(ROOT / 'pretrain'))  # each row needs another tree, and has a process of its own
    from pretrain_step import Steps
    from utils.training.device import keep_freed_memory
    from utils.training.precision import choose_precision
    keep_freed_memory()
    steps = Steps(backbone, size, batch, 128, freeze, choose_precision('auto', torch.device('cpu')))
    times, = take_turns(count, steps.whole)
    return {'batch': batch, 'size': size, 'seconds': round(statistics.median(times), 3), 'peak_mib': peak_resident() >> 20}


def split_row(images):
    """Seconds of five K-means clusterings and their scores, and of the search for neighbours of 1,449 queries among so many
    prototypes; peak bytes of both. The prototypes are drawn around 20 centres."""
    sys.path.insert(0, str(ROOT / 'segmentation'))
    from evaluation.clustering import cluster_all, whiten
    from evaluation.retrieval import nearest_neighbours
    from utils.training.device import keep_freed_memory
    keep_freed_memory()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(CLASSES - 1, NDIM))[rng.integers(0, CLASSES - 1, images)] + rng.normal(size=(images, NDIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    histograms = rng.integers(0, 9000, (images, 2, CLASSES))
    queries = vectors[rng.integers(0, images, 1449)]
    clock = [time.perf_counter()]
    cluster_all(whiten(vectors), histograms, CLASSES, range(SEEDS))
    clock.append(time.perf_counter())
    nearest_neighbours(queries, vectors, 5)
    clock.append(time.perf_counter())
    kmeans, retrieval = np.diff(clock).round(3).tolist()
    return {'images': images, 'kmeans_seconds': kmeans, 'retrieval_seconds': retrieval, 'peak_mib': peak_resident() >> 20}


def row(*values):
    return json_of(__file__, '--row', json.dumps(values))


def image_row(batches, size, freeze):
    """MiB that each further image of a batch takes of the process, with ResNet-50."""
    small, large = (row('step', batch, size, 1, 'resnet50', freeze)['peak_mib'] for batch in batches)
    return {'size': size, 'freeze': freeze, 'mib_an_image': round((large - small) / (batches[1] - batches[0]))}


def main():
    args = parse_arguments()
    if args.row:
        kind, *values = json.loads(args.row)
        print(json.dumps({'step': step_row, 'split': split_row}[kind](*values)))
        return
    shapes = [(batch, 96) for batch in args.batches] + [(8, size) for size in args.sizes if size != 96]
    print(json.dumps({'benchmark': 'growth', 'steps': [row('step', *shape, args.steps) for shape in shapes],
                      'images': [image_row(args.memory, args.memory_size, freeze) for freeze in (False, True)],
                      'splits': [row('split', images) for images in args.splits]}))


if __name__ == '__main__':
    main()
