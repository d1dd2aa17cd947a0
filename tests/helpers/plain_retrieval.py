"""Segment retrieval the plainest way: every pixel of every image, one at a time."""
from collections import Counter

import numpy as np

NAMES = ['background', 'disc', 'square', 'star', 'triangle', 'cross', 'ring', 'crescent', 'capsule', 'unicorn']


def plain_class(mask, labels):
    """The most frequent object class in the mask, the highest on a tie; 0 for none."""
    counts = Counter(label for label in labels[mask].tolist() if label not in (0, 255))
    return max(counts, key=lambda label: (counts[label], label)) if counts else 0


def plain_scores(database, queries, prototypes, query_prototypes, kept):
    """IoU in percent of each class of `kept`, and the class of each query, from all pixels of all queries."""
    labels = [plain_class(mask, labels) for _, mask, labels in database]
    members = [i for i, label in enumerate(labels) if label]
    given, predictions = [], []
    for (_, mask, _), query in zip(queries, query_prototypes, strict=True):
        products = [np.float32(np.dot(query.astype(float), prototypes[i].astype(float))) for i in members]
        given.append(labels[members[products.index(max(products))]])  # the first of equal ones
        predictions.append(np.where(mask, given[-1], 0))
    iou = []
    for c in kept:
        hits = union = 0
        for prediction, (_, _, truth) in zip(predictions, queries, strict=True):
            valid = truth != 255
            hits += ((prediction == c) & (truth == c) & valid).sum()
            union += (((prediction == c) | (truth == c)) & valid).sum()
        iou.append(100 * hits / union if union else 0.0)
    return iou, given
