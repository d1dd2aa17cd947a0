"""One dataset class for the folder layout of PASCAL VOC with saliency masks."""
import functools
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from data.decoded_cache import DecodedCache
from data.decoding import read_image, read_labels, read_saliency
from data.download import fetch_voc
from data.label_space import VOC, VOID, is_described, label_space, read_text
from data.synthetic_shapes import draw_shapes
from utils.errors import UserError

log = logging.getLogger('maskcontrast')


def dataset_folder(db_root: str | Path, name: str) -> Path:
    """The folder `<db_root>/<name>`, made first if need be: `VOCSegmentation` is downloaded, `Shapes` is drawn.

    Raises `UserError` when it is neither there nor one of these two.
    """
    folder = Path(db_root) / name
    if folder.is_dir():
        return folder
    if name == VOC:
        return Path(fetch_voc(db_root))
    if name == 'Shapes':
        log.info('Drawing the Shapes data set in %s', folder)
        draw_shapes(folder)
        return folder
    raise UserError(f'{folder}: there is no such data set: make this folder (images/, sets/, classes.txt and masks or '
                    'labels; see docs/data-sets.md), or correct db_root in env.yml')


class SegmentationDataset:
    """Images of one split, with saliency masks, with labels, or with both.

    folder: the data set's folder. split: `sets/<split>.txt` lists the ids.
    saliency: masks come from `saliency_<saliency>/`; None for no masks. labels: whether to read labels, which are in
    `SegmentationClassAug/` for the split trainaug and in `SegmentationClass/` for every other; None: if that folder is there.
    ignored: class indices that become void in the labels.
    drop_missing: leave out the ids that lack their image or mask (pre-training), instead of failing when they are read.
    cache: a folder in which decoded files are kept, for those who read images more than once, or None.

    Item i is a dict: `id`; `image`, H x W x 3 uint8 RGB; with masks `saliency`, H x W uint8, 1 = object; with labels
    `labels`, H x W uint8, class indices and VOID as `data.label_space` has them, resized to the image if their size differs.
    Raises `UserError` for missing folders, files and an empty split.
    """

    def __init__(self, folder: str | Path, split: str, saliency: str | None = None, labels: bool | None = False,
                 drop_missing: bool = False, ignored: Iterable[int] = (), cache: str | Path | None = None):
        self.folder = Path(folder)
        self.images = self.folder / 'images'
        self.masks = self.folder / f'saliency_{saliency}' if saliency else None
        labels_name = 'SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass'
        if labels is None:
            labels = (self.folder / labels_name).is_dir()
        self.labels = self.folder / labels_name if labels else None
        for part in (self.images, self.masks, self.labels):
            if part and not part.is_dir():
                raise UserError(f'{part}: the folder is missing from the data set')
        self.ignored = list(ignored)
        self.cache = DecodedCache(cache) if cache else None
        self.split_file = self.folder / 'sets' / f'{split}.txt'
        self.ids = [line.strip() for line in read_text(self.split_file).splitlines() if line.strip()]
        listed = len(self.ids)
        if drop_missing:
            self._drop_missing()
        self.dropped = listed - len(self.ids)
        if not self.ids:
            raise UserError(f'{self.split_file}: none of its {listed} ids has an image in {self.images}'
                            + (f' and a mask in {self.masks}' if self.masks else ''))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int):
        name = self.ids[index]
        sample = {'id': name, 'image': self._read(read_image, self.images / f'{name}.jpg')}
        size = sample['image'].shape[:2]
        if self.masks:
            path = self.masks / f'{name}.png'
            sample['saliency'] = self._read(read_saliency, path)
            if sample['saliency'].shape != size:
                raise UserError(f'{path} is {size_text(sample["saliency"])}, but its image is {size_text(sample["image"])}: '
                                'make the mask again at the size of the image')
        if self.labels:
            labels = self._lookup[self._read(read_labels, self.labels / f'{name}.png')]
            if labels.shape != size:
                labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
            sample['labels'] = labels
        return sample

    @functools.cached_property
    def _lookup(self):
        """The class index of each stored value, VOID for void: 256 uint8."""
        lookup = label_space(self.folder).lookup if is_described(self.folder) else np.arange(256, dtype=np.uint8)
        return np.where(np.isin(lookup, self.ignored), np.uint8(VOID), lookup)

    def _read(self, decode: Callable[[Path], np.ndarray], path: Path):
        return self.cache.read(decode, path) if self.cache else decode(path)

    def _drop_missing(self):
        images = _stems(self.images, '.jpg')
        masks = _stems(self.masks, '.png') if self.masks else images
        self.ids = [name for name in self.ids if name in images and name in masks]


def _stems(folder: Path, suffix: str):
    """Names of the files in `folder`, and in its sub-folders as `sub/name`, without `suffix`: one listing, no stat each."""
    found: set[str] = set()
    for root, _, files in os.walk(folder):
        prefix = os.path.relpath(root, folder).replace(os.sep, '/') + '/'
        found.update((prefix + file).removeprefix('./').removesuffix(suffix) for file in files if file.endswith(suffix))
    return found


def size_text(array: np.ndarray) -> str:
    """Width and height of an image, for messages."""
    return f'{array.shape[1]} x {array.shape[0]}'
