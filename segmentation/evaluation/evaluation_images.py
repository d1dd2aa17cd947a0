"""Images as the evaluations read them: resized to the network's input, with labels at their own size (paper section 4)."""
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from data.contents import Contents
from data.dataset import SegmentationDataset
from data.files import LABEL
from data.image_folder import ImageFolder
from data.label_space import VOID
from evaluation.metrics import check_labels


class EvaluationImages(torch.utils.data.Dataset):
    """The images of a `SegmentationDataset` or an `ImageFolder` at one resolution, in the order of its ids.

    resolution: (height, width) of the network's input. Items have `id`; `image`, 3-channel uint8 tensor at `resolution`
    (OpenCV bicubic, aspect not kept); `size`, the (height, width) of the image itself; `contents`, a `Contents`; and, where
    the data set reads them, `labels` (uint8 array at the image's own size), `saliency` (uint8 array at `resolution`, OpenCV
    nearest, 1 = object), and `instances` (int32 in the same way, 1 to n = objects) with `objects`, n.
    classes: how many there are. Raises `UserError` for unreadable files, and for labels that name no class.
    """

    def __init__(self, dataset: SegmentationDataset | ImageFolder, resolution: Sequence[int], classes: int):
        self.dataset, self.resolution, self.classes = dataset, tuple(resolution), classes

    @property
    def item_bytes(self) -> int:
        """Of an item's tensor, the image; labels travel in another way."""
        return 3 * math.prod(self.resolution)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        seen = Contents.of(sample)
        item = {'id': sample['id'], 'size': sample['image'].shape[:2], 'contents': seen,
                'image': torch.from_numpy(resize_image(sample['image'], self.resolution))}
        if 'labels' in sample:
            assert isinstance(self.dataset, SegmentationDataset) and seen.labels is not None
            if seen.labels[self.classes:VOID].any():
                check_labels(sample['labels'], self.classes, self.dataset.path_of(LABEL, sample['id']))
            item['labels'] = sample['labels']
        if 'saliency' in sample:
            item['saliency'] = resize_labels(sample['saliency'], self.resolution)
        if 'instances' in sample:
            item['instances'] = resize_labels(sample['instances'], self.resolution)
            item['objects'] = int(sample['instances'].max())
        return item


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """H x W x 3 uint8 -> (height, width) = size, OpenCV bicubic."""
    return cv2.resize(image, tuple(size[::-1]), interpolation=cv2.INTER_CUBIC)


def resize_labels(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """H x W uint8 or int32 -> (height, width) = size, OpenCV nearest, which takes source pixel floor(x * source / target)."""
    return cv2.resize(labels, tuple(size[::-1]), interpolation=cv2.INTER_NEAREST)
