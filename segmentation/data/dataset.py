"""One dataset class for the folder layout of PASCAL VOC with saliency masks."""
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data import files
from data.decoded_cache import DecodedCache
from data.decoding import MAX_PIXELS, read_image, read_labels, read_mask
from data.download import fetch_voc
from data.files import IMAGE, LABEL, MASK
from data.instances import read_instances
from data.label_colours import VOC_TABLE
from data.label_space import VOC, VOID, colour_table, is_described, label_space, object_values
from data.synthetic_shapes import draw_shapes
from utils.errors import UserError, nearest_name

log = logging.getLogger('maskcontrast')


def dataset_folder(db_root: str | Path, name: str) -> Path:
    """The folder `<db_root>/<name>`, made first if needed: `VOCSegmentation` is downloaded, `Shapes` is drawn.

    Raises `UserError` if it does not exist and is not one of these two.
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
    near = nearest_name(name, [VOC, 'Shapes', *(path.name for path in Path(db_root).glob('*/'))])
    raise UserError(f'{folder}: this data set does not exist{f" (nearest: {near})" if near else ""}: correct its name in '
                    'the experiment or db_root in env.yml, or make the folder (images/, sets/, classes.txt and masks or '
                    'labels; see docs/data-sets.md)')


class SegmentationDataset:
    """Images of one split, with saliency masks, with labels, or with both.

    folder: the data set's folder. split: `sets/<split>.txt` lists the ids.
    saliency: masks come from `saliency_<saliency>/`; None for no masks. instances: masks are those of single objects, and come
    from `instances_<saliency>/` instead. labels: whether to read labels, which are in
    `SegmentationClassAug/` for the split trainaug and in `SegmentationClass/` for every other; None: if that folder is there.
    ignored: class indices that become void in the labels.
    drop_missing: leave out the ids that lack their image or mask (pre-training), instead of failing when they are read.
    cache: a folder for decoded files, for callers that read images more than once, or None.
    max_pixels: of one image; a larger one is an error.

    Item i is a dict: `id`; `image`, H x W x 3 uint8 RGB; with masks `saliency`, H x W uint8, 1 = object, and `mask_marks`, the
    bits THRESHOLDED and LOSSY of `read_mask`, where there are any; with instances `instances`, H x W int32 as `read_instances`
    has them, whose objects together are `saliency`; with labels `labels`, H x W uint8, class indices and VOID as
    `data.label_space` has them, resized to the image if their size differs.
    Raises `UserError` for missing folders, and for a split that is empty or has no image; `Fault`, as `data.files` has it,
    for a file.
    """

    def __init__(self, folder: str | Path, split: str, saliency: str | None = None, labels: bool | None = False,
                 drop_missing: bool = False, ignored: Iterable[int] = (), cache: str | Path | None = None,
                 max_pixels: int = MAX_PIXELS, instances: bool = False):
        self.folder, self.split, self.instances = Path(folder), split, instances
        self.images = self.folder / 'images'
        self.masks = self.folder / f'{"instances" if instances else "saliency"}_{saliency}' if saliency else None
        labels_name = 'SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass'
        if labels is None:
            labels = (self.folder / labels_name).is_dir()
        self.labels = self.folder / labels_name if labels else None
        for part in (self.images, self.masks, self.labels):
            if part and not part.is_dir():
                raise files.missing_folder(part)
        self.ignored, self.max_pixels = list(ignored), max_pixels
        self.cache = DecodedCache(cache) if cache else None
        self.split_file = self.folder / 'sets' / f'{split}.txt'
        self.ids = listed = files.read_ids(self.split_file)
        self.first_dropped: str | None = None
        if drop_missing:
            images, masks = (files.present(folder, listed, part) if folder else set(listed)
                             for folder, part in ((self.images, IMAGE), (self.masks, MASK)))
            self.ids = [name for name in listed if name in images and name in masks]
            self.first_dropped = next((name for name in listed if name not in images or name not in masks), None)
        self.dropped = len(listed) - len(self.ids)
        if not self.ids or not any(files.is_there(self.path_of(IMAGE, name)) for name in self.ids):
            raise files.no_image(self.split_file, listed, self.images, self.masks)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int):
        name = self.ids[index]
        image_path = self.path_of(IMAGE, name)
        sample: dict[str, Any] = {'id': name, 'image': self.read(IMAGE, image_path)}
        size = sample['image'].shape[:2]
        if self.masks:
            path = self.path_of(MASK, name)
            mask = self.read(MASK, path)
            files.check_size(MASK, path, mask, image_path, sample['image'])
            if self.instances:
                sample['instances'], mask = mask, (mask > 0).view(np.uint8)
            marks = int(mask[0, 0]) & ~1
            if marks:
                mask, sample['mask_marks'] = mask & 1, marks
            sample['saliency'] = mask
        if self.labels:
            path = self.path_of(LABEL, name)
            labels = self._lookup[self.read(LABEL, path)]
            if labels.shape != size:
                files.check_size(LABEL, path, labels, image_path, sample['image'])
                labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
            sample['labels'] = labels
        return sample

    def path_of(self, part: str, name: str) -> Path:
        """The file of an id. part: IMAGE, MASK or LABEL, of those that the data set has."""
        return files.find(self.folder_of(part), name, part)

    def read(self, part: str, path: Path) -> np.ndarray:
        """An image, H x W x 3, a mask as `read_mask` or `read_instances` has it, or labels as stored. Raises `Fault`."""
        decode, kind = self._decoders[part]
        cached = functools.partial(self.cache.read, decode, kind=kind) if self.cache else decode
        return files.read(part, cached, path, self.folder_of(part))

    def folder_of(self, part: str) -> Path:
        """The folder of a part's files."""
        folder = {IMAGE: self.images, MASK: self.masks, LABEL: self.labels}[part]
        assert folder is not None
        return folder

    def why_dropped(self) -> str:
        """The missing file of the first id that was left out, in words."""
        name = self.first_dropped
        assert name is not None  # callers ask if `dropped` is above 0
        part = next((part for part in (IMAGE, MASK) if not files.is_there(self.path_of(part, name))), IMAGE)
        path = self.path_of(part, name)
        return f'{path} does not exist{files.nearest(path, self.folder_of(part))}'

    def check_description(self) -> None:
        """Raise `UserError` if the data set's own settings, which are read with the first item, are invalid."""
        if self.masks and not self.instances:
            object_values(self.folder)

    @functools.cached_property
    def _decoders(self) -> dict[str, tuple[Callable[[Path], np.ndarray], str]]:
        """For each part a function of its path, and what the function is called in the cache, with all that its result depends
        on."""
        values = object_values(self.folder) if self.masks and not self.instances else None
        colours = colour_table(self.folder) if self.labels else VOC_TABLE
        limit = self.max_pixels
        masks = (functools.partial(read_instances, limit=limit), read_instances.__name__) if self.instances else (
            functools.partial(read_mask, object_values=values, limit=limit), f'{read_mask.__name__} {values}')
        return {IMAGE: (functools.partial(read_image, limit=limit), read_image.__name__), MASK: masks,
                LABEL: (functools.partial(read_labels, colours=colours, limit=limit), f'{read_labels.__name__} {colours}')}

    @functools.cached_property
    def _lookup(self):
        """The class index of each stored value, VOID for void: 256 uint8."""
        lookup = label_space(self.folder).lookup if is_described(self.folder) else np.arange(256, dtype=np.uint8)
        return np.where(np.isin(lookup, self.ignored), np.uint8(VOID), lookup)
