"""Files of weights, of torch.save or safetensors: read without running code from them, and loaded into a network with exactly
the right keys."""
import pickle
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from utils.checkpoint.numpy_data import STAND_INS
from utils.errors import UserError, one_line

SHOWN = 5  # keys in a message
SAFETENSORS = '.safetensors'


def load_data(file: str | Path | IO[bytes], **options: Any) -> Any:
    """The content of a file of torch.save, on the CPU: tensors, plain values, and NumPy's numbers and arrays. Nothing else is
    accepted, nor is code run. options: of torch.load. Raises what that raises, which may be any exception."""
    with torch.serialization.safe_globals(list(STAND_INS)):
        return torch.load(file, map_location='cpu', weights_only=True, **options)


def load_file(path: str | Path, check: bool = False) -> Any:
    """The content of a file made by torch.save, or of one called `.safetensors`, on the CPU. Nothing but tensors and plain
    values is accepted.

    check: whether to compare the checksums that torch.save wrote, which torch.load does not look at.
    Raises `UserError` if the file is missing, damaged, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: this checkpoint file does not exist')
    if path.suffix == SAFETENSORS:
        return _load_safetensors(path)
    try:
        if check:
            _check_sums(path)
        return load_data(path)
    except Exception as error:  # damaged bytes can make the unpickler raise any exception
        if isinstance(error, pickle.UnpicklingError) and 'weights_only' in str(error) and 'GLOBAL' in str(error):
            raise UserError(f'{path}: refused, since loading it would run code in it: save it again as a plain state dict '
                            'of tensors') from error
        reason = (str(error).splitlines() or [''])[0]
        if not reason or reason.isdecimal():  # of a KeyError it is a number
            reason = type(error).__name__
        if 'weights_only' in reason:  # PyTorch's advice is to run what the file says
            reason = 'it was not written by torch.save'
        raise UserError(f'{path}: damaged, or not a PyTorch checkpoint ({reason}): download or make it again') from error


def _load_safetensors(path: Path):
    from safetensors.torch import load_file as load_tensors  # it comes with timm
    try:
        return load_tensors(path)
    except Exception as error:  # damaged bytes: its exceptions have no base of their own
        raise UserError(f'{path}: damaged, or not a safetensors file ({one_line(error)}): download it again') from error


def _check_sums(path: Path):
    """Raise BadZipFile for an archive with a damaged member. Files from before PyTorch 1.6 are not archives."""
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':
            return
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f'the checksum of {damaged} does not match')


def load_exactly(module: torch.nn.Module, state: Mapping[str, Any], source: str | Path, missing: Collection[str] = (),
                 leftover: Collection[str] = ()) -> None:
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


def _some(keys: Iterable[str]):
    keys = sorted(map(str, keys))
    more = f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
    return ', '.join(keys[:SHOWN]) + more
