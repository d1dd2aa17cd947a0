"""The linear classifier's training views (paper section 4). All randomness follows from (seed, epoch, image id).

Random draws and pixel operations are separate: `sample_view` draws a view's parameters, `render` applies them.
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from data.contents import Contents
from data.dataset import SegmentationDataset
from data.files import LABEL
from data.label_space import VOID, LabelSpace
from data.loaders import item_rng
from evaluation.evaluation_images import resize_image, resize_labels
from evaluation.metrics import check_labels
from evaluation.visualization.pictures import overlay
from utils.errors import UserError

P_FLIP = 0.5
DEGREES = (-5, 5)
SCALE = (0.75, 1.25)
REPLACEMENTS = 50  # of unreadable images in a row: then the data set is at fault


@dataclass(frozen=True)
class View:
    """degrees: counter-clockwise. scale: above 1 enlarges."""
    flip: bool
    degrees: float
    scale: float


def sample_view(rng: np.random.Generator) -> View:
    """Draw a view from a numpy Generator."""
    return View(bool(rng.random() < P_FLIP), rng.uniform(*DEGREES), rng.uniform(*SCALE))


def render(image: np.ndarray, labels: np.ndarray, view: View, size: Sequence[int],
           outside: int) -> tuple[np.ndarray, np.ndarray]:
    """The view's pixels: image (H x W x 3 uint8) and labels (H x W uint8) at (height, width) = size.

    Flipped first, then turned and scaled about (w/2, h/2) on the same canvas. Uncovered pixels are black, and labelled
    `outside`: background, as published.
    """
    if view.flip:
        image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
    height, width = labels.shape
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), view.degrees, view.scale)
    image = cv2.warpAffine(image, warp, (width, height), flags=cv2.INTER_CUBIC)
    labels = cv2.warpAffine(labels, warp, (width, height), flags=cv2.INTER_NEAREST, borderValue=outside)
    return resize_image(image, size), resize_labels(labels, size)


class TrainingViews(torch.utils.data.Dataset):
    """One view of each image, different in each epoch.

    dataset: a `SegmentationDataset` with labels. space: what they mean. resolution: (height, width) of a view.
    skip_unreadable: another image replaces one that can't be read, which `skipped` then names.

    Item (epoch, index) is a dict: `image` (H x W x 3 uint8 tensor, RGB), `labels` (H x W uint8 tensor, void as VOID), `id`,
    `skipped` (lines about skipped files), `contents` (a `Contents` of the image).
    Raises `UserError` for unreadable files, and for labels that name no class.
    """

    def __init__(self, dataset: SegmentationDataset, space: LabelSpace, seed: int, resolution: Sequence[int],
                 skip_unreadable: bool = False):
        self.dataset, self.space, self.seed = dataset, space, seed
        self.resolution, self.skip_unreadable = tuple(resolution), skip_unreadable

    @property
    def item_bytes(self) -> int:
        """Of an item's tensors: image and labels."""
        return 4 * math.prod(self.resolution)

    def __len__(self):
        return len(self.dataset)

    def view(self, rng: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A random view of an image and its labels, as `render` gives it."""
        return render(image, labels, sample_view(rng), self.resolution, self.space.outside)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        repeat, index = divmod(index, len(self.dataset))
        rng = item_rng(self.seed, epoch, self.dataset.ids[index] + '#' * repeat)
        skipped: list[str] = []
        while len(skipped) <= REPLACEMENTS:
            try:
                sample, seen = self._read(index)
            except UserError as error:
                if not self.skip_unreadable:
                    raise
                skipped.append(error.line())
                index = int(rng.integers(len(self.dataset)))
            else:
                image, labels = self.view(rng, sample['image'], sample['labels'])
                return {'image': torch.from_numpy(image), 'labels': torch.from_numpy(labels), 'id': sample['id'],
                        'skipped': skipped, 'contents': seen}
        raise UserError(f'{len(skipped)} images in a row could not be used, beginning with: {skipped[0]}')

    def _read(self, index: int):
        sample = self.dataset[index]
        seen = Contents.of(sample)
        if seen.labels is not None and seen.labels[len(self.space):VOID].any():
            check_labels(sample['labels'], len(self.space), self.dataset.path_of(LABEL, sample['id']))
        return sample, seen


def view_figure(space: LabelSpace, batch: Mapping[str, Any], views: int = 4) -> np.ndarray:
    """A picture of the first views: each image, and its labels over it. rows x columns x 3 uint8."""
    pairs = zip(batch['image'][:views].numpy(), batch['labels'][:views].numpy(), strict=True)
    return np.concatenate([np.concatenate([image, overlay(image, labels, space)], axis=1) for image, labels in pairs])
