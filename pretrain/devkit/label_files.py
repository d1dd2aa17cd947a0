"""Converts data sets that come as images and label files, such as Cityscapes and ADE20K, and checks each file on the way.

Axis legend: H W space.
"""
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.decoding import read_image, read_labels
from data.files import size_text
from data.label_colours import INDICES, ColourTable
from data.label_space import VOID
from data.new_data_set import encode_jpeg, write_description, write_image, write_labels, write_splits
from data.palette import VOC_COLOURS
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel.threads import in_threads


@dataclass(frozen=True)
class LabelFiles:
    """Where the files of a data set are, and what their labels mean.

    classes: the name of each stored value that is a class, in the order that the classes get, from 0. void: the values that
    count as void. splits: its own names for the splits of this project. images, labels: the folder of a split, which may have
    sub-folders. image_end, label_end: what follows the id in a file's name. colours: RGB by name, or None. source: its origin.
    """
    name: str
    classes: Mapping[int, str]
    void: frozenset[int]
    splits: Mapping[str, str]
    images: str
    image_end: str
    labels: str
    label_end: str
    colours: Mapping[str, tuple[int, int, int]] | None
    source: str

    @property
    def lookup(self) -> np.ndarray:
        """256 int16: the class of each stored value, VOID, or -1 for what is neither."""
        lookup = np.full(256, -1, np.int16)
        lookup[list(self.void)] = VOID
        lookup[list(self.classes)] = np.arange(len(self.classes))
        return lookup

    def pairs(self, folder: Path) -> dict[str, dict[str, tuple[Path, Path]]]:
        """The image and the labels of each id, by split and id. folder: the unpacked data set.

        Raises `UserError` if a folder, or one file of a pair, is missing, or two files have one name."""
        found: dict[str, dict[str, tuple[Path, Path]]] = {}
        for split, called in self.splits.items():
            images, labels = (_files(folder / place.format(split=called), end, self)
                              for place, end in ((self.images, self.image_end), (self.labels, self.label_end)))
            for have, lack, what in ((images, labels, 'labels'), (labels, images, 'image')):
                alone = min(have.keys() - lack.keys(), default=None)
                if alone is not None:
                    raise UserError(f'{have[alone]} has no {what}: unpack {self.name} again ({self.source})')
            found[split] = {name: (images[name], labels[name]) for name in sorted(images)}
        return found


def convert_labels(kind: LabelFiles, pairs: Mapping[str, Mapping[str, tuple[Path, Path]]], root: Path) -> None:
    """Write images, labels, lists and dataset.yml into the folder `root`, which is there and empty.

    pairs: as of `LabelFiles.pairs`. Images in other formats become JPEGs. Labels are palette PNGs, H x W uint8: 0, 1, ...
    classes, none of which is background, 255 void.
    Raises `UserError` for the first image whose files are broken, or whose labels are of another size or hold another value.
    """
    names, lookup, colours = list(kind.classes.values()), kind.lookup, VOC_COLOURS.copy()
    if kind.colours:
        colours[:len(names)] = [kind.colours[name] for name in names]
    write_description(root, names, kind.colours)
    write_splits(root, {split: list(files) for split, files in pairs.items()})

    def convert_image(item: tuple[str, str, Path, Path]):
        split, name, image_path, label_path = item
        image, stored = read_image(image_path), read_labels(label_path, ColourTable({}, INDICES))
        if stored.shape != image.shape[:2]:
            raise UserError(f'{label_path} is {size_text(stored)}, but its image is {size_text(image)}: unpack '
                            f'{kind.name} again ({kind.source})')
        labels = lookup[stored]
        if labels.min() < 0:
            raise UserError(f'{label_path} holds the label {stored[labels < 0][0]}, which {kind.name} does not have: name the '
                            f'folder of the original files ({kind.source})')
        write_image(root, name, image_path.read_bytes() if kind.image_end == '.jpg' else encode_jpeg(image, image_path))
        write_labels(root, split, name, labels.astype(np.uint8), colours)

    work = [(split, name, *paths) for split, files in pairs.items() for name, paths in files.items()]
    for _ in progress(in_threads(convert_image, work), 'Images', len(work)):
        pass


def _files(folder: Path, end: str, kind: LabelFiles) -> dict[str, Path]:
    """The files below a folder whose names end so, by what comes before."""
    found: dict[str, Path] = {}
    for root, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            if name.endswith(end) and not name.startswith('.'):
                other = found.setdefault(name.removesuffix(end), Path(root, name))
                if other != Path(root, name):
                    raise UserError(f'{other} and {Path(root, name)} have the same name: remove one')
    if not found:
        raise UserError(f'{folder} holds no *{end}: name the folder that {kind.name} unpacks to ({kind.source})')
    return found
