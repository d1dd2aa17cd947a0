"""Writing a new data set in this layout: images, labels, splits, and the meaning of the labels."""
import contextlib
import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from data.files import LABEL_FOLDERS
from data.label_space import CLASSES, DESCRIPTION, label_space
from data.palette import VOC_COLOURS, save_labels
from utils.errors import UserError
from utils.storage.atomic import atomic_folder

QUALITY = 95  # of JPEGs
TRAINAUG, VAL = 'trainaug', 'val'
FOLDERS = {VAL: LABEL_FOLDERS[0], TRAINAUG: LABEL_FOLDERS[1]}  # of the labels of a split


@contextlib.contextmanager
def new_data_set(out: str | Path) -> Iterator[Path]:
    """`atomic_folder`, with an error that names the folder when the block can't write."""
    with atomic_folder(out) as root:
        try:
            yield root
        except OSError as error:
            raise UserError(f'{out} could not be written ({error.strerror or error}): '
                            'make room or choose another folder') from error


def validation_ids(ids: Collection[str], fraction: float) -> set[str]:
    """The ids that go to `val`: this share of them, at least one if it is above 0.

    The choice depends only on the ids and their number, so that few change their split when images are added."""
    count = max(1, round(fraction * len(ids))) if fraction and ids else 0
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def encode_jpeg(image: np.ndarray, source: str | Path) -> bytes:
    """An H x W x 3 uint8 image as the bytes of a JPEG. source: its file, for the message where it is too large for one."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(image).save(buffer, format='JPEG', quality=QUALITY)
    except (OSError, ValueError) as error:
        raise UserError(f'{source} could not be turned into a JPEG ({error}): shrink it') from error
    return buffer.getvalue()


def write_image(root: Path, image_id: str, content: bytes) -> None:
    """Write the bytes of a JPEG to images/<id>.jpg of the data set."""
    _place(root / 'images' / f'{image_id}.jpg').write_bytes(content)


def write_labels(root: Path, split: str, image_id: str, labels: np.ndarray, colours: np.ndarray = VOC_COLOURS) -> None:
    """Write H x W uint8 labels, 255 void, of an image of TRAINAUG or VAL as a palette PNG. colours: 256 x 3 uint8, RGB."""
    save_labels(_place(root / FOLDERS[split] / f'{image_id}.png'), labels, colours)


def write_splits(root: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write sets/<split>.txt, one id per line, and make the folders that each split's files are in."""
    for split, ids in splits.items():
        _place(root / 'sets' / f'{split}.txt').write_text(''.join(f'{name}\n' for name in ids), encoding='utf-8')
        (root / FOLDERS[split]).mkdir(exist_ok=True)
    (root / 'images').mkdir(exist_ok=True)


def write_classes(root: Path, names: Sequence[str]) -> None:
    """Write classes.txt, background first. Raises `UserError` for names that the file cannot hold."""
    (root / CLASSES).write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
    _check(root, names, CLASSES)


def write_description(root: Path, names: Sequence[str], colours: Mapping[str, Sequence[int]] | None = None) -> None:
    """Write dataset.yml of classes of which none is background. colours: RGB by name, or None for PASCAL VOC's."""
    content: dict[str, Any] = {'classes': list(names), 'background': None}
    if colours:
        content['colours'] = {name: list(colour) for name, colour in colours.items()}
    with open(root / DESCRIPTION, 'w', encoding='utf-8') as file:
        yaml.safe_dump(content, file, sort_keys=False, default_flow_style=None, width=120)
    _check(root, names, DESCRIPTION)


def _check(root: Path, names: Sequence[str], file: str):
    try:
        read, reason = label_space(root).names, ''
    except UserError as error:  # one looks like a name with a colour
        read, reason = (), error.line().partition(': ')[2]
    if read != tuple(names):
        wrong = next((name for name in names if '#' in name or read and name not in read), names[-1])
        raise UserError(f'the class {wrong!r}: {file} cannot hold this name{f" ({reason})" if reason else ""}: rename it')


def _place(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
