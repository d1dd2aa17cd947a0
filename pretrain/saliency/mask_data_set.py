"""The data set for the masks: its photographs, its splits, and how its masks were made."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.image_folder import ImageFolder
from data.new_data_set import validation_ids
from saliency.mask_generation import Target
from utils.errors import UserError
from utils.storage.atomic import atomic_file, remove_abandoned

SOURCES = 'sources.json'  # marks a folder as made here: the folder of photographs, and which one each id is


class MaskDataSet:
    """The data set `out` as the place for masks of `photographs`, an `ImageFolder`. Nothing is written before `begin`.

    name: of the masks. max_side: see `Target`. val_fraction: share of the images for `val`; None for the earlier value, or 0.
    target: where things go. in_place: whether the photographs are the data set's own images/, which then stay as they are.
    Raises `UserError` for a folder that holds something else, or other photographs, or the same at another size.
    """

    def __init__(self, out: str | Path, photographs: ImageFolder, name: str, max_side: int,
                 val_fraction: float | None = None):
        self.out, self.photographs = Path(out), photographs
        self.in_place = photographs.folder == (self.out / 'images').resolve()
        self.val_fraction = val_fraction or 0.0
        self._record: dict[str, Any] | None = None
        self._outdated: list[str] = []
        masks = self.out / f'saliency_{name}'
        if self.in_place:
            for path, image_id in zip(photographs.paths, photographs.ids, strict=True):
                if path != photographs.folder / f'{image_id}.jpg':
                    raise UserError(f'{path}: images of a data set are JPEGs called <id>.jpg: convert it, or give '
                                    'another --out')
            self.target = Target(None, masks)
            return
        self.target = Target(self.out / 'images', masks, max_side)
        earlier = self._read()
        if earlier and earlier['folder'] != str(photographs.folder):
            raise UserError(f'{out} holds the photographs of {earlier["folder"]}: move it away, or name another --out (make '
                            'mine: NAME=; make segment: rename the folder of photographs)')
        if earlier and earlier['max_side'] != max_side:
            raise UserError(f'{out}: its photographs were shrunk with --max_side {earlier["max_side"]}: give the same, or '
                            'name another --out')
        if earlier and val_fraction is None:
            self.val_fraction = earlier.get('val_fraction', 0.0)
        before = earlier['photographs'] if earlier else {}
        sources = {image_id: _state(path, photographs.folder)
                   for image_id, path in zip(photographs.ids, photographs.paths, strict=True)}
        self._outdated = [image_id for image_id, state in sources.items() if before.get(image_id, state) != state]
        self._record = {'folder': str(photographs.folder), 'max_side': max_side, 'val_fraction': self.val_fraction,
                        # Those that are gone too, as their masks are still there, and another one may get the id
                        'photographs': {**before, **sources}}

    def begin(self) -> None:
        """Delete what a killed run left, and the masks of ids whose photograph is another one by now; record which is which."""
        for folder in (self.out / 'images', self.target.masks, self.target.instances):
            remove_abandoned(folder)
        for image_id in self._outdated:
            self.target.forget_masks(image_id)
        if self._record:
            with atomic_file(self.out / SOURCES, 'w') as file:
                json.dump(self._record, file, indent=1)

    def write_splits(self) -> str:
        """Write sets/trainaug.txt, and for a fraction above 0 sets/val.txt, of the images that are there and have any mask.

        Which images are in `val` depends on their ids and number alone, so that few change their split when photographs are
        added. A data set whose own images were given keeps the splits that it has. Returns a line about them.
        Raises `UserError` if there is no image for training.
        """
        if self.in_place and any((self.out / 'sets').glob('*.txt')):
            return 'splits unchanged'
        folders = [folder for folder in self.out.glob('saliency_*') if folder.is_dir()]
        ids = [name for name in self.photographs.ids if any((folder / f'{name}.png').is_file() for folder in folders)
               and (self.in_place or (self.out / 'images' / f'{name}.jpg').is_file())]
        val = validation_ids(ids, self.val_fraction)
        if len(ids) <= len(val):
            raise UserError(f'{self.out}: {len(ids)} images have a mask, so none is left for training: give more photographs, '
                            'another --model, or --val_fraction 0')
        for split, members in (('trainaug', [name for name in ids if name not in val]), ('val', sorted(val))):
            path = self.out / 'sets' / f'{split}.txt'
            if members:
                with atomic_file(path, 'w') as file:
                    file.writelines(f'{name}\n' for name in members)
            else:
                path.unlink(missing_ok=True)
        return f'trainaug {len(ids) - len(val)}, val {len(val)}'

    def _read(self):
        """The record of an earlier run, or None for a folder that is new or empty."""
        if not self.out.exists():
            return None
        if not self.out.is_dir():
            raise UserError(f'{self.out} is a file: name another --out')
        path = self.out / SOURCES
        try:
            record = json.loads(path.read_text(encoding='utf-8'))
            if not (isinstance(record, dict) and {'folder', 'max_side', 'photographs'} <= record.keys()
                    and isinstance(record['photographs'], dict)):
                raise ValueError('it is not a record of photographs')
            return record
        except FileNotFoundError:
            if any(self.out.iterdir()):
                raise UserError(f'{self.out} is not empty and was not made by generate_masks.py: name another --out') from None
            return None
        except (OSError, ValueError) as error:
            raise UserError(f'{path} could not be read ({error}): name another --out, or move the folder away') from error


def _state(path: Path, folder: Path):
    """An identifier of a photograph and its current state."""
    name = path.relative_to(folder).as_posix().encode(errors='replace').decode()
    try:
        status = path.stat()
    except OSError:  # the reader reports it
        return [name, None, None]
    return [name, status.st_size, status.st_mtime_ns]


def require_same_options(path: str | Path, options: Mapping[str, Any], masks: str | Path) -> None:
    """Raise `UserError` if the folder `masks` holds masks that were not made with `options`: two kinds would be mixed, and
    those of others overwritten. path: the configuration that an earlier run left."""
    if not any(Path(masks).rglob('*.png')):  # an earlier run failed at once, for example for lack of an option
        return
    try:
        earlier = yaml.safe_load(Path(path).read_text(encoding='utf-8'))['options']
        differing = [key for key, value in options.items() if earlier.get(key) != value]
    except FileNotFoundError:
        raise UserError(f'{masks} holds masks that generate_masks.py did not make: give another --model, or with --onnx any '
                        'other name') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f'{path} could not be read ({error}): move it away, and the masks that it describes') from error
    if differing:
        raise UserError(f'{path}: masks of this name were made with another --{", --".join(differing)}: give the same, or '
                        f'with --onnx another --model NAME, or move {masks} away')


def earlier_option(path: str | Path, option: str) -> Any:
    """The value of an option in the configuration of an earlier run; None without a configuration or this option."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding='utf-8'))['options'].get(option)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):  # `require_same_options` says so
        return None
