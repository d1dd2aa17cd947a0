"""From photographs to images and masks of a data set."""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from data.decoding import is_plain_jpeg, read_image, read_photograph, read_saliency
from data.image_folder import ImageFolder
from data.instances import read_instances, write_instances
from data.new_data_set import encode_jpeg
from saliency.estimators import Estimator, ObjectFinder
from utils.errors import UserError
from utils.storage.atomic import atomic_file

OBJECT = 0.5  # pixels above this probability belong to an object
SMALLEST = 0.01  # share of the image: of a connected segment, and of the whole mask (as the published masks were made)


def object_mask(probability: np.ndarray) -> np.ndarray:
    """H x W uint8, 1 = object: above 0.5, without the segments that cover less than 1% of the image.

    probability: H x W float32 in [0, 1]. Segments are connected over corners too.
    """
    inside = (probability > OBJECT).astype(np.uint8)
    _, segments, statistics, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    kept = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST * inside.size
    kept[0] = False  # what is not an object
    return kept[segments].astype(np.uint8)


def parts(mask: np.ndarray) -> np.ndarray:
    """The connected segments of a mask as objects: H x W, 1 = object -> H x W int32, 0 background, 1 to n."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]


@dataclass(frozen=True)
class Target:
    """Where images and masks go. images: the folder images/, or None where they are there already and stay as they are.
    masks: the folder saliency_<name>/, beside which is that of instances. max_side: pixels, longer sides are shrunk to it; 0
    for no limit."""
    images: Path | None
    masks: Path
    max_side: int = 0

    @property
    def instances(self) -> Path:
        """The folder instances_<name>/."""
        return self.masks.with_name(self.masks.name.replace('saliency', 'instances', 1))

    def forget_masks(self, image_id: str) -> None:
        """Delete the masks of an image, of all models."""
        for kind in ('saliency', 'instances'):
            for folder in self.masks.parent.glob(f'{kind}_*'):
                (folder / f'{image_id}.png').unlink(missing_ok=True)


class MaskGenerator(torch.utils.data.Dataset):
    """Item i makes the mask of photograph i, and puts the photograph beside it as a JPEG.

    photographs: an `ImageFolder`. estimator: see `saliency.estimators`. find_objects: see `saliency.objects`; then the objects
    that it finds are kept too, and the mask is all of them; None: a mask alone.
    An item is a dict: `id`; `cover`, the mask's share of the image, or None; `objects`, their number, or None; `skipped`, the
    reason for a missing mask, or None. Masks newer than their photograph are not made again. Instances newer than their mask
    were corrected by hand: they are kept, and the mask becomes their union. Any other mask without its objects is given to
    `find_objects`, since it may have been corrected too. A mask drawn for a photograph that was skipped is kept too. No mask of
    less than 1% is made.
    Raises `UserError` if a file can't be written, and when a network fails.
    """

    def __init__(self, photographs: ImageFolder, estimator: Estimator, target: Target,
                 find_objects: ObjectFinder | None = None):
        self.photographs, self.estimator, self.target, self.find_objects = photographs, estimator, target, find_objects

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, source = self.photographs.ids[index], self.photographs.paths[index]
        mask_path = self.target.masks / f'{name}.png'
        image_path = self.target.images / f'{name}.jpg' if self.target.images else source
        result: dict[str, Any] = {'id': name, 'cover': None, 'objects': None, 'skipped': None}
        divided = None
        if _is_younger(mask_path, source):
            if not image_path.is_file() and (reason := self._add_image(source, image_path, mask_path)):
                return {**result, 'skipped': reason}
            try:
                return {**result, **self._made(name, mask_path)}
            except UserError as error:  # what is damaged is made again
                if self._corrected(name, mask_path):
                    return {**result, 'skipped': error.line()}
                divided = self._mask_to_divide(mask_path)
        try:
            image, jpeg = self._read(source)
        except UserError as error:
            return {**result, 'skipped': error.line()}
        if divided is not None and divided.shape != image.shape[:2]:
            return {**result, 'skipped': _other_size(mask_path, divided, image)}
        with threadpool_limits(1 if torch.utils.data.get_worker_info() else None):
            instances = self.find_objects(image, divided) if self.find_objects else None
            mask = object_mask(self.estimator(image)) if instances is None else (instances > 0).astype(np.uint8)
        cover = float(mask.mean())
        if cover < SMALLEST and (divided is None or not np.array_equal(mask, divided)):
            if divided is None:
                for folder in (self.target.masks, self.target.instances):
                    (folder / f'{name}.png').unlink(missing_ok=True)  # of an earlier state of the photograph
            return {**result, 'skipped': f'{source}: the mask covers {100 * cover:.1f}% of the image, less than 1%'}
        if jpeg is not None and not (image_path.is_file() and image_path.read_bytes() == jpeg):
            self.target.forget_masks(name)  # they are of another image
            with atomic_file(image_path, flush=False) as file:
                file.write(jpeg)
        if instances is not None:
            write_instances(self.target.instances / f'{name}.png', instances)
            result['objects'] = int(instances.max())
        save_mask(mask_path, mask)  # last: its presence means that the others are there too
        return {**result, 'cover': cover}

    def _add_image(self, source: Path, image_path: Path, mask_path: Path):
        """Put the photograph beside a mask that was drawn by hand after it had been skipped. Returns why this is impossible, or
        None; a damaged mask can be made again."""
        try:
            image, jpeg = self._read(source)
        except UserError as error:
            return error.line()
        try:
            mask = read_saliency(mask_path)
        except UserError:
            return None
        if mask.shape != image.shape[:2]:
            return _other_size(mask_path, mask, image)
        with atomic_file(image_path, flush=False) as file:
            file.write(jpeg)
        return None

    def _made(self, name: str, mask_path: Path):
        """The item for an existing mask. Raises `UserError` if it is damaged, or its objects are missing."""
        mask = read_saliency(mask_path)
        if not mask.any() and not self._corrected(name, mask_path):
            return {'skipped': f'{mask_path}: the mask is empty: 255 is object, 0 background; delete it to have it made again'}
        if self.find_objects is None:
            return {'cover': float(mask.mean())}
        instances = read_instances(self.target.instances / f'{name}.png')
        if not np.array_equal(instances > 0, mask):
            if instances.shape != mask.shape or not self._corrected(name, mask_path):
                raise UserError(f'{mask_path} is not the mask of the objects in {self.target.instances}')
            mask = (instances > 0).astype(np.uint8)
            save_mask(mask_path, mask)
        return {'cover': float(mask.mean()), 'objects': int(instances.max())}

    def _mask_to_divide(self, mask_path: Path):
        """The existing mask, whose objects are missing, damaged or those of an earlier mask. None if it is damaged itself, or
        no objects are asked for."""
        try:
            return read_saliency(mask_path) if self.find_objects else None
        except UserError:
            return None

    def _corrected(self, name: str, mask_path: Path):
        """Whether the objects of an image are younger than its mask, which is written after them."""
        path = self.target.instances / f'{name}.png'
        return self.find_objects is not None and path.is_file() and not _is_younger(mask_path, path)

    def _read(self, source: Path):
        """The image that the mask is made of, and the bytes of its JPEG, or None where it stays where it is."""
        if not self.target.images:
            return read_image(source), None
        original = read_photograph(source)
        image = shrink(original, self.target.max_side)
        plain = image is original and is_plain_jpeg(source)
        return image, source.read_bytes() if plain else encode_jpeg(image, source)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """H x W x 3 uint8, with sides of `max_side` pixels at most (0: as it is)."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if not 0 < scale < 1:
        return image
    return cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def save_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write an H x W uint8 mask, 1 = object, as a PNG of 0 and 255."""
    with atomic_file(path, flush=False) as file:
        file.write(cv2.imencode('.png', mask * 255)[1])


def _other_size(mask_path: Path, mask: np.ndarray, image: np.ndarray):
    (height, width), (own_height, own_width) = image.shape[:2], mask.shape
    return (f'{mask_path} is {own_width} x {own_height}, but its image in the data set {width} x {height}: draw it like that')


def _is_younger(path: Path, than: Path):
    try:
        return os.stat(path).st_mtime_ns >= os.stat(than).st_mtime_ns
    except OSError:
        return False
