"""The names of the clusters: names.yml, which clusters.html writes. Clusters with the same name count as one.

    clustering: 0f3a5b7c9d1e    # of which clusters the names are
    names:
      1: "dog"
      4: "dog"
"""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from data.label_space import LabelSpace
from evaluation.saved_clusters import FILE as SAVED
from evaluation.saved_clusters import SavedClusters
from utils.errors import UserError
from utils.storage.atomic import atomic_file
from utils.storage.run_folder import set_aside
from utils.storage.text import decoded_text
from utils.storage.yaml_files import parse_yaml

FILE = 'names.yml'
LONGEST = 60  # characters of a name

log = logging.getLogger('maskcontrast')


def read_names(path: str | Path) -> tuple[str, dict[int, str]]:
    """The clustering that a file of names is about, and its names by the cluster's number, from 1.

    Raises `UserError` for a file that is missing, unreadable or something else.
    """
    try:
        content = parse_yaml(decoded_text(path), path)
        names = content['names'] or {}
        for number, name in names.items():
            if type(number) is not int or number < 1:
                raise ValueError(f'{number} is not the number of a cluster')
            if type(name) not in (str, int, float):
                raise UserError(f'{path}: the name of cluster {number} is not a text: write it in quotes')
        return str(content['clustering']), {number: tidy(str(name)) for number, name in names.items() if tidy(str(name))}
    except FileNotFoundError as error:
        raise UserError(f'{path}: there is no such file of names') from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = ' '.join(str(getattr(error, 'strerror', None) or error).split())
        if isinstance(error, KeyError):
            reason = f'the key {error} is missing'
        raise UserError(f'{path}: the names of clusters could not be read ({reason}): save them from clusters.html '
                        'again') from error


def tidy(name: str) -> str:
    """A name on one line, without what can't be shown, and of 60 characters at most."""
    printable = ''.join(char if char.isprintable() else ' ' for char in name)
    return ' '.join(printable.split())[:LONGEST].strip()


def write_names(path: str | Path, clustering: str, names: Mapping[int, str]) -> None:
    """Write what `read_names` reads."""
    with atomic_file(path, 'w') as file:
        file.write(f'# Names of the clusters. Those with the same name are one.\nclustering: "{clustering}"\nnames:')
        file.writelines(f'\n  {number}: {_quoted(name)}' for number, name in sorted(names.items()))
        file.write('\n' if names else ' {}\n')


def _quoted(text: str):
    return yaml.safe_dump(text, default_style='"', width=10 ** 6).strip()


def one_label(names: Mapping[int, str], clusters: int) -> np.ndarray:
    """For each cluster the first one with the same name, counted from 0; unnamed clusters stay separate."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(names[number + 1], number) if number + 1 in names else number
                     for number in range(clusters)], int)


def named_space(names: Mapping[int, str], clusters: int) -> LabelSpace:
    """The ids in predictions as classes: 0 is background, cluster + 1 an object's, called by its name where it has one."""
    numbers = range(1, clusters + 1)
    return LabelSpace(('background', *(names.get(number, f'cluster {number}') for number in numbers)))


def names_for(found: SavedClusters, earlier: SavedClusters | None, path: str | Path) -> dict[int, str] | None:
    """Names of the clusters `found`: those at `path` where they are about these, or else those of the `earlier` clusters (None:
    there were none) that they are about, handed on: a cluster gets the name that most of its images had; new ones don't count.

    None if they belong to other clusters. Raises `UserError` for a cluster that is not there, and as `read_names` does.
    """
    clustering, names = read_names(path)
    if clustering == found.id:
        if unknown := [number for number in names if number > len(found)]:
            raise UserError(f'{path}: there are clusters 1 to {len(found)}, not {unknown[0]}')
        return names
    if earlier is None or clustering != earlier.id:
        return None
    before = dict(zip(_texts(earlier.keys), earlier.clusters.tolist(), strict=True))
    votes: dict[int, Counter[str | None]] = {}
    for key, cluster in zip(_texts(found.keys), found.clusters.tolist(), strict=True):
        if key in before:
            votes.setdefault(cluster + 1, Counter())[names.get(before[key] + 1)] += 1
    handed_on = {number: name for number, count in votes.items() for name, most in count.most_common(1)
                 if name and 2 * most > count.total()}
    log.info('%d of %d clusters took their names from the earlier ones: check them in clusters.html', len(handed_on),
             len(found))
    if lost := sorted(set(names.values()) - set(handed_on.values())):
        log.warning('No cluster has these names any more: %s', ', '.join(lost))
    return handed_on


def _texts(keys: np.ndarray) -> Sequence[bytes]:
    return [key.tobytes() for key in keys]


def settle_names(path: str | Path, found: SavedClusters, earlier: SavedClusters | None, given: str | None) -> dict[int, str]:
    """The names of the clusters `found`, which are then at `path`; an earlier file is renamed if it differs.

    given: a file of names in place of that at `path`, or None. earlier: as in `names_for`.
    Raises `UserError` if the `given` names are of other clusters, and as `read_names` does.
    """
    path = Path(path)
    source = Path(given).expanduser() if given else path
    if not given and not path.exists():
        return {}
    names = names_for(found, earlier, source)
    if names is None and given:
        raise UserError(f'{given}: these names belong to other clusters: save them from {path.with_name("clusters.html")}')
    if path.exists() and (names is None or read_or_none(path) != (found.id, names)):
        log.info('The names of earlier clusters are now in %s', set_aside(path))
    if names is None:
        return {}
    write_names(path, found.id, names)
    return names


def read_or_none(path: str | Path) -> tuple[str, dict[int, str]] | None:
    """As `read_names`, but None if there is nothing to read."""
    try:
        return read_names(path)
    except UserError:
        return None


def clusters_and_names(folder: Path, given: str | None) -> tuple[SavedClusters, dict[int, str]]:
    """The clusters in the folder of own_clusters.py, and their names: from the file `given`, or the folder's if it has one.

    Raises `UserError` for a folder without clusters, and for names of other ones.
    """
    found = SavedClusters.load(folder / SAVED)
    path = Path(given).expanduser() if given else folder / FILE
    if not given and not path.exists():
        return found, {}
    names = names_for(found, None, path)
    if names is None:
        raise UserError(f'{path}: these names belong to other clusters than {folder / SAVED}: save them from the '
                        'clusters.html beside it')
    return found, names
