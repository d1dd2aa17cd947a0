"""Images with a label map each, from the predictions of a run or from a data set, and the names of their values.

Axis legend: H W space.
"""
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import SegmentationDataset
from data.decoding import is_plain_jpeg, read_image, read_labels, read_photograph
from data.files import IMAGE, LABEL, size_text
from data.instances import read_instances
from data.label_colours import INDICES, ColourTable
from data.label_space import VOID, LabelSpace, label_space
from data.new_data_set import encode_jpeg
from utils.errors import UserError

UNKNOWN = -1
OF_PREDICTIONS = ColourTable({}, INDICES)


@dataclass(frozen=True)
class Categories:
    """names: by number, from 1. lookup: 256 int16, the category of each stored value: 0 is background, VOID void, UNKNOWN for
    invalid values."""
    names: Mapping[int, str]
    lookup: np.ndarray


def class_categories(space: LabelSpace) -> Categories:
    """The classes of a data set as categories of class indices.

    A class has its index as number; if the first class is not background, its index plus 1, since 0 is background."""
    numbers = {index: index + (space.background != 0) for index in space.objects}
    names = {number: space.names[index] for index, number in numbers.items()}
    of_index = np.full(256, UNKNOWN, np.int16)
    of_index[list(numbers)] = list(numbers.values())
    of_index[VOID] = VOID
    if space.background is not None:
        of_index[space.background] = 0
    return Categories(names, of_index)


def cluster_categories(names: Mapping[int, str], clusters: int, named_only: bool = False) -> Categories:
    """Clusters, numbered from 1, as categories. Those with the same name count as the first of them.

    names: by cluster. named_only: whether clusters without a name are void. Raises `UserError` if none has a name in that
    case."""
    first: dict[str, int] = {}
    lookup, called = np.full(256, UNKNOWN, np.int16), dict[int, str]()
    lookup[[0, VOID]] = 0, VOID
    for cluster in range(1, clusters + 1):
        if named_only and cluster not in names:
            lookup[cluster] = VOID
            continue
        number = first.setdefault(names[cluster], cluster) if cluster in names else cluster
        lookup[cluster] = number
        called[number] = names.get(cluster, f'cluster {cluster}')
    if not called:
        raise UserError('--named_only: no cluster has a name: name them in clusters.html first')
    return Categories(called, lookup)


class LabelledImages:
    """what: a description for messages. files: the image of each id. root: the folder to which file names are relative. labels:
    the folder of the label maps, <id>.png. instances: that of instance maps, or None. shown: whether label maps are of the
    images as viewers show them, and not as stored. values: gives the values of an id's label map, H x W uint8; None: they are
    the indices in its file.

    Raises `UserError` if there is no image.
    """

    def __init__(self, what: str, files: Mapping[str, Path], root: Path, labels: Path, categories: Categories,
                 instances: Path | None, shown: bool = False, values: Callable[[str], np.ndarray] | None = None):
        self.what, self.files, self.root, self.labels = what, files, root, labels
        self.categories, self.instances, self.shown, self.values = categories, instances, shown, values
        self.ids = list(files)
        if not self.ids:
            raise UserError(f'{labels}: this folder contains no labels')

    def __len__(self):
        return len(self.ids)

    def file_name(self, image_id: str) -> str:
        """The path of an image below `root`."""
        return self.files[image_id].relative_to(self.root).as_posix()

    def jpeg(self, image_id: str) -> tuple[bytes, tuple[int, ...]]:
        """An image as the bytes of a JPEG, whose pixels the labels are of, and its height and width."""
        path = self.files[image_id]
        pixels = read_photograph(path) if self.shown else read_image(path)
        content = encode_jpeg(pixels, path) if self.shown and not is_plain_jpeg(path) else path.read_bytes()
        return content, pixels.shape[:2]

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The categories of an image's pixels, H x W uint8 (0 background, VOID void), and its instances, H x W int32, or None.

        Raises `UserError` for a file that is missing or damaged, of another size, or with a value that is not a category."""
        path = self.labels / f'{image_id}.png'
        stored = self.values(image_id) if self.values else read_labels(path, OF_PREDICTIONS)
        labels = self.categories.lookup[stored]
        if labels.min(initial=0) < 0:
            raise UserError(f'{path} holds the value {stored[labels < 0][0]}, which is not a class or cluster: make it again')
        instances = None
        if self.instances:
            instances = read_instances(self.instances / f'{image_id}.png')
            if instances.shape != labels.shape:
                raise UserError(f'{self.instances / image_id}.png is {size_text(instances)}, but {path} is '
                                f'{size_text(labels)}: make one of them again')
        return labels.astype(np.uint8), instances


def labels_of_data_set(folder: Path, split: str, instances: str | None) -> LabelledImages:
    """The label maps of a split. instances: the name of the masks whose instance maps tell objects apart, or None.

    Raises `UserError` if a list or folder is missing."""
    dataset = SegmentationDataset(folder, split, labels=True)
    index = {name: number for number, name in enumerate(dataset.ids)}
    files = {name: dataset.path_of(IMAGE, name) for name in index}
    return LabelledImages(f'classes of {folder.name}, {split}', files, dataset.images, dataset.folder_of(LABEL),
                          class_categories(label_space(folder)), instance_folder(folder, instances),
                          values=lambda name: dataset[index[name]]['labels'])


def instance_folder(data_set: Path, name: str | None, required: bool = True) -> Path | None:
    """The instance maps of a data set, None without a name. Raises `UserError` if these are `required` and missing."""
    if name is None:
        return None
    folder = data_set / f'instances_{name}'
    if os.path.isdir(folder):
        return folder
    if required:
        there = ', '.join(sorted(path.name.removeprefix('instances_') for path in data_set.glob('instances_*'))) or 'none'
        raise UserError(f'{folder} is missing: --instances names the masks with objects (available: {there})')
    return None
