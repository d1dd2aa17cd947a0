"""Pairs of views. All randomness follows from (seed, epoch, image id)."""
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from contrastive.augmentations import render, sample_view, without
from data.contents import Contents
from data.dataset import SegmentationDataset
from data.files import empty_masks
from data.loaders import item_rng
from utils.errors import UserError

TRIES = 3            # per image, before another takes its place
REPLACEMENTS = 50    # then the fault is in the data set, not in the crop
COVER = (0.01, 0.99)  # exclusive bounds of the object's share of a view


class ViewPairs(torch.utils.data.Dataset):
    """The key and the query view of one image (paper section 3).

    dataset: a `SegmentationDataset`; with instances the object of a pair is one of the image's, drawn anew for each pair and
    the same in both views; without saliency the whole image is the object, and views are never redrawn. seed: of the run. size:
    of a view. mask_stride: masks are taken at every nth pixel (the network's stride without `upsample`), before their cover is
    tested.
    skip_unreadable: another image replaces one that can't be read, which `skipped` then names.
    left_out: names of AUGMENTATIONS that the views do without.

    Item (epoch, index) is a dict: `query`, `key` (size x size x 3 uint8 tensors, RGB), `query_mask`, `key_mask` (uint8, 1 =
    object), `object_pixels` (how many of the query mask's are), `id` of the image, `skipped` (lines about skipped files),
    `contents` (a `Contents` of what was read for it). It depends on nothing else, neither on the worker nor on what was drawn
    before.
    Raises `UserError` if no view of 50 other images passes, or a file is unreadable.
    """

    def __init__(self, dataset: SegmentationDataset, seed: int, size: int, mask_stride: int = 1, skip_unreadable: bool = False,
                 left_out: Collection[str] = ()):
        self.dataset, self.seed, self.size, self.left_out = dataset, seed, size, left_out
        self.mask_stride, self.skip_unreadable = mask_stride, skip_unreadable

    @property
    def item_bytes(self) -> int:
        """Of an item's tensors: two images and two masks."""
        return 2 * (3 * self.size ** 2 + (-(-self.size // self.mask_stride)) ** 2)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        name = self.dataset.ids[index]
        rng = item_rng(self.seed, epoch, name)
        skipped, seen, tries = [], Contents(), TRIES
        for _ in range(REPLACEMENTS + 1):
            try:
                sample = self.dataset[index]
            except UserError as error:
                if not self.skip_unreadable:
                    raise
                skipped.append(error.line())
                tries = 0
            else:
                seen.add(Contents.of(sample))
            for _ in range(tries):
                mask = self._object(rng, sample)
                pair = [self._view(rng, sample['image'], mask) for _ in range(2)]
                if all(self._passes(mask) for _, mask in pair):
                    return {**self._item(sample['id'], pair), 'skipped': skipped, 'contents': seen}
            index, tries = int(rng.integers(len(self.dataset))), 1  # a replacement gets one try
        raise UserError(self._no_view_passes(seen, skipped))

    @staticmethod
    def _object(rng: np.random.Generator, sample: Mapping[str, Any]) -> np.ndarray:
        """The mask of a pair: H x W uint8, 1 = object."""
        if 'instances' in sample:
            instances = sample['instances']
            return (instances == rng.integers(1, max(instances.max(), 1), endpoint=True)).view(np.uint8)
        return sample['saliency'] if 'saliency' in sample else np.ones(sample['image'].shape[:2], np.uint8)

    def _view(self, rng: np.random.Generator, image: np.ndarray, mask: np.ndarray):
        size = mask.shape
        image, mask = render(image, mask, without(sample_view(rng, *size), self.left_out, *size), self.size)
        return image, np.ascontiguousarray(mask[::self.mask_stride, ::self.mask_stride])

    def _passes(self, mask: np.ndarray):
        return self.dataset.masks is None or COVER[0] < cv2.countNonZero(mask) / mask.size < COVER[1]

    @staticmethod
    def _item(name: str, pair: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        (key, key_mask), (query, query_mask) = pair
        item = {'query': query, 'key': key, 'query_mask': query_mask, 'key_mask': key_mask}
        return {**{part: torch.from_numpy(array) for part, array in item.items()},
                'object_pixels': cv2.countNonZero(query_mask), 'id': name}

    def _no_view_passes(self, seen: Contents, skipped: list[str]):
        if not seen.images:
            return f'{len(skipped)} images in a row could not be read, beginning with: {skipped[0]}'
        masks = self.dataset.masks
        assert masks is not None
        words = 'objects are numbered from 1' if self.dataset.instances else empty_masks(masks, sorted(seen.masks))
        return (f'{masks}: no view of {REPLACEMENTS} images in a row has a mask that covers more than 1% and less than 99% of '
                f'it ({words})')
