"""What the labels of a data set mean: its classes, which of them is background, what is void, and their colours.

All of it is said in the data set's folder: by classes.txt (a class a line, background first), or by dataset.yml, whose keys,
all optional, are

    classes: [road, car, tree]   # instead of classes.txt
    background: null             # the name of the background class (default: the first); null: there is none
    void: [0, 255]               # stored values that count as void (default: 255)
    reduce_zero_label: True      # stored labels begin at 1, and 0 is void
    colours: {road: [128, 64, 128]}    # RGB, of pictures and predictions (default: PASCAL VOC's)
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.palette import VOC_COLOURS
from utils.errors import UserError, nearest_name

VOC = 'VOCSegmentation'
VOC_CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
VOID = 255  # in labels as the program has them, whatever the files hold
DESCRIPTION, CLASSES = 'dataset.yml', 'classes.txt'
KEYS = ('classes', 'background', 'void', 'reduce_zero_label', 'colours')


@dataclass(frozen=True)
class LabelSpace:
    """names: of the classes, in the order of their indices. background: the index of the class of what is no object, or None.
    lookup: 256 uint8, the class index of each stored value, VOID for void; values that are no class stay as they are.
    colours: 256 x 3 uint8, RGB, of each index. source: the name of the file that says so."""
    names: tuple[str, ...]
    background: int | None = 0
    source: str = CLASSES
    lookup: np.ndarray = field(default_factory=lambda: np.arange(256, dtype=np.uint8), compare=False, repr=False)
    colours: np.ndarray = field(default_factory=lambda: VOC_COLOURS, compare=False, repr=False)

    def __len__(self):
        return len(self.names)

    @property
    def outside(self) -> int:
        """What a pixel that belongs to no object counts as: background, or void where there is no such class."""
        return VOID if self.background is None else self.background

    @property
    def objects(self) -> list[int]:
        """The indices of all classes but background."""
        return [index for index in range(len(self.names)) if index != self.background]

    @property
    def n_clusters(self) -> int:
        """How many clusters a clustering has for one a class: one is what is outside all masks."""
        return len(self.names) + (1 if self.background is None else 0)

    def values_text(self) -> str:
        """The values that files may hold, in words, for messages."""
        classes, void = np.flatnonzero(self.lookup < len(self.names)), np.flatnonzero(self.lookup == VOID)
        return f'{classes[0]} to {classes[-1]}, and {" or ".join(map(str, void))} for void'

    def wrong_values(self, stored: np.ndarray) -> list[int]:
        """Values in labels as stored, uint8, that are neither a class nor void."""
        values = np.unique(stored)
        meant = self.lookup[values]
        return values[(meant >= len(self.names)) & (meant != VOID)].tolist()


def is_described(folder: str | Path) -> bool:
    """Whether the data set in `folder` says what its labels mean."""
    folder = Path(folder)
    return folder.name == VOC or any((folder / name).is_file() for name in (DESCRIPTION, CLASSES))


def label_space(folder: str | Path) -> LabelSpace:
    """What the data set in `folder` says: its dataset.yml, its classes.txt, or PASCAL VOC's where it has neither.

    Raises `UserError` for a file that is missing, unreadable, or says something impossible.
    """
    folder = Path(folder)
    described = _description(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    file = folder / (DESCRIPTION if 'classes' in described else CLASSES)
    names = described.get('classes')
    if names is None:
        if not file.is_file():
            if folder.name != VOC:
                raise UserError(f'{file} is missing: name the classes, one a line, background first')
            names = VOC_CLASSES
        else:
            names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names) or len(names) > VOID:
        raise UserError(f'{file} must name 2 to {VOID} different classes, one a line, background first')
    names = tuple(map(str, names))
    return LabelSpace(names, _background(described, names, folder / DESCRIPTION), DESCRIPTION if described else CLASSES,
                      _lookup(described, folder / DESCRIPTION), _colours(described, names, folder / DESCRIPTION))


def read_text(path: Path) -> str:
    """The content of a text file. Raises `UserError` that names it."""
    try:
        return path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(f'{path} could not be read ({reason})') from error


def _description(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file)) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f'{file}: not valid YAML: {getattr(error, "problem", None) or error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{file}: expected a YAML mapping of keys to values')
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key '{key}' (nearest valid key: '{nearest_name(str(key), KEYS, cutoff=0)}')")
    names = content.get('classes', [])
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise UserError(f'{file}: classes must be a list of names')
    if not isinstance(content.get('reduce_zero_label', False), bool):
        raise UserError(f'{file}: reduce_zero_label must be True or False, not {content["reduce_zero_label"]!r}')
    return content


def _background(described: Mapping[str, Any], names: tuple[str, ...], file: Path):
    if 'background' not in described:
        return 0
    name = described['background']
    if name is not None and str(name) not in names:
        raise UserError(f"{file}: background: no class is called '{name}' (nearest: "
                        f"'{nearest_name(str(name), names, cutoff=0)}'; null: there is none)")
    return None if name is None else names.index(str(name))


def _lookup(described: Mapping[str, Any], file: Path):
    given = described.get('void', VOID)
    void = given if isinstance(given, list) else [given]
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 for value in void):
        raise UserError(f'{file}: void must be a stored value from 0 to 255, or a list of them, not {given!r}')
    lookup = np.arange(256)
    if described.get('reduce_zero_label'):
        lookup -= 1
        lookup[[0, 255]] = VOID
    lookup[void] = VOID
    return lookup.astype(np.uint8)


def _colours(described: Mapping[str, Any], names: tuple[str, ...], file: Path):
    colours, given = VOC_COLOURS.copy(), described.get('colours') or {}
    if not isinstance(given, dict):
        raise UserError(f'{file}: colours must map names of classes to [red, green, blue]')
    for name, colour in given.items():
        if str(name) not in names:
            raise UserError(f"{file}: colours: no class is called '{name}' (nearest: "
                            f"'{nearest_name(str(name), names, cutoff=0)}')")
        if not (isinstance(colour, list) and len(colour) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in colour)):
            raise UserError(f'{file}: colours: {name} must be [red, green, blue] from 0 to 255, not {colour!r}')
        colours[names.index(str(name))] = colour
    return colours
