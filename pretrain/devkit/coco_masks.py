"""Segmentations of COCO JSON as masks. Everything is checked first; a fault is a ValueError that describes it.

Axis legend: H W space.
"""
import sys
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

SLACK = 1  # pixels that a polygon may reach over the edge of its image, as tools round


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """H x W bool: the pixels of a segmentation, which is a list of polygons, or a dict with RLE, compressed or not.

    Polygons are rasterised by pycocotools. Raises ValueError for anything else, and for a polygon or RLE of another image.
    """
    if isinstance(segmentation, dict):
        return _of_rle(segmentation, height, width)
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError('has no mask, neither polygons nor RLE')
    return _of_polygons(segmentation, height, width)


def _of_polygons(polygons: list[Any], height: int, width: int):
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise ValueError('has a polygon that is not a list of x, y, x, y, ... with at least three points')
        for values, size, axis in ((polygon[::2], width, 'x'), (polygon[1::2], height, 'y')):
            wrong = [value for value in (min(values), max(values)) if not -SLACK <= value <= size + SLACK]
            if wrong:
                raise ValueError(f'has a polygon outside of its image: {axis} = {wrong[0]:g}, and that is '
                                 f'{width} x {height}')
    parts = coco_mask.frPyObjects([[float(value) for value in polygon] for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def _of_rle(rle: dict[str, Any], height: int, width: int):
    size, counts = rle.get('size'), rle.get('counts')
    if size != [height, width]:
        raise ValueError(f'has an RLE of size {size} (height, width), and its image is {[height, width]}')
    if isinstance(counts, str):
        counts = unpack_counts(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError('has an RLE whose counts are neither a string nor a list of numbers')
    if sum(counts) != height * width:
        raise ValueError(f'has a damaged RLE: its counts add up to {sum(counts)} pixels, not {height * width}')
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def unpack_counts(text: str) -> list[int]:
    """The counts of a compressed RLE: 5 bits a character, the lowest first; the fourth and later ones are differences to the
    count two before. Unpacked here, as pycocotools reads past the end of a text that is cut off. Raises ValueError for a
    damaged one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError('has a damaged RLE: its counts are not compressed numbers')
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError('has a damaged RLE: its counts are cut off')
    return counts


def _is_number(value: Any):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
