"""The checkpoints of a pre-training that are to be scored, also while it runs."""
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from evaluation.learning_curve.record import Curve
from utils.checkpoint.kept import KEPT_FOLDER, kept_checkpoints
from utils.errors import UserError
from utils.storage.run_folder import is_held

log = logging.getLogger('maskcontrast')


def run_folder(name: str, root_dir: str) -> Path:
    """The folder of a run, from its path or from its name below `root_dir`. Raises `UserError` if there is none."""
    for folder in (Path(name), Path(root_dir) / name):
        if folder.is_dir():
            return folder.resolve()
    raise UserError(f'--run {name}: this folder exists neither here nor in {root_dir}')


def first_checkpoint(run: Path, follow: bool, poll: float) -> Path:
    """The first checkpoint that the run has kept; with `follow`, wait for it as long as the run continues. Raises `UserError`
    if there is none."""
    while True:
        running = is_held(run)  # before listing its checkpoints, since it may keep one just before it ends
        kept = kept_checkpoints(run)
        if kept:
            return next(iter(kept.values()))
        if not (follow and running):
            raise UserError(f'{run / KEPT_FOLDER}: there is no checkpoint to score: run main.py with keep_every (epochs '
                            'between checkpoints) in the experiment')
        time.sleep(poll)


def new_checkpoints(curve: Curve, run: Path, follow: bool, poll: float) -> Iterator[tuple[int, Path]]:
    """Epochs and files that `curve` lacks, in order, until there are no more: with `follow`, until the run has ended too."""
    while True:
        running = is_held(run)
        missing = curve.missing(run)
        if missing:
            yield next(iter(missing.items()))
        elif follow and running:
            time.sleep(poll)
        else:
            return
