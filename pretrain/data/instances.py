"""Instance maps: which pixel belongs to which object of an image, `instances_<name>/<id>.png` of a data set.

The file is a PNG of one channel and 16 bits: 0 is background, 1 to n are the n objects. Object k of the image `<id>` is called
`<id>#k`, wherever objects are listed. `saliency_<name>/<id>.png` holds all of them as one mask.
"""
from pathlib import Path

import cv2
import numpy as np

from data.decoding import MAX_PIXELS, open_whole
from utils.errors import UserError
from utils.storage.atomic import atomic_file

MOST = 65535  # objects of an image: what 16 bits hold


def read_instances(path: str | Path, limit: int = MAX_PIXELS) -> np.ndarray:
    """H x W int32: 0 is background, and objects have the numbers 1 to n (n may be 0). Files of 8 bits are read too.

    Raises `UserError` if the file is missing, truncated, not an image, lossy, of several channels, of more than `limit` pixels,
    or leaves out a number.
    """
    image = open_whole(path, limit)
    if image.format != 'PNG' or not (image.mode in ('L', 'P', '1') or image.mode.startswith('I')):
        raise UserError(f'{path}: instances must be a PNG of one channel with 16 bits (0 = background, 1 to n = objects), not '
                        f'{image.format} of mode {image.mode}')
    values = np.array(image).astype(np.int32)
    wrong = _gap(values)
    if wrong:
        raise UserError(f'{path}: {wrong}: number the objects from 1 without a gap')
    return values


def write_instances(path: str | Path, instances: np.ndarray) -> None:
    """Write H x W integers, 0 for background and 1 to n for objects, as a PNG of 16 bits that is complete or absent.

    Raises `ValueError` for other numbers than 1 to n, n at most 65535, and `UserError` where the file can't be written.
    """
    wrong = _gap(instances)
    if wrong or instances.max(initial=0) > MOST:
        raise ValueError(wrong or f'there are more than {MOST} objects')
    with atomic_file(path, flush=False) as file:
        file.write(cv2.imencode('.png', instances.astype(np.uint16))[1])


def consecutive(numbers: np.ndarray) -> np.ndarray:
    """The same objects, numbered 1 to n in the order of their numbers: H x W integers, 0 background -> H x W int32."""
    held = np.unique(numbers)
    return np.searchsorted(held[held > 0], numbers, side='right').astype(np.int32)


def object_names(image_id: str, count: int) -> list[str]:
    """The names of the objects of an image: `<id>#1` to `<id>#count`."""
    return [f'{image_id}#{number}' for number in range(1, count + 1)]


def _gap(numbers: np.ndarray):
    """The fault in the numbers of objects, in words, or ''."""
    held = np.unique(numbers)
    if held.size and held[0] < 0:
        return f'{held[0]} is not a number of an object'
    held = held[held > 0]
    missing = np.flatnonzero(held != np.arange(1, len(held) + 1))
    return f'there is an object {held[-1]}, but none with the number {missing[0] + 1}' if missing.size else ''
