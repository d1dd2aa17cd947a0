"""The data set that masks are made for: whose photographs it holds, its splits, and how its masks were made."""
import hashlib
import json
from pathlib import Path

import yaml

from saliency.masks import Target
from utils.errors import UserError
from utils.files import atomic_file

SOURCES = 'sources.json'  # marks a folder as made here: the folder of photographs, and which one each id is


def open_data_set(out, photographs, name, max_side):
    """Check that masks of `photographs` (an `ImageFolder`) may go to the data set `out`, and return the `Target`.

    Where the photographs are the data set's own images/, these stay as they are. name: of the masks. max_side: see `Target`.
    Masks of a photograph that has an other one's id by now are deleted.
    Raises `UserError` for a folder that holds something else, or other photographs, or the same at another size.
    """
    out = Path(out)
    if photographs.folder == (out / 'images').resolve():
        for path, image_id in zip(photographs.paths, photographs.ids, strict=True):
            if path != photographs.folder / f'{image_id}.jpg':
                raise UserError(f'{path}: images of a data set are JPEGs called <id>.jpg: convert it, or name another --out')
        return Target(None, out / f'saliency_{name}')
    sources = {image_id: path.relative_to(photographs.folder).as_posix().encode(errors='replace').decode()
               for image_id, path in zip(photographs.ids, photographs.paths, strict=True)}
    record = {'folder': str(photographs.folder), 'max_side': max_side, 'photographs': sources}
    earlier = _read(out)
    if earlier:
        if earlier['folder'] != record['folder']:
            raise UserError(f'{out} holds the photographs of {earlier["folder"]}: name another --out, or move it away')
        if earlier['max_side'] != max_side:
            raise UserError(f'{out}: its photographs were shrunk with --max_side {earlier["max_side"]}: give the same, or '
                            'name another --out')
        for image_id, source in earlier['photographs'].items():
            if sources.get(image_id, source) != source:
                for mask in out.glob(f'saliency_*/{_escape(image_id)}.png'):
                    mask.unlink()
        # Whose masks are still there, for when another photograph gets the id of one that is gone
        record['photographs'] = {**earlier['photographs'], **sources}
    with atomic_file(out / SOURCES, 'w') as file:
        json.dump(record, file, indent=1)
    return Target(out / 'images', out / f'saliency_{name}', max_side)


def _read(out):
    """The record of an earlier run, or None for a folder that is new or empty."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f'{out} is a file: name another --out')
    try:
        record = json.loads((out / SOURCES).read_text(encoding='utf-8'))
        if not (isinstance(record, dict) and {'folder', 'max_side', 'photographs'} <= record.keys()
                and isinstance(record['photographs'], dict)):
            raise ValueError('it is no record of photographs')
        return record
    except FileNotFoundError:
        if any(out.iterdir()):
            raise UserError(f'{out} is not empty and was not made by generate_masks.py: name another --out') from None
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'{out / SOURCES} could not be read ({error}): name another --out, or move the folder away') from error


def _escape(name):
    """For a pattern, `name` itself."""
    return ''.join(f'[{char}]' if char in '*?[' else char for char in name)


def require_same_options(path, options, masks):
    """Raise `UserError` when the configuration that an earlier run left at `path` has other `options`, and `masks`, a folder,
    holds any: masks of two kinds would stand in one folder."""
    if not any(Path(masks).rglob('*.png')):  # the run failed at once, say because it lacked the option that is given now
        return
    try:
        earlier = yaml.safe_load(Path(path).read_text())['options']
        differing = [key for key, value in options.items() if earlier.get(key) != value]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f'{path} could not be read ({error}): move it away, and the masks that it is about') from error
    if differing:
        raise UserError(f'{path}: masks of this name were made with another --{", --".join(differing)}: give the same, or '
                        'another --model NAME beside --onnx, or move them away')


def write_splits(out, ids, val_fraction):
    """Write sets/trainaug.txt, and for a fraction above 0 sets/val.txt, of the images of `ids` that have any mask.

    Which images are in `val` depends on their ids alone, so that few change their split when photographs are added.
    Returns how many images each has. Raises `UserError` when there is none for training.
    """
    out = Path(out)
    folders = [folder for folder in out.glob('saliency_*') if folder.is_dir()]
    ids = [name for name in ids if any((folder / f'{name}.png').is_file() for folder in folders)]
    count = max(1, round(val_fraction * len(ids))) if val_fraction and ids else 0
    if len(ids) <= count:
        raise UserError(f'{out}: {len(ids)} images have a mask, which leaves none for training: give more photographs, or '
                        'another --model')
    val = set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])
    for split, members in (('trainaug', [name for name in ids if name not in val]), ('val', sorted(val))):
        path = out / 'sets' / f'{split}.txt'
        if members:
            with atomic_file(path, 'w') as file:
                file.writelines(f'{name}\n' for name in members)
        else:
            path.unlink(missing_ok=True)
    return len(ids) - count, count
