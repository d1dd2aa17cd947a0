"""What a training run goes on from, and whether it is still the same run."""
import argparse
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict

from utils.checkpoint import load_file, previous_checkpoint
from utils.cli.log import start_log, warn_once
from utils.config import differing_keys
from utils.errors import UserError
from utils.parallel import distributed, ranks
from utils.storage.run_folder import hold_folder, release_folders, set_aside
from utils.training.precision import choose_precision

# Experiment keys that may change between two halves of a run: no number depends on them, or only the initial weights do.
# simulate_processes may, like the real number of processes: `Trainer` warns of what changes then.
FREE = ('num_workers', 'checkpoint_every', 'on_bad_image', 'simulate_processes', 'val_db_kwargs.batch_size', 'pretraining',
        'backbone_kwargs.moco_state_dict', 'backbone_kwargs.state_dict')

log = logging.getLogger('maskcontrast')


@dataclass
class Start:
    """changed: experiment keys that differ from the run that it goes on from. seed, precision: of this run."""
    changed: list[str]
    seed: int
    precision: str


def start_run(output: Path, fresh: bool) -> logging.Logger:
    """Start the log of a training run in the folder `output` and return it. With `fresh` that folder, if there is one, is
    renamed before. Raises `UserError` while another run trains there."""
    aside = None
    with distributed.main_first():
        if ranks.is_main():
            existed = output.exists()
            hold_folder(output)
            if fresh and existed:
                release_folders()
                aside = set_aside(output)
                hold_folder(output)
        started = start_log(output / 'log_file.txt')
    if aside:
        started.info('The earlier run is now in %s', aside)
    return started


def earlier_state(path: str | Path) -> dict[str, Any] | None:
    """The training checkpoint at `path`, or None without one. A damaged one is set aside, and the one before takes its place.
    Only rank 0 needs the file.

    Raises `UserError` when no file that is there is a whole one. Whether its weights fit is for `Trainer.resume` to say.
    """
    return distributed.broadcast_object(_whole_state(Path(path)) if ranks.is_main() else None)


def _whole_state(path: Path):
    previous = previous_checkpoint(path)
    if not path.exists() and not previous.exists():
        return None
    try:
        return _training_state(path)
    except UserError as error:
        if not previous.exists():
            raise
        try:
            state = _training_state(previous)
        except UserError as second:
            raise UserError(f'neither checkpoint of this run can be read ({error.line()}; {second.line()}): start over with '
                            f'--fresh, which keeps this folder as {path.parent.name}.old-1') from second
        aside = f', is set aside as {set_aside(path).name}' if path.exists() else ''
        log.warning('%s%s: going on from the checkpoint before, %s', error.line(), aside, previous.name)
        return state


def _training_state(path: Path):
    state = load_file(path, check=True)
    whole = (isinstance(state, dict) and isinstance(state.get('model'), dict) and isinstance(state.get('epoch'), int)
             and isinstance(state.get('seed', 0), int))
    if not whole:
        raise UserError(f'{path}: not a checkpoint of a training run: move it away, or start over with --fresh')
    return state


def resolve_start(p: EasyDict, state: Mapping[str, Any] | None, args: argparse.Namespace, device: torch.device,
                  script: str) -> Start:
    """Where a run of `script` starts. The training flags in `args` win over the experiment `p`, and that over `state`, the
    earlier checkpoint's or None. `p.seed` becomes the seed that was asked for, now or at the first start."""
    if args.seed is not None:
        p.seed = args.seed
    elif p.seed is None and state:
        p.seed = state.get('config', {}).get('seed')
    changed = changed_keys(p, state, args.config_exp, args.override, script)
    fresh = distributed.broadcast_object(secrets.randbelow(2 ** 31))
    drawn = (state or {}).get('seed', fresh)
    before = (state or {}).get('precision')
    precision = choose_precision(before if args.amp == 'auto' and before else args.amp, device)
    if before and before != precision:
        warn_once('The precision was %s before, and is %s from here on', before, precision)
    return Start(changed, p.seed if p.seed is not None else drawn, precision)


def changed_keys(p: EasyDict, state: Mapping[str, Any] | None, exp_file: str | Path, override: bool, script: str) -> list[str]:
    """Keys that `script` reads whose values differ from those of the run that wrote `state`. Raises `UserError` for any,
    unless `override`.

    Published checkpoints carry no configuration and are taken as they are.
    """
    changed = differing_keys(p, state['config'], script, ignored=FREE) if state and 'config' in state else []
    if changed and not override:
        raise UserError(f"{exp_file} and flags: {', '.join(changed)} differ{'s' * (len(changed) == 1)} from the run that wrote "
                        f'{p.checkpoint}: give --override to go on all the same, or --fresh to start over')
    return changed
