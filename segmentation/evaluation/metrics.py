"""Confusion matrices and the metrics derived from them (paper section 4).

Axes: C classes, P predicted ids, M images. A confusion matrix is P x C int64: pixels predicted as row that are labelled as
column; void pixels are left out.
"""
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from data.files import size_text
from data.label_space import VOID
from utils.errors import UserError


def confusion_matrix(prediction: np.ndarray, labels: np.ndarray, classes: int, name: str, ids: int | None = None) -> np.ndarray:
    """The confusion matrix of one image: P x C int64. Those of a split are summed.

    prediction: H x W uint8 or int32 below `ids` (P; None: as many as classes). labels: H x W uint8, class indices or VOID.
    name: the image, for messages. Raises `UserError` for a label that is neither void nor below `classes`, and for sizes
    that differ.
    """
    if labels.shape != prediction.shape:
        raise UserError(f'{name}: the labels are {size_text(labels)} and the prediction {size_text(prediction)}')
    ids = ids or classes
    values: np.ndarray = prediction.ravel().astype(np.uint16 if ids <= 256 else np.int64)
    joint = labels.ravel() + (values << 8)
    counts = np.bincount(joint, minlength=ids * 256).reshape(ids, 256)
    if counts[:, classes:VOID].any():
        check_labels(labels, classes, name)
    return counts[:, :classes]


def check_labels(labels: np.ndarray, classes: int, name: str | Path) -> None:
    """Raise a `UserError` for labels that are neither void nor below `classes`. name: the image or file."""
    wrong = labels[(labels >= classes) & (labels != VOID)]
    if wrong.size:
        raise UserError(f'{name}: label {wrong.min()} in its labels, but there are only {classes} classes '
                        f'(0 to {classes - 1}, and {VOID} for void): correct the file, or classes.txt')


def clustering_confusion(histograms: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Confusion matrix of the prediction "cluster + 1 inside the mask, 0 elsewhere", without reading any pixels.

    histograms: M x 2 x C, pixels outside and inside the mask by label. clusters: M integers in [0, n_clusters).
    Returns (n_clusters + 1) x C.
    """
    return segment_confusion(histograms, np.asarray(clusters) + 1, 0, n_clusters + 1)


def segment_confusion(histograms: np.ndarray, inside: np.ndarray, outside: int, ids: int) -> np.ndarray:
    """Confusion matrix, ids x C, of predictions that are one id inside each image's mask and one outside all masks.

    histograms: M x 2 x C, pixels outside and inside the mask by label. inside: M ids. outside: an id, or VOID, which adds a
    last row, of pixels for which nothing is predicted.
    """
    confusion = np.zeros((ids + (outside == VOID), histograms.shape[2]), np.int64)
    confusion[-1 if outside == VOID else outside] = histograms[:, 0].sum(0)
    np.add.at(confusion, inside, histograms[:, 1])
    return confusion


def iou_matrix(confusion: np.ndarray) -> np.ndarray:
    """P x C float64 intersection over union of every predicted id with every class; an empty union counts 0."""
    union = confusion.sum(1, keepdims=True) + confusion.sum(0, keepdims=True) - confusion
    return confusion / np.maximum(union, 1)


def match_clusters(confusion: np.ndarray, has_background: bool = True) -> np.ndarray:
    """The class of each predicted id: P integers.

    As many ids as classes: one to one, by the Hungarian algorithm on the IoU matrix. Otherwise each id, including 0, is matched
    to the class of highest IoU, the lowest on a tie (majority vote).
    has_background: without a background class, id 0, which is outside the masks, is VOID, and the others are matched.
    """
    iou = iou_matrix(confusion)
    if not has_background:
        return np.concatenate([[VOID], _matched(iou[1:])])
    return _matched(iou)


def _matched(iou: np.ndarray):
    if iou.shape[0] != iou.shape[1]:
        return iou.argmax(1)
    return linear_sum_assignment(iou, maximize=True)[1]


def remap_to_classes(confusion: np.ndarray, classes_of: np.ndarray) -> np.ndarray:
    """C x C confusion matrix in which each predicted id counts as its class. An id of VOID adds a last row, of pixels for
    which no class is predicted."""
    classes, none = confusion.shape[1], classes_of == VOID
    result = np.zeros((classes + none.any(), classes), np.int64)
    np.add.at(result, np.where(none, classes, classes_of), confusion)
    return result


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, TP / (TP + FP + FN), of a matrix of `remap_to_classes`; 0 for one that never occurs. C float64."""
    return np.diagonal(iou_matrix(confusion)).copy()


def accuracy(confusion: np.ndarray) -> float:
    """Share of the valid pixels on the diagonal of a C x C matrix."""
    return np.trace(confusion) / max(confusion.sum(), 1)


def normalised_mutual_information(confusion: np.ndarray) -> float:
    """Mutual information over the arithmetic mean of the entropies, as scikit-learn's; 1 where both are constant."""
    entropies = (entropy(confusion.sum(1)) + entropy(confusion.sum(0))) / 2
    return mutual_info_score(None, None, contingency=confusion) / entropies if entropies > 0 else 1.0


def adjusted_rand_index(confusion: np.ndarray) -> float:
    """Agreement of all pairs of pixels, adjusted for chance, as scikit-learn's."""
    def pairs(counts: np.ndarray):
        return sum(int(n) * (int(n) - 1) // 2 for n in counts.ravel())  # exact: their products pass 64 bits
    both, rows, columns = pairs(confusion), pairs(confusion.sum(1)), pairs(confusion.sum(0))
    every = pairs(confusion.sum())
    expected, most = rows * columns / max(every, 1), (rows + columns) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


# What `kmeans.py --metrics` reports besides the IoU: functions of the ids' P x C confusion matrix and the class of each id.
CLUSTERING_METRICS = {
    'Accuracy': lambda by_id, classes_of: accuracy(remap_to_classes(by_id, classes_of)),
    'NMI': lambda by_id, _: normalised_mutual_information(by_id),
    'ARI': lambda by_id, _: adjusted_rand_index(by_id),
}
