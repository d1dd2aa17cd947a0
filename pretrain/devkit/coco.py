"""COCO JSON of objects as written by annotation tools, checked before use.

The format is that of https://cocodataset.org/#format-data (Lin et al., ECCV 2014).
"""
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.new_data_set import TRAINAUG
from utils.errors import UserError, nearest_name, one_line
from utils.storage.text import read_text

MOST = 254  # categories: labels of 8 bits hold these, background and void
BACKGROUND = 'background'


@dataclass(frozen=True)
class Annotation:
    """One object, or a crowd. name: what messages call it. segmentation: polygons or RLE, not yet checked."""
    name: str
    category: int
    segmentation: Any
    crowd: bool


@dataclass
class CocoImage:
    """id: of the image in a data set, its file's path without suffix. size: (height, width) as the file says, or None."""
    id: str
    path: Path
    size: tuple[int, int] | None
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """path: of the JSON. categories: names by their ids. images: with their annotations, in the file's order."""
    path: Path
    categories: dict[int, str]
    images: list[CocoImage]


def read_coco(path: str | Path, images: str | Path) -> CocoFile:
    """The content of an annotation file. images: the folder to which its file names are relative.

    Raises `UserError` for a file that can't be read or is damaged, and for annotations of an unknown image or category, a
    duplicate category or image, and file names that lead out of the folder.
    """
    path, images = Path(path), Path(images)
    content = _content(path)
    categories: dict[int, str] = {}
    for number, entry in enumerate(content['categories'], 1):
        category = _integer(path, f'category {number}', entry, 'id')
        name = ' '.join(_text(path, f'category {category}', entry, 'name').split())
        if category in categories or not name:
            raise UserError(f'{path}: category {category} {"appears twice" if name else "has no name"}: correct the file')
        categories[category] = name
    found: dict[int, CocoImage] = {}
    ids: dict[str, str] = {}
    for number, entry in enumerate(content['images'], 1):
        key = _integer(path, f'image {number}', entry, 'id')
        file_name = _text(path, f'image {key}', entry, 'file_name').replace('\\', '/')
        image = CocoImage(_image_id(path, key, file_name), images / file_name, _size(path, key, entry))
        if key in found:
            raise UserError(f'{path}: image {key} appears twice: correct the file')
        if image.id in ids:
            raise UserError(f'{path}: {ids[image.id]} and {file_name} differ only in their suffix, which is not part of an '
                            'id: rename one')
        ids[image.id] = file_name
        found[key] = image
    for number, entry in enumerate(content['annotations'], 1):
        name = f'annotation {_integer(path, f"annotation {number}", entry, "id")}'
        key, category = _integer(path, name, entry, 'image_id'), _integer(path, name, entry, 'category_id')
        if key not in found or category not in categories:
            what = f'category {category}' if key in found else f'image {key}'
            raise UserError(f'{path}: {name} is of {what}, which the file does not list: export it again')
        found[key].annotations.append(Annotation(name, category, entry.get('segmentation'), _crowd(path, name, entry)))
    return CocoFile(path, categories, list(found.values()))


def choose_classes(file: CocoFile, wanted: Iterable[str] | None) -> tuple[str, ...]:
    """The names of the classes that a data set gets after background: the categories in the order of their ids, or those that
    are `wanted`, in that order. Raises `UserError` for an unknown name, two of one name, and more than 254."""
    names = [file.categories[key] for key in sorted(file.categories)]
    chosen = names if wanted is None else list(wanted)
    for name in chosen:
        if name not in names:
            raise UserError(f"--categories: {file.path} has no category '{name}' (nearest: '{nearest_name(name, names, 0)}')")
        if names.count(name) > 1 or chosen.count(name) > 1:
            raise UserError(f"{file.path}: two categories are called '{name}': rename one, or choose others with --categories")
        if name.lower() == BACKGROUND:
            raise UserError(f"{file.path}: its category '{name}' is class 0 of every data set: remove it from --categories")
    if not chosen:
        raise UserError(f'{file.path} has no category: export it again' if wanted is None else '--categories names no class')
    if len(chosen) > MOST:
        raise UserError(f'{file.path} has {len(chosen)} categories, and labels hold {MOST} at most: choose some '
                        'with --categories')
    return tuple(chosen)


def class_numbers(file: CocoFile, classes: Iterable[str], chosen: bool) -> dict[int, int]:
    """The class of each category's id, from 1. chosen: whether categories without a class are left out; in a file of
    validation images they are an error otherwise."""
    number = {name: index for index, name in enumerate(classes, 1)}
    unknown = [name for name in file.categories.values() if name not in number]
    if unknown and not chosen:
        raise UserError(f"{file.path}: its category '{unknown[0]}' is not one of those of {TRAINAUG}: choose with --categories")
    return {key: number[name] for key, name in file.categories.items() if name in number}


def _content(path: Path) -> Mapping[str, list[dict[str, Any]]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not complete JSON ({one_line(error)}): export it again') from error
    for key in ('images', 'annotations', 'categories'):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f'{path} has no list of {key}, so it is not COCO JSON of objects: export it as "COCO" (instances)')
    return content


def _value(path: Path, what: str, entry: Mapping[str, Any], key: str):
    if entry.get(key) is None:
        raise UserError(f"{path}: {what} has no '{key}': export it again")
    return entry[key]


def _text(path: Path, what: str, entry: Mapping[str, Any], key: str) -> str:
    text = str(_value(path, what, entry, key))
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold one half of a pair, \ud83d for example
        raise UserError(f"{path}: {what}: '{key}' has a damaged character: {text!r:.60}: correct the file") from error
    return text


def _crowd(path: Path, what: str, entry: Mapping[str, Any]) -> bool:
    value = entry.get('iscrowd')
    if value not in (None, 0, 1):
        raise UserError(f"{path}: {what}: 'iscrowd' must be 0 or 1, not {value!r:.60}: correct the file")
    return bool(value)


def _integer(path: Path, what: str, entry: Mapping[str, Any], key: str) -> int:
    value = _value(path, what, entry, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{path}: {what}: '{key}' must be an integer, not {value!r:.60}: export it again")
    return value


def _size(path: Path, key: int, entry: Mapping[str, Any]):
    if entry.get('height') is None or entry.get('width') is None:
        return None
    return _integer(path, f'image {key}', entry, 'height'), _integer(path, f'image {key}', entry, 'width')


def _image_id(path: Path, key: int, file_name: str):
    parts = [part for part in file_name.rpartition('.')[0].split('/') if part not in ('', '.')]
    plain = '/'.join(parts)
    if not parts or '..' in parts or file_name.startswith('/') or not plain.isprintable() or plain != plain.strip():
        raise UserError(f'{path}: image {key}: {file_name!r} is not the path of an image file below --images: correct the file')
    return plain
