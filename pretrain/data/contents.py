"""A summary of the data that a run read, and warnings: empty masks, absent classes, labels that are all void."""
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from data import files
from data.dataset import SegmentationDataset
from data.decoding import HALF, LOSSY, THRESHOLDED
from data.label_space import VOID, LabelSpace
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

SHOWN = 12  # values, and names of classes, at most


@dataclass
class Contents:
    """Summary of some items of a data set. Sets of ids: `images`; `masks`, and those of them that are `empty`, that were
    `thresholded` as JPEGs, and that are `lossy`, holding other values besides. labels: 256 int64, pixels of each class index
    and of VOID, or None without labels."""
    images: set[str] = field(default_factory=set)
    masks: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    thresholded: set[str] = field(default_factory=set)
    lossy: set[str] = field(default_factory=set)
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> Contents:
        """Of an item of a `SegmentationDataset` or an `ImageFolder`."""
        name, marks = sample['id'], sample.get('mask_marks', 0)
        result = cls({name})
        if 'saliency' in sample:
            result.add_mask(name, not cv2.countNonZero(sample['saliency']))
        if marks & THRESHOLDED:
            result.thresholded.add(name)
        if marks & LOSSY:
            result.lossy.add(name)
        if 'labels' in sample:
            result.labels = cv2.calcHist([sample['labels']], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        return result

    def add_mask(self, name: str, empty: bool) -> None:
        """Count the mask of an image, given or predicted."""
        self.masks.add(name)
        if empty:
            self.empty.add(name)

    def add(self, other: Contents) -> None:
        """Count what `other` has seen, too. The labels of an image that both have seen count twice."""
        for mine, others in ((self.images, other.images), (self.masks, other.masks), (self.empty, other.empty),
                             (self.thresholded, other.thresholded), (self.lossy, other.lossy)):
            mine |= others
        if other.labels is not None:
            self.labels = other.labels + (0 if self.labels is None else self.labels)

    def line(self, predicted: bool = False) -> str:
        """In words: images, masks, empty ones, label values, share of void. predicted: whether the masks are the network's."""
        text = f'{len(self.images)} images'
        if self.masks:
            text += f', {len(self.masks)} {"predicted " if predicted else ""}masks ({len(self.empty)} empty)'
        if self.labels is not None:
            values = [str(value) for value in np.flatnonzero(self.labels[:VOID])]
            shown = ', '.join(values[:SHOWN]) + (f', ... {values[-1]}' if len(values) > SHOWN else '')
            share = 100 * self.labels[VOID] / max(self.labels.sum(), 1)
            text += f', labels {shown or "of no class"}; {share:.3g}% of the pixels void'
        return text


def merged(parts: Iterable[Contents | None]) -> Contents:
    """All of them together."""
    result = Contents()
    for part in parts:
        if part is not None:
            result.add(part)
    return result


def report(seen: Contents, dataset: SegmentationDataset, name: str, space: LabelSpace | None = None, predicted: bool = False,
           ignored: Iterable[int] = ()) -> None:
    """Log the summary of a split, and warn of anything unusual. name: what the log calls the split. predicted: whether the
    masks are the network's. ignored: classes that were made void.

    Raises `UserError` if all masks are empty, or all pixels of the labels are void.
    """
    log.info('%s: %s', name, seen.line(predicted))
    if seen.thresholded:
        log.warning('%s: %d masks are JPEGs, which are not lossless: values of %d or more count as object', dataset.masks,
                    len(seen.thresholded), HALF)
    if seen.lossy:
        log.warning('%s: %d masks, for example of %s, hold values other than 0 (background) and %s (object), which count as '
                    'background', dataset.masks, len(seen.lossy), min(seen.lossy), files.object_text(dataset.folder))
    if seen.masks and seen.empty == seen.masks:
        raise UserError(all_empty(dataset, seen.masks, predicted))
    if seen.labels is not None and space is not None:
        if not seen.labels[:VOID].any():
            raise UserError(no_label(dataset))
        absent = absent_classes(seen.labels, space, ignored)
        if absent:
            shown = ', '.join(absent[:SHOWN]) + (f' and {len(absent) - SHOWN} others' if len(absent) > SHOWN else '')
            log.warning('%s: no pixel in the labels of %s has the class %s', dataset.labels, dataset.split, shown)


def all_empty(dataset: SegmentationDataset, names: Iterable[str], predicted: bool) -> str:
    """The message if all masks of a split are empty. names: ids of these masks. predicted: as for `report`."""
    if predicted:
        return (f'{dataset.split_file}: the network predicts no object in any image of {dataset.split}, so there is '
                'nothing to cluster or to retrieve: these weights have not learnt masks: train longer and check the '
                'saliency loss in metrics.jsonl, or name masks of the data set as saliency in the experiment file')
    assert dataset.masks is not None
    if dataset.instances:
        return f'{dataset.masks}: no file of {dataset.split} has any object: these must be numbered from 1'
    return f'{dataset.masks}: no mask of {dataset.split} has any object: {files.empty_masks(dataset.masks, sorted(names))}'


def no_label(dataset: SegmentationDataset) -> str:
    """The message if all labels of a split are void."""
    return (f'{dataset.labels}: no labelled pixel in {dataset.split}: every pixel of its labels is void, so there is nothing '
            'to train on or score: correct the files, or describe the labels in dataset.yml')


def absent_classes(labels: np.ndarray, space: LabelSpace, ignored: Iterable[int] = ()) -> list[str]:
    """Names of the classes of which there is no pixel. labels: 256 counts."""
    left_out = set(ignored)
    return [name for index, name in enumerate(space.names) if not labels[index] and index not in left_out]
