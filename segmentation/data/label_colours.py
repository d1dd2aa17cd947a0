"""Labels that are stored as colours: the value of each colour."""
from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.palette import VOC_COLOURS
from utils.errors import UserError

VOC_CLASSES_COLOURED = 21  # the other entries of its palette are not colours of classes
INDICES, COLOURS = 'indices', 'colours'  # what a data set may say that its labels are
Colour = tuple[int, int, int]


class ColourTable:
    """values: the stored value that each RGB colour stands for. read_as: INDICES or COLOURS where the data set says what its
    labels are; None: ambiguous files are an error. source: the origin of the colours, for messages."""

    def __init__(self, values: Mapping[Colour, int], read_as: str | None = None, source: str = "PASCAL VOC's colours"):
        self.values, self.read_as, self.source = dict(values), read_as, source

    def __repr__(self):  # the decoded cache tells tables apart by it
        return repr((sorted(self.values.items()), self.read_as))

    def of_pixels(self, path: str | Path, pixels: np.ndarray, mode: str) -> np.ndarray:
        """H x W x 3 uint8 -> H x W uint8 stored values. mode: of the file, for messages."""
        gray = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
        if gray and self.read_as == INDICES:
            return np.ascontiguousarray(pixels[..., 0])
        packed = _packed(pixels)
        result, known = np.zeros(packed.shape, np.uint8), np.zeros(packed.shape, bool)
        for colour, value in self.values.items():
            here = packed == _packed(np.array(colour))
            result[here] = value
            known |= here
        if known.all():
            return result
        unknown = f'#{packed[~known].min():06x}'
        hint = '; if its gray values are indices, set `labels: indices` in dataset.yml' if gray else ''
        raise UserError(f'{path}: labels must be indices or known colours, and {unknown} is none of {self.source}: '
                        f'write each class with its colour into classes.txt (`name {unknown}`){hint}; otherwise labels must '
                        f'be a palette or 8-bit grayscale image, not an image of mode {mode}')

    def of_palette(self, path: str | Path, indices: np.ndarray, palette: bytes) -> np.ndarray:
        """H x W uint8 indices -> stored values, which are the indices themselves unless the data set's labels are COLOURS.

        Raises `UserError` if the palette has the colours of the classes in another order than that of the indices."""
        values, suspect = _palette_values(self, palette)
        if self.read_as == COLOURS:
            result = values[indices]
            if (result < 0).any():
                first = int(indices[result < 0].min())
                unknown = palette[3 * first:3 * first + 3].hex()
                raise UserError(f'{path}: labels must be in known colours, and #{unknown} is none of {self.source}: write each '
                                'class with its colour into classes.txt')
            return result.astype(np.uint8)
        if suspect and self.read_as is None:
            used = np.unique(indices)
            meant = values[used]
            if (meant >= 0).all() and len(set(meant.tolist())) == len(used) and (meant != used)[meant > 0].any():
                raise UserError(f'{path}: its palette has {self.source} in another order than its indices, so these may not '
                                'be the classes: choose one in dataset.yml, `labels: indices` or `labels: colours`')
        return indices


@functools.lru_cache(maxsize=64)
def _palette_values(table: ColourTable, palette: bytes):
    """256 int16, the value of each index' colour, -1 if it is not known; and whether any known one is out of its place."""
    values = np.full(256, -1, np.int16)
    for index in range(len(palette) // 3):
        values[index] = table.values.get(tuple(palette[3 * index:3 * index + 3]), -1)  # type: ignore[arg-type]
    return values, bool(((values > 0) & (values != np.arange(256))).any())


def _packed(pixels: np.ndarray):
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def voc_values(classes: int = VOC_CLASSES_COLOURED) -> dict[Colour, int]:
    """PASCAL VOC's colours of the first `classes` indices, 21 at most, and of void."""
    return {tuple(VOC_COLOURS[index].tolist()): index for index in (*range(min(classes, VOC_CLASSES_COLOURED)), 255)}


VOC_TABLE = ColourTable(voc_values())
