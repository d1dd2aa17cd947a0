"""Assign photographs to saved clusters one after the other, with only a few in memory at a time."""
import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from evaluation.cluster_names import named_space, one_label
from evaluation.objects import Objects
from evaluation.predictions import PREDICTIONS
from evaluation.prototype_cache import PrototypeCache
from evaluation.saved_clusters import SavedClusters, nearest
from evaluation.visualization.pictures import jpeg, overlay, save_prediction, with_legend
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel.threads import in_threads
from utils.storage.atomic import atomic_file

OVERLAYS, TABLE, DRAWN = 'overlays', 'segments.csv', 'drawn.jsonl'
COLUMNS = ('file', 'cluster', 'name', 'distance', 'second_nearest', 'second_name', 'second_distance')
OBJECT = 'object'
QUALITY = 90  # of overlays

log = logging.getLogger('maskcontrast')


class Photographs:
    """Photographs and the data set of those that have masks.

    images: a folder of photographs whose data set, made by generate_masks.py, is the folder `made`; or a data set itself.
    saliency: the name of the masks. instances: whether these are those of single objects. folder: of the files in the table.
    ids, paths: of all photographs. dataset: a `SegmentationDataset` of those with masks, by the same ids. Raises `UserError` if
    there are no masks.
    """

    def __init__(self, images: str | Path, made: Path, saliency: str, instances: bool):
        given, masks = Path(images).expanduser(), f'{"instances" if instances else "saliency"}_{saliency}'
        itself = (given / masks).is_dir()
        folder = given if itself else made
        if not (folder / masks).is_dir():
            what = f'{masks}, of single objects,' if instances else saliency
            raise UserError(f'{images}: there are no masks {what} of these photographs, neither there nor in {made}: make '
                            f'them first (make segment does, or generate_masks.py{" with --objects" if instances else ""})')
        all_of_them = ImageFolder(given / 'images' if itself else given, without=made)
        self.folder, self.ids, self.paths = all_of_them.folder, all_of_them.ids, all_of_them.paths
        self.dataset = SegmentationDataset(folder, 'trainaug', saliency, drop_missing=True, instances=instances)

    def __len__(self):
        return len(self.ids)


def draw_segments(output: Path, objects: Objects, keys: Sequence[bytes], cache: PrototypeCache, found: SavedClusters,
                  names: Mapping[int, str]) -> int:
    """Write predictions/<id>.png and overlays/<id>.jpg of the images for which they are missing or outdated.

    keys: of the objects. cache: has the vectors of all. Returns how many images were drawn.
    """
    dataset = objects.dataset
    labels, space = one_label(names, len(found)), named_space(names, len(found))
    journal, folders = _Journal(output / DRAWN), (output / PREDICTIONS, output / OVERLAYS)
    for name in journal.stamps.keys() - set(dataset.ids):  # whose photograph is gone
        (folders[0] / f'{name}.png').unlink(missing_ok=True)
        (folders[1] / f'{name}.jpg').unlink(missing_ok=True)
        del journal.stamps[name]

    def todo() -> Iterator[tuple[int, np.ndarray, str]]:
        for index, name in enumerate(progress(dataset.ids, 'Pictures')):
            own = keys[objects.of_image(index)]
            near = np.array([nearest(found.distances(cache[key][None]), labels)[0][0] for key in own], int)
            text = b''.join(key + f'{label} {space.names[label + 1]}'.encode() for key, label in zip(own, near, strict=True))
            stamp = hashlib.sha256(text).hexdigest()[:16]
            whole = (folders[0] / f'{name}.png').is_file() and (folders[1] / f'{name}.jpg').is_file()
            if not (whole and journal.stamps.get(name) == stamp and len(own)):
                yield index, near, stamp

    def draw(item: tuple[int, np.ndarray, str]):
        index, near, stamp = item
        sample = dataset[index]
        prediction = objects.label_map(index, near + 1, sample)
        save_prediction(folders[0] / f'{sample["id"]}.png', prediction, space)
        picture = with_legend(overlay(sample['image'], prediction, space), [sample['id']], space, prediction)
        with atomic_file(folders[1] / f'{sample["id"]}.jpg', flush=False) as file:
            file.write(jpeg(picture, QUALITY))
        return sample['id'], stamp

    drawn = 0
    with journal:
        for name, stamp in in_threads(draw, todo()):
            journal.note(name, stamp)
            drawn += 1
    return drawn


class _Journal:
    """A line for each image that was drawn, so that an interrupted run can resume. stamps: by id, what its pictures are of."""

    def __init__(self, path: Path):
        self.path, self.stamps = path, dict[str, str]()
        try:
            lines = path.read_text(encoding='utf-8').splitlines()
        except (OSError, ValueError):
            lines = []
        for line in lines:
            try:
                name, stamp = json.loads(line)
                self.stamps[name] = stamp
            except (ValueError, TypeError):
                continue  # cut off by a kill

    def __enter__(self):
        with atomic_file(self.path, 'w') as file:  # without what is cut off, or has been replaced
            file.writelines(f'{json.dumps(item)}\n' for item in self.stamps.items())
        self._file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115 - closed by __exit__
        return self

    def __exit__(self, *_: object):
        self._file.close()

    def note(self, name: str, stamp: str):
        self._file.write(f'{json.dumps([name, stamp])}\n')
        self._file.flush()


def write_table(output: Path, photographs: Photographs, objects: Objects, keys: Sequence[bytes], cache: PrototypeCache,
                found: SavedClusters, names: Mapping[int, str]) -> Path:
    """Write segments.csv: a row for each photograph, with its cluster (from 1; the first of those with one name), the distance
    to the centre, and the nearest other cluster. Cells are empty for photographs without a mask. With instances there is a row
    for each object, whose name is in the column `object`. Returns its path."""
    labels, named = one_label(names, len(found)), objects.dataset.instances
    position = {name: index for index, name in enumerate(photographs.dataset.ids)}
    with atomic_file(output / TABLE, 'w') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([COLUMNS[0], OBJECT, *COLUMNS[1:]] if named else COLUMNS)
        for name, path in zip(photographs.ids, photographs.paths, strict=True):
            shown = path.relative_to(photographs.folder).as_posix().encode(errors='backslashreplace').decode()
            own = range(*objects.of_image(position[name]).indices(len(keys))) if name in position else range(0)
            if not own:
                writer.writerow([shown, *[''] * (len(COLUMNS) - 1 + named)])
            for index in own:
                distances = found.distances(cache[keys[index]][None])
                (first,), (second,) = nearest(distances, labels)
                cells = [objects.ids[index].encode(errors='backslashreplace').decode()] if named else []
                for label in (first, second):
                    near = [label + 1, names.get(label + 1, ''), f'{distances[0, labels == label].min():.4f}']
                    cells += ['', '', ''] if label < 0 else near
                writer.writerow([shown, *cells])
    return output / TABLE
