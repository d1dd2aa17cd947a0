"""Scores from label histograms are those of a loop over full predictions with one boolean mask a class.

Axes: C classes, P predicted ids, M images.
"""
import itertools
import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, adjusted_rand_score, confusion_matrix, normalized_mutual_info_score

from evaluation import metrics
from evaluation.clustering import score, whiten
from utils.errors import UserError

SIZES = [(1, 1), (1, 9), (7, 1), (5, 8), (33, 17), (64, 64), (61, 90)]


def random_images(rng, classes, sizes=SIZES, never=()):
    """Labels (H x W uint8 with void) and masks (0 or 1), one a size; an empty mask, a full one and an all-void image."""
    allowed = [c for c in range(classes) if c not in never]
    labels = [rng.choice([*allowed, 255], size).astype(np.uint8) for size in sizes]
    masks = [rng.integers(0, 2, size).astype(np.uint8) for size in sizes]
    masks[-1][:], masks[-2][:] = 0, 1
    labels[-3][:] = 255
    return labels, masks


def histograms_of(labels, masks, classes):
    return np.stack([metrics.confusion_matrix(*pair, classes, 'x', ids=2) for pair in zip(masks, labels, strict=True)])


def plain_iou(predictions, labels, classes):
    """IoU of each class over all valid pixels of all images, looked at one by one."""
    prediction = np.concatenate([p[label != 255] for p, label in zip(predictions, labels, strict=True)])
    truth = np.concatenate([label[label != 255] for label in labels])
    iou = []
    for c in range(classes):
        tp, fp, fn = (((prediction == c) & (truth == c)).sum(), ((prediction == c) & (truth != c)).sum(),
                      ((prediction != c) & (truth == c)).sum())
        iou.append(tp / (tp + fp + fn) if tp + fp + fn else 0.0)
    return iou


def plain_pairs(ids, labels, count, classes):
    """IoU of every predicted id with every class, P x C, from images of ids."""
    ids = np.concatenate([p[label != 255] for p, label in zip(ids, labels, strict=True)])
    truth = np.concatenate([label[label != 255] for label in labels])
    iou = np.zeros((count, classes))
    for i, c in itertools.product(range(count), range(classes)):
        union = ((ids == i) | (truth == c)).sum()
        iou[i, c] = ((ids == i) & (truth == c)).sum() / union if union else 0.0
    return iou


# Histograms


@pytest.mark.parametrize('classes', [2, 9, 21, 255])
def test_histograms_count_labels_in_and_out_of_the_mask(classes):
    rng = np.random.default_rng(classes)
    for labels, mask in zip(*random_images(rng, classes), strict=True):
        counts = metrics.confusion_matrix(mask, labels, classes, 'x', ids=2)
        assert counts.shape == (2, classes) and counts.dtype == np.int64
        for inside, c in itertools.product((0, 1), range(classes)):
            assert counts[inside, c] == ((labels == c) & (mask == inside)).sum()
        assert counts.sum() == (labels != 255).sum()


def test_histograms_by_hand():
    labels, mask = np.array([[0, 2, 255], [2, 2, 1]], np.uint8), np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    assert metrics.confusion_matrix(mask, labels, 3, 'x', ids=2).tolist() == [[1, 1, 1], [0, 0, 2]]


@pytest.mark.parametrize('classes, ids', [(2, 2), (21, 21), (9, 30), (255, 7)])
def test_confusion_matrix_is_scikit_learns(classes, ids):
    rng = np.random.default_rng(classes)
    for size in SIZES:
        labels = rng.choice([*range(classes), 255], size).astype(np.uint8)
        prediction = rng.integers(0, ids, size).astype(np.uint8)
        valid, count = labels != 255, max(classes, ids)
        plain = confusion_matrix(prediction[valid], labels[valid], labels=range(count)) if valid.any() else 0
        found = metrics.confusion_matrix(prediction, labels, classes, 'x', None if ids == classes else ids)
        assert found.dtype == np.int64 and np.array_equal(found, (plain + np.zeros((count, count), int))[:ids, :classes])


def test_labels_are_checked_where_nothing_is_counted():
    for label in (0, 8, 255):
        metrics.check_labels(np.full((3, 4), label, np.uint8), 9, 'a.png')
    for label in (9, 254):
        with pytest.raises(UserError, match=f'^a.png: label {label} in its labels'):
            metrics.check_labels(np.array([[0, 255, label]], np.uint8), 9, 'a.png')


@pytest.mark.parametrize('label, inside', [(4, 0), (4, 1), (254, 0), (254, 1)])
def test_a_label_that_is_no_class_names_the_image(label, inside):
    labels, mask = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    labels[2, 3], mask[2, 3] = label, inside
    with pytest.raises(UserError, match=f'^2007_000033: label {label} .* only 4 classes'):
        metrics.confusion_matrix(mask, labels, 4, '2007_000033', ids=2)
    labels[2, 3] = 3
    assert metrics.confusion_matrix(mask, labels, 4, '2007_000033', ids=2)[inside, 3] == 1


def test_sizes_that_differ_name_the_image():
    with pytest.raises(UserError, match='^2007_000033: the labels are 5 x 4 and the prediction 4 x 5'):
        metrics.confusion_matrix(np.zeros((5, 4), np.uint8), np.zeros((4, 5), np.uint8), 2, '2007_000033')


# Clusterings


@pytest.mark.parametrize('classes, ids', [(21, 21), (6, 6), (6, 4), (6, 9), (2, 2), (3, 2)])
@pytest.mark.parametrize('never', [(), (1,)])
def test_scores_equal_those_of_full_predictions(classes, ids, never):
    rng = np.random.default_rng(classes * 100 + ids)
    labels, masks = random_images(rng, classes, SIZES * 2, never)
    clusters = rng.integers(0, ids - 1, len(labels))
    clusters[clusters == ids - 2] = 0  # the last cluster has no image, unless there is only one
    predicted = [np.where(mask == 1, cluster + 1, 0) for mask, cluster in zip(masks, clusters, strict=True)]

    result = score(histograms_of(labels, masks, classes), clusters, ids)
    assert result.by_id.shape == (ids, classes) and result.by_id.dtype == np.int64
    for i, c in itertools.product(range(ids), range(classes)):
        assert result.by_id[i, c] == sum(((p == i) & (label == c)).sum() for p, label in zip(predicted, labels, strict=True))
    assert np.array_equal(metrics.iou_matrix(result.by_id), plain_pairs(predicted, labels, ids, classes))

    as_classes = [np.asarray(result.classes_of)[p] for p in predicted]
    iou = metrics.class_iou(result.confusion)
    assert iou.tolist() == plain_iou(as_classes, labels, classes)
    assert all(iou[c] == 0 for c in never) and len(iou) == classes
    for i, (mask, want) in enumerate(zip(masks, as_classes, strict=True)):
        prediction = result.prediction(i, mask)
        assert prediction.dtype == np.uint8 and np.array_equal(prediction, want)


def test_image_by_image_equals_all_at_once():
    rng = np.random.default_rng(0)
    labels, masks = random_images(rng, 21, SIZES * 3)
    clusters = rng.integers(0, 20, len(labels))
    histograms = histograms_of(labels, masks, 21)
    whole = metrics.clustering_confusion(histograms, clusters, 20)
    streamed = sum(metrics.clustering_confusion(histograms[i:i + 1], clusters[i:i + 1], 20) for i in range(len(labels)))
    assert np.array_equal(whole, streamed)
    one_image = metrics.confusion_matrix(np.concatenate([x.ravel() for x in masks])[None],
                                         np.concatenate([x.ravel() for x in labels])[None], 21, 'x', ids=2)
    assert np.array_equal(histograms.sum(0), one_image)


def test_whitening_keeps_32_directions_of_unit_variance():
    prototypes = np.random.default_rng(0).normal(size=(60, 40)) * np.arange(1, 41)
    whitened, centred = whiten(prototypes), prototypes - prototypes.mean(0)
    assert whitened.shape == (60, 32) and whiten(prototypes[:, :5]).shape == (60, 5) and whiten(prototypes[:9]).shape == (9, 9)
    assert np.allclose(np.cov(whitened.T), np.eye(32), atol=1e-10)
    variances, directions = np.linalg.eigh(np.cov(centred.T))
    plain = (centred @ directions / np.sqrt(variances))[:, ::-1][:, :32]  # each up to its sign
    assert np.allclose(np.abs(whitened), np.abs(plain), atol=1e-8)


# Matching


@pytest.mark.parametrize('size', [2, 3, 5, 6])
def test_hungarian_matching_is_the_best_of_all_permutations(size):
    rng = np.random.default_rng(size)
    for _ in range(10):
        confusion = rng.integers(0, 1000, (size, size)) * rng.integers(0, 2, (size, size))
        found = metrics.match_clusters(confusion)
        assert sorted(found) == list(range(size))  # one to one
        iou = metrics.iou_matrix(confusion)
        best = max(sum(iou[i, c] for i, c in enumerate(order)) for order in itertools.permutations(range(size)))
        assert sum(iou[i, c] for i, c in enumerate(found)) == pytest.approx(best, abs=1e-12)


def test_hungarian_matching_moves_background_too_and_weighs_iou_rather_than_pixels():
    # Id 0 has most pixels of class 1 and the reverse: background is matched like every other id.
    assert metrics.match_clusters(np.array([[5, 90, 0], [80, 3, 0], [0, 0, 7]])).tolist() == [1, 0, 2]
    # Counts would give 0 -> 0 (1000 + 0 pixels); IoU gives 0 -> 1: 100/1100 + 900/1900 > 1000/2000 + 0.
    assert metrics.match_clusters(np.array([[1000, 100], [900, 0]])).tolist() == [1, 0]


def test_majority_vote():
    confusion = np.array([[60, 10, 10, 0],    # background
                          [0, 30, 0, 0],      # a class may be taken twice
                          [0, 30, 1, 0],
                          [0, 20, 20, 0],     # 20/90 of class 1, 20/51 of class 2: IoU, not pixels
                          [0, 0, 0, 0],       # no pixels: the lowest class
                          [40, 0, 0, 0]])
    assert metrics.match_clusters(confusion).tolist() == [0, 1, 1, 2, 0, 0]
    tie = np.array([[4, 2, 2], [0, 2, 2]])    # the same IoU with classes 1 and 2
    assert metrics.match_clusters(tie).tolist() == [0, 1]
    assert metrics.remap_to_classes(confusion, metrics.match_clusters(confusion)).tolist() == [
        [100, 10, 10, 0], [0, 60, 1, 0], [0, 20, 20, 0], [0, 0, 0, 0]]


def test_what_never_occurs_counts_as_0_in_the_mean():
    confusion = np.array([[30, 10, 0], [0, 20, 0], [0, 0, 0]])
    assert metrics.class_iou(confusion).tolist() == [30 / 40, 20 / 30, 0]
    assert metrics.class_iou(confusion).mean() == pytest.approx((3 / 4 + 2 / 3) / 3, abs=1e-15)
    assert not metrics.iou_matrix(np.zeros((3, 4), np.int64)).any()


# Accuracy, NMI and ARI


@pytest.mark.parametrize('ids, classes', [(5, 5), (3, 7), (8, 4), (21, 21)])
def test_measures_equal_scikit_learns_on_pixels(ids, classes):
    rng = np.random.default_rng(ids)
    truth = rng.integers(0, classes, 3000)
    predicted = np.where(rng.random(3000) < 0.6, truth % ids, rng.integers(0, ids, 3000))
    confusion = np.zeros((ids, classes), np.int64)
    np.add.at(confusion, (predicted, truth), 1)
    assert metrics.normalised_mutual_information(confusion) == pytest.approx(
        normalized_mutual_info_score(truth, predicted), abs=1e-12)
    assert metrics.adjusted_rand_index(confusion) == pytest.approx(adjusted_rand_score(truth, predicted), abs=1e-12)
    classes_of = metrics.match_clusters(confusion)
    assert metrics.accuracy(metrics.remap_to_classes(confusion, classes_of)) == pytest.approx(
        accuracy_score(truth, classes_of[predicted]), abs=1e-15)


@pytest.mark.parametrize('confusion', [[[9, 0], [0, 0]], [[5, 4], [0, 0]], [[5, 0], [4, 0]], [[5, 0], [0, 4]], [[1, 0], [0, 1]],
                                       [[2, 3], [3, 2]], [[1, 1], [1, 1]], [[1, 0], [0, 0]]])
def test_measures_of_extreme_partitions(confusion):
    confusion = np.array(confusion)
    predicted, truth = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
    assert metrics.normalised_mutual_information(confusion) == pytest.approx(
        normalized_mutual_info_score(truth, predicted), abs=1e-12)
    assert metrics.adjusted_rand_index(confusion) == pytest.approx(adjusted_rand_score(truth, predicted), abs=1e-12)


def test_a_split_without_valid_pixels_has_finite_scores():
    nothing = np.zeros((3, 3), np.int64)
    values = [metrics.accuracy(nothing), metrics.normalised_mutual_information(nothing), metrics.adjusted_rand_index(nothing)]
    assert np.isfinite(values).all() and metrics.class_iou(nothing).tolist() == [0, 0, 0]


def test_rand_index_of_counts_whose_products_pass_64_bits():
    small = np.array([[7, 1, 0], [2, 5, 1], [0, 3, 9]])
    huge = metrics.adjusted_rand_index(small * 10 ** 9)
    # For counts this large n(n-1)/2 is n^2/2, and the common factor cancels.
    both, rows, columns, every = (float((x.astype(float) ** 2).sum())
                                  for x in (small, small.sum(1), small.sum(0), small.sum(keepdims=True)))
    expected = rows * columns / every
    assert huge == pytest.approx((both - expected) / ((rows + columns) / 2 - expected), rel=1e-8)
    assert metrics.adjusted_rand_index(np.diag([10 ** 9] * 21)) == pytest.approx(1, abs=1e-12)


def test_rand_index_is_the_share_of_agreeing_pairs_adjusted_for_chance():
    """By definition, over all pairs of 60 pixels: (index - expected) / (maximum - expected) for pairs together in both."""
    rng = random.Random(0)
    pixels = [(rng.randrange(3), rng.randrange(4)) for _ in range(60)]
    pairs = list(itertools.combinations(pixels, 2))
    both, first, second = (sum(same(a, b) for a, b in pairs) for same in (
        lambda a, b: a == b, lambda a, b: a[0] == b[0], lambda a, b: a[1] == b[1]))
    expected = first * second / len(pairs)
    confusion = np.zeros((3, 4), np.int64)
    for i, c in pixels:
        confusion[i, c] += 1
    assert metrics.adjusted_rand_index(confusion) == pytest.approx((both - expected) / ((first + second) / 2 - expected))
