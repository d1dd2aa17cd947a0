"""The objects for clustering: the mask of each image, or with instances each of its objects separately.

Axes: M images, N objects, H W space.
"""
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from data.dataset import SegmentationDataset
from data.files import MASK
from data.instances import object_names
from utils.cli.progress import progress
from utils.errors import UserError


class ObjectMap(Protocol):
    """The object of each pixel of an image."""

    def array(self) -> np.ndarray:
        """H x W: 0 is background, 1 the object or 1 to n the objects."""


class Objects(Sequence[dict[str, Any]]):
    """The objects of a `SegmentationDataset`, counted through its images. Without instances each image has one, its mask.

    Item i is a dict: `id`, of the object; `image`, H x W x 3 uint8, the whole image; `saliency`, H x W uint8, 1 where the
    object is. counts: how many each image has; None: as its files say. maps: M `ObjectMap`s in place of the data set's files.
    ids: N names, those of the images, or with instances `<id>#1` and so on. image: N indices of images.
    """

    def __init__(self, dataset: SegmentationDataset, counts: Sequence[int] | None = None,
                 maps: Sequence[ObjectMap] | None = None):
        self.dataset, self._maps = dataset, maps
        if not dataset.instances:
            counts, self.ids = [1] * len(dataset), list(dataset.ids)
        else:
            counts = list(_counts(dataset)) if counts is None else counts
            self.ids = [name for image, count in zip(dataset.ids, counts, strict=True) for name in object_names(image, count)]
        self.image = np.repeat(np.arange(len(dataset)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(int)

    @property
    def unit(self) -> str:
        """What an item is: an image with its mask, or an object of one."""
        return 'object' if self.dataset.instances else 'image'

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override] # there are no slices of them
        image = int(self.image[index])
        sample = self.dataset[image]
        number = index - int(self._first[image]) + 1
        return {'id': self.ids[index], 'image': sample['image'],
                'saliency': (self._map(image, sample) == number).astype(np.uint8)}

    def of_image(self, index: int) -> slice:
        """Which objects image `index` has."""
        return slice(int(self._first[index]), int(self._first[index + 1]))

    def label_map(self, index: int, values: np.ndarray, sample: dict[str, Any] | None = None) -> np.ndarray:
        """Image `index` with a value in the pixels of each of its objects, 0 elsewhere: H x W uint8.

        values: of its objects, in their order. sample: the image's item of the data set, if available.
        Raises `UserError` if the file holds more objects than before.
        """
        lookup, numbers = np.array([0, *values], np.uint8), self._map(index, sample)
        if numbers.max(initial=0) >= len(lookup):
            raise UserError(f'the objects of the image {self.dataset.ids[index]} have changed: they were replaced during the '
                            'run; start again when the files no longer change')
        return lookup[numbers]

    def _map(self, image: int, sample: dict[str, Any] | None):
        if self._maps is not None:
            return self._maps[image].array()
        sample = self.dataset[image] if sample is None else sample
        return sample['instances' if self.dataset.instances else 'saliency']


def _counts(dataset: SegmentationDataset) -> Iterator[int]:
    for name in progress(dataset.ids, 'Counting objects'):
        yield int(dataset.read(MASK, dataset.path_of(MASK, name)).max(initial=0))
