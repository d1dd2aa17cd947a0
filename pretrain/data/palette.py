"""Label images as palette PNGs, and PASCAL VOC's colours."""
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image


def _voc_colours():
    """The bits of an index go in turn to R, G and B, highest bit first."""
    index, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


VOC_COLOURS = _voc_colours()  # 256 x 3 uint8, RGB


def save_labels(file: str | Path | IO[bytes], labels: np.ndarray, colours: np.ndarray = VOC_COLOURS) -> None:
    """Write H x W uint8 class indices to a path or binary file as a palette PNG. colours: 256 x 3 uint8, RGB."""
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    image.save(file, format='PNG')
