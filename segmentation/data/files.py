"""Files of a data set: where they are, whether they exist, their sizes, and messages about faults.

Training, evaluations and `data.check` all use this module. A file exists if the reader can open it: links are followed.
"""
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data.decoding import OBJECT, exif_turn, palette_index, read_gray
from data.label_space import object_values
from utils.errors import UserError, nearest_name
from utils.storage.text import read_text

IMAGE, MASK, LABEL = 'image', 'mask', 'label'
SUFFIXES = {IMAGE: ('.jpg',), MASK: ('.png', '.jpg', '.jpeg'), LABEL: ('.png',)}  # the first that is there counts
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
LABEL_FOLDERS = ('SegmentationClass', 'SegmentationClassAug')  # neither stands in for the other
KNOWN_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif')
LISTED = 200_000  # names that a search for the nearest looks at, at most
CONVERT = ('this is the layout of the official PASCAL VOC archive: convert it with convert_voc.py in pretrain/ '
           '(docs/data-sets.md)')
VOC_FOLDERS = ('JPEGImages', 'ImageSets')
MASKS_READ = 500  # at most, for a message


class Fault(UserError):
    """An unusable file. The message begins with its path. kind: its category in `data.check`."""

    def __init__(self, message: str, kind: str = '', path: str | Path = ''):  # a DataLoader passes the message alone
        super().__init__(message)
        self.kind, self.path = kind, path


# Which files there are


def read_ids(split_file: Path) -> list[str]:
    """The ids that a split lists, a line each, without `./` and doubled or leading slashes. Raises `UserError` with the
    existing files if the list is missing, and `Fault` for an id that leads out of the data set."""
    try:
        lines = read_text(split_file).split('\n')
    except UserError as error:
        raise UserError(f'{error}{_nearest_split(split_file)}') from error
    ids = []
    for number, line in enumerate(lines, 1):
        parts = [part for part in line.strip().split('/') if part not in ('', '.')]
        if '..' in parts or '\0' in line:
            raise Fault(f'{split_file}: line {number}, {line.strip()!r}, leads out of the data set: an id is the path of an '
                        'image below images/, without suffix', 'unusable split', split_file)
        if parts:
            ids.append('/'.join(parts))
    return ids


def is_there(path: str | Path) -> bool:
    """Whether a reader would find a file at `path`."""
    return os.path.exists(path) and not os.path.isdir(path)


def find(folder: Path, name: str, part: str) -> Path:
    """The file of an id: the first existing one of its possible files, otherwise the usual one. part: IMAGE, MASK or LABEL."""
    first, *others = SUFFIXES[part]
    usual = folder / f'{name}{first}'
    if not others or is_there(usual):  # no other path is made for it: this runs for each item
        return usual
    return next((path for path in (folder / f'{name}{suffix}' for suffix in others) if is_there(path)), usual)


def present(folder: Path, names: Iterable[str], part: str) -> set[str]:
    """The ids that have a file, by one listing of the folder, since checking each takes long on a network disk."""
    listed = set(_listed(folder))
    return {name for name in names
            if any(name + suffix in listed for suffix in SUFFIXES[part]) or is_there(find(folder, name, part))}


def _listed(folder: str | Path, prefix: str = '', above: tuple[str, ...] = (), links: bool = False) -> Iterator[str]:
    """Paths of the files below the folder, through links. above: the folders that this one is in, which it may link to. links:
    whether to list those that lead nowhere, too."""
    above = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir() and (links or entry.is_file() or not entry.is_symlink()):
                    yield prefix + entry.name
                elif entry.is_dir() and not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                    yield from _listed(entry.path, f'{prefix}{entry.name}/', above, links)
    except OSError:  # whoever reads its files reports it
        return


# Reading


def read(part: str, decode: Callable[[Path], np.ndarray], path: Path, folder: Path) -> np.ndarray:
    """decode(path). folder: of the ids, below which `path` is. Raises `Fault`: where the file is missing, with what is
    nearest to it on the disk."""
    try:
        return decode(path)
    except UserError as error:
        if is_there(path):
            raise Fault(str(error), f'unusable {part}', path) from error
        raise Fault(f'{error}{nearest(path, folder)}', f'missing {part}', path) from error


def check_size(part: str, path: Path, values: np.ndarray, image_path: Path, image: np.ndarray) -> None:
    """Raise a `Fault` for a mask (H x W) of another size than its image (H x W x 3), and for a mask or label that was drawn
    on the image as its EXIF orientation shows it. Labels of another size are resized otherwise."""
    if values.shape == image.shape[:2]:
        return
    sizes = f'{path} is {size_text(values)}, but its image is {size_text(image)}'
    turn = exif_turn(image_path) if _is_sideways(values.shape, image.shape) else 1
    if turn in SIDEWAYS:
        raise Fault(f'{sizes}, and {image_path} has EXIF orientation {turn}: viewers turn it, but images are read as stored. '
                    'Turn the pixels of the images and remove the EXIF tag (mogrify -auto-orient), or turn the '
                    f'{part}s back', f'{part} of a turned image', path)
    if part == MASK:
        raise Fault(f'{sizes}: make the mask again at the size of the image', 'mask of another size', path)


def _is_sideways(shape: tuple[int, ...], image: tuple[int, ...]):
    """Whether the shape is that of the image on its side, perhaps at another scale, and not that of the image upright."""
    def differ(height: int, width: int):
        return abs(shape[0] / shape[1] * width / height - 1)
    return differ(image[1], image[0]) < 0.05 and differ(image[0], image[1]) > differ(image[1], image[0])


def size_text(array: np.ndarray) -> str:
    """Width and height of an image, for messages."""
    return f'{array.shape[1]} x {array.shape[0]}'


# Words about what is missing


def no_image(split_file: Path, ids: list[str], images: Path, masks: Path | None) -> Fault:
    """The error for a split without any usable id."""
    text = f'{split_file}: none of its {len(ids)} ids has an image in {images}' + (f' and a mask in {masks}' if masks else '')
    if not ids:
        text += ': the split is empty. Write the ids of its images into it, one per line'
        return Fault(text, 'unusable split', split_file)
    looked_for = [(folder, find(folder, ids[0], part)) for folder, part in ((images, IMAGE), (masks, MASK)) if folder]
    absent = [f': {path} is not there{nearest(path, folder, guess=True)}' for folder, path in looked_for if not is_there(path)]
    text += ''.join(absent[:1])
    return Fault(text, 'unusable split', split_file)


def missing_folder(folder: Path) -> UserError:
    """The error for a missing folder of a data set, for example images/."""
    data_set, text = folder.parent, f'{folder}: the folder is missing from the data set'
    if not data_set.is_dir():
        return UserError(text)
    places = [data_set, *_folders(data_set), *(deeper for place in _folders(data_set) for deeper in _folders(place))]
    if any((place / name).is_dir() for place in places for name in VOC_FOLDERS):
        return UserError(f'{text}; {CONVERT}')
    inner = [place for place in places[1:] if (place / folder.name).is_dir()]
    if inner:
        return UserError(f'{text}, but {inner[0] / folder.name} is there: move what is in {inner[0]} up')
    kind = folder.name.partition('_')[0] + '_'
    names = [place.name for place in _folders(data_set)]
    alike = [name for name in names if name.startswith(kind)] if folder.name.startswith(kind) else []
    if kind == 'instances_' and not alike:
        return UserError(f'{text}: generate_masks.py --objects makes the files of single objects')
    near = ', '.join(sorted(alike)) or nearest_name(folder.name, [name for name in names if name not in LABEL_FOLDERS])
    return UserError(f'{text} (there is {near})' if near else text)


def nearest(path: Path, folder: Path, guess: bool = False) -> str:
    """The file nearest to a missing one below `folder`, as words that continue a message, or ''. guess: also by a similar
    name."""
    try:
        found = _names(str(folder), os.stat(folder).st_mtime_ns)
        wanted = os.path.relpath(path, folder)
    except (OSError, ValueError):
        return ''
    if not found:
        return f'; {folder} has no files'
    stem, suffix = os.path.splitext(wanted)
    columns = stem.replace('\\', '/').split() or [stem]
    for candidate in (stem, columns[0], columns[-1]):
        bare = os.path.splitext(candidate)[0] if candidate.lower().endswith(KNOWN_SUFFIXES) else candidate
        near = found.get(_key(bare))
        if near:
            return _advice(near, wanted, suffix)
    near = nearest_name(os.path.basename(stem), list(found)[:2000]) if guess else None
    if near:
        return _advice(found[near], wanted, suffix)
    return f' (there is {next(iter(found.values()))}, for example)' if guess else ''


def _advice(near: str, wanted: str, suffix: str):
    if near == wanted:
        return f': {near} is a broken link'
    name, found_suffix = os.path.splitext(near)
    if found_suffix == suffix:
        return f', but {near} is there: ids are paths below this folder without suffix, here {name}'
    if name == wanted.removesuffix(suffix):
        return f', but {near} is there: rename it to {wanted}'
    return f', but {near} is there: files are called <id>{suffix}, and ids have no suffix'


def _key(path: str):
    return os.path.basename(path).lower()


@functools.lru_cache(maxsize=4)
def _names(folder: str, _: int):
    """Paths of the files below a folder by their names in lower case, without suffix; of equal ones the first."""
    found: dict[str, str] = {}
    for path in sorted(itertools.islice(_listed(folder, links=True), LISTED)):
        found.setdefault(_key(os.path.splitext(path)[0]), path)
    return found


def _nearest_split(split_file: Path):
    data_set = split_file.parent.parent
    if any((data_set / name).is_dir() for name in VOC_FOLDERS):
        return f'; {CONVERT}'
    if split_file.exists() or not split_file.parent.is_dir():
        return ''
    there = sorted(path.name for path in split_file.parent.glob('*.txt'))
    return f': there is {", ".join(there[:8])}' if there else f': {split_file.parent} holds no splits'


def _folders(folder: Path):
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def object_text(data_set: Path) -> str:
    """The values of masks that are object, in words. data_set: its folder."""
    values = object_values(data_set)
    return ' or '.join(map(str, (OBJECT,) if values is None else values)) or 'other than 0'


def empty_masks(masks: Path, names: Iterable[str]) -> str:
    """Why masks may be empty, in words: their largest value, and what to do. masks: the folder. names: ids."""
    largest, palette, given = 0, None, object_values(masks.parent)
    for name in list(names)[:MASKS_READ]:
        path = find(masks, name, MASK)
        value = int(read_gray(path).max())
        if value > largest or palette is None:
            largest, palette = max(value, largest), palette_index(path)
    text = f'the largest value in these masks is {largest}; object pixels must be {object_text(masks.parent)}'
    if given is not None:
        return text + (', as dataset.yml says' if given else '')
    if palette and 0 < palette[0] != 255:
        text += f', and palette images count by index: index {palette[0]} is not 255, though its colour is {palette[1]}'
    return text + (f'. Save them with 0 and 255, or set `object: {largest}` in dataset.yml' if 0 < largest != 255 else '')
