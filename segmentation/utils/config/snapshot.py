"""config.yml: the configuration as run, with versions and revision. It identifies the script that owns the folder."""
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from utils.config.create import plain
from utils.config.keys import EVAL, PROBES
from utils.config.values import TREE
from utils.errors import UserError
from utils.storage.atomic import atomic_file

PACKAGES = ('torch', 'torchvision', 'timm', 'numpy', 'opencv-python-headless', 'scipy', 'scikit-learn', 'pydensecrf2')


def write_config(path: str | Path, p: Mapping[str, Any], **resolved: Any) -> None:
    """Write the configuration as run: the keys of `p`, what was `resolved` (device, precision...), the number of threads, on
    which the rounding of sums depends, versions, revision."""
    record = {**plain(p), **resolved, 'threads': _threads(), 'command': ' '.join(sys.argv), 'versions': _versions(),
              'git_revision': _revision()}
    with atomic_file(path, 'w') as file:
        yaml.safe_dump(record, file, sort_keys=False)


def require_own_folder(folder: str | Path, script: str, exp_file: str | Path) -> None:
    """Raise a `UserError` if `folder`, the output of an experiment, has results of another script: both would write their log,
    configuration and results there. eval.py, which writes below it, may share that of the training."""
    owner = folder_owner(folder)
    if owner not in (None, script) and not (EVAL in (owner, script) and {owner, script} <= set(PROBES)):
        raise UserError(f'{folder}: this folder belongs to {owner}, and {exp_file} is for {script}: rename the file, since '
                        'results go to a folder of that name')


def folder_owner(folder: str | Path) -> str | None:
    """The script whose results are in a folder, or None where there are none."""
    folder = Path(folder)
    for name, read in (('config.yml', yaml.safe_load), ('results.json', json.loads)):
        try:
            script = read((folder / name).read_text(encoding='utf-8'))['script']
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if isinstance(script, str):
            return script
    return EVAL if (folder / 'eval').is_dir() else None


def _threads():
    """Of this process's PyTorch, where it has loaded it."""
    torch = sys.modules.get('torch')
    return torch.get_num_threads() if torch else None


def _versions():
    return {'python': platform.python_version(), **{name: version(name) for name in PACKAGES if _installed(name)}}


def _installed(name: str):
    try:
        return bool(version(name))
    except ImportError:
        return False


def _revision():
    """Of the checkout that the script tree is in, with a + for uncommitted changes; None outside one."""
    def git(*words: str):
        return subprocess.run(['git', '-C', str(TREE), *words], capture_output=True, text=True, check=False)
    try:
        head = git('rev-parse', 'HEAD')
        changed = git('status', '--porcelain', '--untracked-files=no').stdout.strip()
    except OSError:
        return None
    return head.stdout.strip() + ('+' if changed else '') if head.returncode == 0 else None
