"""Locations of the weights that an experiment names: files, `zoo://` names, and weights published with a backbone."""
from pathlib import Path

from easydict import EasyDict

from utils.errors import UserError
from utils.model_zoo.zoo import is_zoo, local_file


def require_files(p: EasyDict, file: str | Path, *keys: str) -> None:
    """Replace those `keys` of `p` (nested ones with a dot) that are `zoo://` names by paths of files; download these.

    Raises a `UserError` for the first key that names a file which is not there. `create_config` does not check this, since
    a run that goes on from a checkpoint needs no initial weights any more. file: the experiment's, for messages.
    """
    for key in keys:
        group, _, inner = key.rpartition('.')
        values = p[group] if group else p
        if not values[inner] or '://' in values[inner] and not is_zoo(values[inner]):  # published with a backbone
            continue
        values[inner] = path = local_file(values[inner], p.root_dir)
        if not Path(path).is_file():
            raise UserError(f'{file}: {key} names {path}, which does not exist: make it first, or correct the path')
