"""What a run goes on from, and whether it is still the same run."""
from pathlib import Path

from utils.checkpoint import load_file
from utils.config import differing_keys
from utils.errors import UserError

FREE = ('num_workers', 'checkpoint_every', 'on_bad_image', 'backbone_kwargs.moco_state_dict',
        'backbone_kwargs.state_dict')  # experiment keys that may change between two halves of a run


def earlier_state(path):
    """The checkpoint at `path`, or None without one. Raises `UserError` when the file is not one of main.py.

    Whether its weights fit is for `Trainer.resume` to say.
    """
    if not Path(path).exists():
        return None
    state = load_file(path)
    if not isinstance(state, dict) or not isinstance(state.get('epoch'), int) or not isinstance(state.get('seed', 0), int):
        raise UserError(f'{path}: not a checkpoint of main.py: move it away, or start over with --fresh')
    return state


def changed_keys(p, state, exp_file, override):
    """Keys of the experiment that differ from the run that wrote `state`. Raises `UserError` for any, unless `override`.

    Published checkpoints carry no configuration and are taken as they are.
    """
    changed = differing_keys(p, state['config'], ignored=FREE) if state and 'config' in state else []
    if changed and not override:
        raise UserError(f"{exp_file}: {', '.join(changed)} differ{'s' * (len(changed) == 1)} from the run that wrote "
                        f'{p.checkpoint}: give --override to go on all the same, or --fresh to start over')
    return changed
