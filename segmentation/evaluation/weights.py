"""Pre-trained weights for the evaluations."""
from utils.checkpoint import load_exactly, load_file
from utils.errors import UserError

PREFIX = 'module.model_q.'


def query_weights(path):
    """State dict of the query network in a pre-training checkpoint: the dict with `model`, or a bare dict of
    `module.model_q.*`. Raises `UserError` when the file is missing, damaged, or holds no such network."""
    content = load_file(path)
    state = content.get('model', content) if isinstance(content, dict) else None
    weights = {key.removeprefix(PREFIX): value for key, value in state.items()
               if str(key).startswith(PREFIX)} if isinstance(state, dict) else {}
    if not weights:
        raise UserError(f"{path}: not a pre-training checkpoint: none of its keys starts with '{PREFIX}'")
    return weights


def load_pretraining_network(network, path):
    """Fill a `PretrainingNetwork` with exactly the keys of a pre-training checkpoint."""
    load_exactly(network, query_weights(path), path)
