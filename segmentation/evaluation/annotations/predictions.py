"""The predictions of a run: their images, and the names of their values."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.files import IMAGE, SUFFIXES
from data.image_folder import ImageFolder
from data.label_space import label_space
from evaluation.annotations.labelled_images import (
    Categories,
    LabelledImages,
    class_categories,
    cluster_categories,
    instance_folder,
)
from evaluation.cluster_names import FILE as NAMES
from evaluation.cluster_names import read_names
from evaluation.results import RESULTS
from evaluation.saved_clusters import FILE as SAVED
from evaluation.saved_clusters import SavedClusters
from utils.config.keys import EVAL
from utils.errors import UserError

FOLDER = 'predictions'
OWN, SEGMENT = 'own_clusters.py', 'segment.py'
SAME = ''  # --instances: those of the masks that the run was made with, if there are any


def predictions_of(folder: Path, db_root: Path, names: str | None, named_only: bool, instances: str | None) -> LabelledImages:
    """The predictions in the folder of a run's results, with the images that they are of.

    names: a names.yml that replaces the one of the clusters. named_only: whether clusters without a name are void. instances:
    as `instance_folder` takes it, or SAME. Raises `UserError` if the folder does not hold a finished run, for names of other
    clusters, and for a missing image.
    """
    made = folder / FOLDER
    if not made.is_dir():
        raise UserError(f'{made} is missing: --predictions names the folder of a finished run, which contains predictions/')
    config, results = _read(folder / 'config.yml', yaml.safe_load), _read(folder / RESULTS, json.loads, required=False)
    name = config.get('data_set') or config.get('val_db_name')
    if not isinstance(name, str):
        raise UserError(f'{folder / "config.yml"} names no data set: run the script again that made it')
    data_set = db_root / name  # or itself, where it is a whole path
    saliency = config.get('saliency') or (config.get('val_db_kwargs') or {}).get('saliency')
    categories = _categories(folder, config, results, data_set, names, named_only)
    ids = sorted(path.relative_to(made).as_posix().removesuffix('.png') for path in made.rglob('*.png'))
    given = (config.get('resolved') or {}).get('images')
    photographs = ImageFolder(given) if config.get('script') == EVAL and given and Path(given).is_dir() else None
    if photographs:
        root, by_id = photographs.folder, dict(zip(photographs.ids, photographs.paths, strict=True))
    else:
        root, by_id = data_set / 'images', {name: data_set / 'images' / f'{name}{SUFFIXES[IMAGE][0]}' for name in ids}
    missing = next((name for name in ids if name not in by_id or not by_id[name].is_file()), None)
    if missing is not None:
        raise UserError(f'{made / missing}.png: its image is no longer in {root}: run the script that made it again')
    own = None if photographs else saliency
    maps = instance_folder(data_set, own, required=False) if instances == SAME else instance_folder(data_set, instances)
    return LabelledImages(f'predictions of {folder.name}', {name: by_id[name] for name in ids}, root, made, categories,
                          instances=maps, shown=photographs is not None)


def _categories(folder: Path, config: Mapping[str, Any], results: Mapping[str, Any], data_set: Path, given: str | None,
                named_only: bool) -> Categories:
    """The names of the values: the classes of the data set, or clusters."""
    own, segmented = results.get('script') == OWN, 'clustering' in config
    if not (own or segmented):
        if given or named_only:
            raise UserError(f'{folder}: only clusters of {OWN} and {SEGMENT} have names: omit --names and --named_only')
        if 'n_clusters' in results and 'IoU' not in results:
            return cluster_categories({}, results['n_clusters'] - 1)
        return class_categories(label_space(data_set))
    source = results if own else config
    drawn = {int(number): str(name) for number, name in (source.get('names') or {}).items()}
    clustering = SavedClusters.load(folder / SAVED).id if own else config['clustering']
    path = Path(given).expanduser() if given else folder / NAMES
    names = drawn
    if given or path.exists():
        clusters, names = read_names(path)
        if clusters != clustering:
            raise UserError(f'{path}: these names belong to other clusters than {folder}: save them from the '
                            'clusters.html of these')
    if names != drawn and len(set(drawn.values())) < len(drawn):  # which clusters were one can't be undone
        raise UserError(f'{folder}: its predictions were made with other names than those in {path}: '
                        f'{"make mine" if own else "make segment"} NAMES={path} makes them again')
    return cluster_categories(names, source['n_clusters'] - 1, named_only)


def _read(path: Path, parse: Any, required: bool = True) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding='utf-8'))
        if not isinstance(content, dict):
            raise ValueError('no mapping')
        return content
    except FileNotFoundError as error:
        if not required:
            return {}
        raise UserError(f'{path} is missing: --predictions names the folder of a finished run') from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f'{path} could not be read ({" ".join(str(error).split())}): run the script '
                        'again that made it') from error
