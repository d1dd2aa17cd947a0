"""The purity of clusters of objects: predictions of own_clusters.py, segment.py or kmeans.py against a data set's objects.

    python benchmarks/object_clusters.py --folder datasets/Photographs --predictions output/mine_clusters/predictions

Prints one line of JSON. An object of the data set (from instances_<masks>/, with the class of its labels; objects without a
class are left out) is in the most frequent cluster of its pixels, and not found if most have none. `purity` is the percentage
of all objects that have the most frequent class of their cluster; objects that were not found count as wrong.
"""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'pretrain'))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.dataset import SegmentationDataset  # noqa: E402
from data.decoding import read_labels  # noqa: E402
from data.label_space import VOID  # noqa: E402


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', required=True, help='a data set with labels and instances')
    parser.add_argument('--predictions', required=True, help='folder of palette images, <id>.png')
    parser.add_argument('--split', default='trainaug', help='default: trainaug')
    parser.add_argument('--masks', default='supervised_model', help='name of the masks with instances (default: %(default)s)')
    return parser.parse_args(argv)


def clusters_of(dataset, predictions):
    """Yield (class, cluster) of each object; cluster 0 where it was not found."""
    for index in tqdm(range(len(dataset)), disable=None):
        sample = dataset[index]
        predicted = read_labels(predictions / f'{sample["id"]}.png')
        for number in range(1, sample['instances'].max() + 1):
            inside = sample['instances'] == number
            labels = sample['labels'][inside]
            labels = labels[(labels > 0) & (labels < VOID)]
            if len(labels):
                yield int(np.bincount(labels).argmax()), int(np.bincount(predicted[inside]).argmax())


def purity(pairs):
    """Of (class, cluster) pairs, from 0 to 1; pairs of cluster 0 are wrong."""
    counts = Counter(pair for pair in pairs if pair[1])
    largest = Counter()
    for (_, cluster), count in counts.items():
        largest[cluster] = max(largest[cluster], count)
    return largest.total() / len(pairs)


def main(argv=None):
    args = parse_arguments(argv)
    dataset = SegmentationDataset(args.folder, args.split, args.masks, labels=True, instances=True)
    pairs = list(clusters_of(dataset, Path(args.predictions)))
    found = [pair for pair in pairs if pair[1]]
    print(json.dumps({'benchmark': 'object_clusters', 'split': args.split, 'images': len(dataset), 'objects': len(pairs),
                      'found': round(100 * len(found) / len(pairs), 1), 'clusters': len({cluster for _, cluster in found}),
                      'purity': round(100 * purity(pairs), 1)}))


if __name__ == '__main__':
    main()
