"""The cost of scoring the validation images after each epoch of the linear classifier. One line of JSON.

    python benchmarks/online_evaluation.py --batch 16 --size 512

counting: predictions and labels (uint8) to counts, by one confusion matrix an image, and by 21 x 3 boolean passes over the
batch (true positives, false positives and false negatives of each class). whole: the same from the features of the network on,
through classifier, upsampling and argmax. Both ways take turns in one process and must give the same counts.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from measure import ratio, take_turns

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from data.label_space import VOID  # noqa: E402
from evaluation.linear_probe import predicted_classes  # noqa: E402
from evaluation.metrics import confusion_matrix  # noqa: E402
from models.interpolation import resize  # noqa: E402
from plain import hits_and_misses, plain_hits_and_misses  # noqa: E402

CLASSES, CHANNELS = 21, 256


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=16, help='images (default: 16)')
    parser.add_argument('--size', type=int, default=512, help="side of the network's input (default: 512)")
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds of each way (default: 10)')
    return parser.parse_args()


def count(predictions, labels):
    """True positives, false positives and false negatives of each class, 3 x C, from one confusion matrix an image."""
    return hits_and_misses(sum(confusion_matrix(*pair, CLASSES, 'x') for pair in zip(predictions, labels, strict=True)))


def count_plainly(predictions, labels):
    return plain_hits_and_misses(predictions, labels, CLASSES)


def whole(classifier, features, labels):
    return count(predicted_classes(classifier(features), labels.shape[1:]), labels)


def whole_plainly(classifier, features, labels):
    logits = resize(classifier(features), labels.shape[1:])
    return count_plainly(logits.argmax(1).numpy().astype(np.uint8), labels)


def compare(fast, plain, inputs, rounds):
    """Median seconds of both ways, which must agree, and how many times as fast the first one is."""
    assert np.array_equal(fast(*inputs), plain(*inputs))
    times = take_turns(rounds, lambda: fast(*inputs), lambda: plain(*inputs))
    return (*(round(statistics.median(column), 4) for column in times), round(ratio(times[1], times[0]), 2))


@torch.no_grad()
def main():
    args = parse_arguments()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    labels = rng.choice([*range(CLASSES), VOID], (args.batch, args.size // 8, args.size // 8)).astype(np.uint8)
    labels = labels.repeat(8, axis=1).repeat(8, axis=2)
    features = torch.rand(args.batch, CHANNELS, args.size // 8, args.size // 8).to(memory_format=torch.channels_last)
    classifier = torch.nn.Conv2d(CHANNELS, CLASSES, 1).to(memory_format=torch.channels_last)
    predictions = predicted_classes(classifier(features), labels.shape[1:])
    report = {'benchmark': 'online_evaluation', 'batch': args.batch, 'size': args.size}
    for name, ways, inputs in (('counting', (count, count_plainly), (predictions, labels)),
                               ('whole', (whole, whole_plainly), (classifier, features, labels))):
        fast, plain, speed_up = compare(*ways, inputs, args.rounds)
        report |= {f'{name}_seconds': fast, f'plain_{name}_seconds': plain, f'{name}_speed_up': speed_up}
    print(json.dumps(report))


if __name__ == '__main__':
    main()
