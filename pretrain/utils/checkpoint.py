"""Checkpoints: written whole or not at all, read without running code from them, loaded with exactly the right keys."""
import pickle
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import atomic_file


def save_checkpoint(state, path):
    """Write `state` (tensors, numbers, strings, lists and dicts) to `path`, which is replaced only when all is on disk.

    Raises `UserError` when it can't be written (a full disk, say); the file that was there stays whole.
    """
    with atomic_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch reports that the stream below it failed
            raise OSError(str(error).splitlines()[0]) from error


def load_file(path):
    """The content of a file made by torch.save, on the CPU. Nothing but tensors and plain values is accepted.

    Raises `UserError` when the file is missing, damaged, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: there is no such checkpoint file')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and 'weights_only' in str(error) and 'GLOBAL' in str(error):
            raise UserError(f'{path}: refused, since loading it would run code that it carries: '
                            'save it again as a plain state dict of tensors') from error
        reason = (str(error).splitlines() or [''])[0] or type(error).__name__
        if 'weights_only' in reason:  # PyTorch's advice is to run what the file says
            reason = 'its content is not one of torch.save'
        raise UserError(f'{path}: damaged, or not a PyTorch checkpoint ({reason}): fetch or make it again') from error


def load_exactly(module, state, source, missing=(), leftover=()):
    """Load `state` into `module` when the keys that don't match are exactly `missing` (in `state`) and `leftover`.

    source: the file's name, for messages. Batch norm's `num_batches_tracked` may be absent, as in files of before 2018.
    Raises `UserError` that lists the keys that are missing, left over, or of another shape. On an error `module` is
    unchanged.
    """
    own = module.state_dict()
    counters = {key for key in own if key.endswith('num_batches_tracked')}
    absent = set(own) - set(state) - set(missing) - counters
    surplus = set(state) - set(own) - set(leftover)
    problems = []
    if absent:
        problems.append(f'missing {_some(absent)}')
    if surplus:
        problems.append(f'left over {_some(surplus)}')
    if set(missing) & set(state):
        problems.append(f'should not be there: {_some(set(missing) & set(state))}')
    if set(leftover) - set(state):
        problems.append(f'missing {_some(set(leftover) - set(state))}')
    shapes = [key for key in own if key in state and key not in missing
              and tuple(getattr(state[key], 'shape', ())) != tuple(own[key].shape)]
    if shapes:
        problems.append(f'of another shape {_some(shapes)}')
    if problems:
        raise UserError(f'{source}: its weights do not fit this network: {"; ".join(problems)}')
    module.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def _some(keys, most=5):
    keys = sorted(map(str, keys))
    more = f' and {len(keys) - most} more' if len(keys) > most else ''
    return ', '.join(keys[:most]) + more
