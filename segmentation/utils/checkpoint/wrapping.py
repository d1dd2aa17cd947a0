"""State dicts as other code stores them: inside a dict of other values, with the prefixes of the modules around the network."""
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError

HOLDERS = ('model', 'state_dict', 'model_state_dict')  # where training code of all kinds keeps the weights
WRAPPERS = ('module', '_orig_mod')  # attributes of DistributedDataParallel or DataParallel, and of torch.compile


def unwrapped(content: Any, source: object) -> dict[str, Any]:
    """The state dict in a file's content, under the network's own names. source: the file, for the message.

    Where two names would be equal without their prefixes, all stay as they are. Raises `UserError` for other content."""
    state, seen = content, 0
    while isinstance(state, dict) and seen < len(HOLDERS):
        holder = next((name for name in HOLDERS if isinstance(state.get(name), Mapping)), None)
        if holder is None:
            break
        state, seen = state[holder], seen + 1
    if not isinstance(state, dict) or any(name in state and not hasattr(state[name], 'shape') for name in HOLDERS):
        raise UserError(f'{source}: not a weights file: it contains no state dict (names and tensors)')
    plain = {_plain(str(key)): value for key, value in state.items()}
    return plain if len(plain) == len(state) else dict(state)


def _plain(key: str):
    return '.'.join(part for part in key.split('.') if part not in WRAPPERS)
