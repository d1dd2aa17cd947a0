"""The meaning of the labels of a data set: classes, background, void, and colours.

It is defined in the folder of the data set: by classes.txt (a class per line, background first; with `name #rrggbb` or `name r
g b` in all lines the colours of the labels too), or by dataset.yml, whose keys, all optional, are

    classes: [road, car, tree]   # instead of classes.txt
    background: null             # the name of the background class (default: the first); null: there is none
    void: [0, 255]               # stored values that count as void (default: 255)
    reduce_zero_label: True      # stored labels begin at 1, and 0 is void
    colours: {road: [128, 64, 128]}    # RGB, of labels, pictures and predictions (default: PASCAL VOC's)
    labels: indices              # or colours: how to read files that could be either
    object: 255                  # stored values of masks that are object; `nonzero`: all but 0
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.label_colours import COLOURS, INDICES, VOC_TABLE, Colour, ColourTable, voc_values
from data.palette import VOC_COLOURS
from utils.errors import UserError, nearest_name
from utils.storage.text import read_text
from utils.storage.yaml_files import parse_yaml

VOC = 'VOCSegmentation'
VOC_CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
VOID = 255  # in labels as the program has them, whatever the files hold
DESCRIPTION, CLASSES = 'dataset.yml', 'classes.txt'
KEYS = ('classes', 'background', 'void', 'reduce_zero_label', 'colours', 'labels', 'object')
VOID_NAME, NONZERO = 'void', 'nonzero'
UNSHOWN = ('Cc', 'Cs')  # categories of characters: control characters but tabs, and lone surrogates, on which OpenCV crashes
BEFORE = re.compile(r'(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(?P<name>.*\S)')  # r g b name
BEHIND = re.compile(r'(?P<name>.*?\S)[\s,:=]+[(\[]?\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*[)\]]?')
HEX = re.compile(r'(?P<name>.*?\S)[\s,:=]+#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})')


@dataclass(frozen=True)
class LabelSpace:
    """names: of the classes, in the order of their indices. background: the index of the background class, or None. lookup: 256
    uint8, the class index of each stored value, VOID for void; values that are not a class stay as they are. colours: 256 x 3
    uint8, RGB, of each index. source: the name of the file with these settings."""
    names: tuple[str, ...]
    background: int | None = 0
    source: str = CLASSES
    lookup: np.ndarray = field(default_factory=lambda: np.arange(256, dtype=np.uint8), compare=False, repr=False)
    colours: np.ndarray = field(default_factory=lambda: VOC_COLOURS, compare=False, repr=False)

    def __len__(self):
        return len(self.names)

    @property
    def outside(self) -> int:
        """The class of a pixel outside all objects: background, or void if there is no such class."""
        return VOID if self.background is None else self.background

    @property
    def objects(self) -> list[int]:
        """The indices of all classes but background."""
        return [index for index in range(len(self.names)) if index != self.background]

    @property
    def n_clusters(self) -> int:
        """The number of clusters for one per class, including the one outside all masks."""
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
    """Whether the data set in `folder` defines its labels."""
    folder = Path(folder)
    return folder.name == VOC or any((folder / name).is_file() for name in (DESCRIPTION, CLASSES))


def label_space(folder: str | Path) -> LabelSpace:
    """The label space of the data set in `folder`: from its dataset.yml or classes.txt, or PASCAL VOC's without either.

    Raises `UserError` for a file that is missing, unreadable, or invalid.
    """
    folder = Path(folder)
    described, names, coloured, file = _described(folder)
    if len(names) < 2 or len(set(names)) < len(names) or len(names) > VOID:
        raise UserError(f'{file} must name 2 to {VOID} different classes, one per line, background first')
    colours = VOC_COLOURS.copy()
    for name, colour in coloured.items():
        if name in names:
            colours[names.index(name)] = colour
    return LabelSpace(names, _background(described, names, folder / DESCRIPTION), DESCRIPTION if described else CLASSES,
                      _lookup(described, folder / DESCRIPTION), colours)


def colour_table(folder: str | Path) -> ColourTable:
    """The stored value of each colour that labels of the data set in `folder` may have: of its classes and `void` where it says
    colours, otherwise PASCAL VOC's of as many classes. Raises as `label_space` does; a data set that names no classes has
    VOC's."""
    folder = Path(folder)
    if not is_described(folder):
        return VOC_TABLE
    described, names, coloured, file = _described(folder)
    if not coloured:
        given, source = voc_values(len(names)), "PASCAL VOC's colours"
    else:
        given = {colour: VOID if name == VOID_NAME and name not in names else names.index(name)
                 for name, colour in coloured.items()}
        source = f'the colours in {file.name}'
        if len(given) < len(coloured):
            raise UserError(f'{file}: two classes have the same colour, so labels cannot be told apart')
    lookup = _lookup(described, folder / DESCRIPTION)
    stored = {int(index): value for value, index in reversed(list(enumerate(lookup)))}
    return ColourTable({colour: stored[index] for colour, index in given.items() if index in stored}, described.get('labels'),
                       source)


def object_values(folder: str | Path) -> tuple[int, ...] | None:
    """The stored values of masks that are object, as the data set in `folder` says: () for all but 0; None for 255."""
    file = Path(folder) / DESCRIPTION
    given = _description(file).get('object', 255) if file.is_file() else 255
    if given == NONZERO:
        return ()
    values = given if isinstance(given, list) else [given]
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65535 for value in values):
        raise UserError(f'{file}: object must be {NONZERO}, or stored values of masks from 1 to 65535, not {given!r}')
    return None if values == [255] else tuple(values)


def _described(folder: Path) -> tuple[dict[str, Any], tuple[str, ...], dict[str, Colour], Path]:
    """What dataset.yml holds, the class names, the colours by name (`void` may be one), and the file with the names."""
    described = _description(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    file, names = folder / (DESCRIPTION if 'classes' in described else CLASSES), described.get('classes')
    coloured: dict[str, Colour] = {}
    if names is None:
        if file.is_file():
            names, coloured = _class_lines(file)
        elif folder.name == VOC:
            names = VOC_CLASSES
        else:
            raise UserError(f'{file} is missing: name the classes, one per line, background first')
    names = tuple(map(str, names))
    for name in names:
        if any(unicodedata.category(char) in UNSHOWN for char in name.replace('\t', ' ')):
            raise UserError(f'{file}: the name of the class {name!a} has characters that cannot be shown')
    return described, names, coloured | _colours(described, names, folder / DESCRIPTION), file


def _class_lines(file: Path) -> tuple[list[str], dict[str, Colour]]:
    """The names in classes.txt, and their colours where all lines have one."""
    lines = [line.strip() for line in read_text(file).split('\n') if line.strip()]
    for pattern in (HEX, BEHIND, BEFORE):
        found = [pattern.fullmatch(line) for line in lines]
        if lines and all(found):
            break
    else:
        if any(HEX.fullmatch(line) for line in lines):
            raise UserError(f'{file}: only some lines have a colour: give a colour to all lines, or to none')
        return lines, {}
    base = 16 if pattern is HEX else 10
    coloured: dict[str, Colour] = {}
    names = []
    for line, match in zip(lines, found, strict=True):
        assert match is not None
        name = match['name'].strip()
        values = [int(match[group], base) for group in range(1, 5) if group != match.re.groupindex['name']]
        if max(values) > 255:
            raise UserError(f'{file}: `{line}`: a colour has three values from 0 to 255')
        coloured[name] = (values[0], values[1], values[2])
        if name.lower() != VOID_NAME:
            names.append(name)
        elif name != VOID_NAME:
            coloured[VOID_NAME] = coloured.pop(name)
    return names, coloured


def _description(file: Path) -> dict[str, Any]:
    content = parse_yaml(read_text(file), file) or {}
    if not isinstance(content, dict):
        raise UserError(f'{file}: expected a YAML mapping of keys to values')
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key '{key}' (nearest valid key: '{nearest_name(str(key), KEYS, cutoff=0)}')")
    names = content.get('classes', [])
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise UserError(f'{file}: classes must be a list of names')
    if content.get('labels') not in (None, INDICES, COLOURS):
        raise UserError(f'{file}: labels must be {INDICES} or {COLOURS}, not {content["labels"]!r}')
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
    given, colours = described.get('colours') or {}, {}
    if not isinstance(given, dict):
        raise UserError(f'{file}: colours must map names of classes to [red, green, blue]')
    for name, colour in given.items():
        if str(name) not in (*names, VOID_NAME):
            raise UserError(f"{file}: colours: no class is called '{name}' (nearest: "
                            f"'{nearest_name(str(name), names, cutoff=0)}')")
        if not (isinstance(colour, list) and len(colour) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in colour)):
            raise UserError(f'{file}: colours: {name} must be [red, green, blue] from 0 to 255, not {colour!r}')
        colours[str(name)] = (colour[0], colour[1], colour[2])
    return colours
