"""The checkpoint from which a training run resumes, and whether it is still the same run."""
import argparse
import logging
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict

from utils.checkpoint import load_data, load_file, previous_checkpoint
from utils.cli.log import start_log, warn_once
from utils.config import differing_keys, plain
from utils.errors import UserError
from utils.parallel import distributed, ranks
from utils.storage.run_folder import hold_folder, release_folders, set_aside
from utils.training.precision import choose_precision

# Experiment keys that may change between two halves of a run: they don't affect results, or only the initial weights.
# simulate_processes may, like the real number of processes: `Trainer` warns of what changes then.
FREE = ('num_workers', 'checkpoint_every', 'keep_every', 'on_bad_image', 'max_image_pixels', 'simulate_processes',
        'moco_kwargs.loss',  # forms of the same losses
        'val_db_kwargs.batch_size',
        'pretraining', 'backbone_kwargs.moco_state_dict', 'backbone_kwargs.state_dict')

log = logging.getLogger('maskcontrast')


@dataclass
class Start:
    """changed: experiment keys that differ from the run that it goes on from. seed, precision: of this run."""
    changed: list[str]
    seed: int
    precision: str

    def extra(self, p: EasyDict) -> dict[str, Any]:
        """Additional content of every checkpoint of the run. p: the configuration."""
        return {'seed': self.seed, 'precision': self.precision, 'config': plain(p)}


def start_run(output: Path, fresh: bool) -> None:
    """Hold the folder `output` of a training run, and start its log there. With `fresh` an existing folder is renamed first.
    Raises `UserError` while another run trains there."""
    aside = None
    with distributed.main_first():
        if ranks.is_main():
            existed = output.exists()
            hold_folder(output)
            if fresh and existed:
                release_folders()
                aside = set_aside(output)
                hold_folder(output)
        start_log(output / 'log_file.txt')
    if aside:
        log.info('The earlier run is now in %s', aside)


def earlier_state(path: str | Path) -> dict[str, Any] | None:
    """The training checkpoint at `path`, or None without one. A damaged one is set aside, and the one before takes its place.
    Only rank 0 needs the file.

    Raises `UserError` if all existing files are damaged, or if another machine has a later one than rank 0: the run would begin
    anew beside it. Whether its weights fit is for `Trainer.resume` to say.
    """
    seen = distributed.gather_objects((socket.gethostname(), _position(Path(path)) if ranks.local_rank() == 0 else None))
    further = distributed.broadcast_object(_further(seen) if seen else None)
    if further:
        host, position, own = further
        raise UserError(f'{path}: {host} has a checkpoint after {_words(position)}, rank 0 on {_rank_0s(own)}: use a shared '
                        f'folder as root_dir, or copy the file to rank 0, or delete it on {host}')
    return distributed.broadcast_object(_whole_state(Path(path)) if ranks.is_main() else None)


def _position(path: Path):
    """(epoch, step) of the checkpoint at `path`, without reading its tensors; None where there is no readable one."""
    try:
        state = load_data(path, mmap=True)
        return (int(state['epoch']), int(state.get('step', 0))) if isinstance(state, dict) else None
    except Exception:  # missing or damaged: `earlier_state` says so of the one that counts
        return None


def _further(seen: Sequence[tuple[str, tuple[int, int] | None]]):
    """Host and position of a checkpoint that is further than rank 0's, and rank 0's host and position; None without one."""
    own_host, own = seen[0]
    for host, position in seen:
        if position is not None and host != own_host and (own is None or position > own):
            return host, position, (own_host, own)
    return None


def _words(position: tuple[int, int]):
    return f'{position[0]} epochs and {position[1]} steps'


def _rank_0s(own: tuple[str, tuple[int, int] | None]):
    """In words, for a message."""
    host, position = own
    return f'{host} has {"none" if position is None else "one after " + _words(position)}'


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
            raise UserError(f'both checkpoints of this run are unreadable ({error.line()}; {second.line()}): start over with '
                            f'--fresh, which keeps this folder as {path.parent.name}.old-1') from second
        aside = f', was renamed to {set_aside(path).name}' if path.exists() else ''
        log.warning('%s%s: resuming from the previous checkpoint, %s', error.line(), aside, previous.name)
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
        warn_once('The precision changes from %s to %s', before, precision)
    return Start(changed, p.seed if p.seed is not None else drawn, precision)


def changed_keys(p: EasyDict, state: Mapping[str, Any] | None, exp_file: str | Path, override: bool, script: str) -> list[str]:
    """Keys that `script` reads whose values differ from those of the run that wrote `state`. Raises `UserError` for any,
    unless `override`.

    Published checkpoints carry no configuration and are taken as they are.
    """
    changed = differing_keys(p, state['config'], script, ignored=FREE) if state and 'config' in state else []
    if changed and not override:
        raise UserError(f"{exp_file} and flags: {', '.join(changed)} differ{'s' * (len(changed) == 1)} from the run that wrote "
                        f'{p.checkpoint}: give --override to resume anyway, or --fresh to start over')
    return changed
