"""Pre-trained weights for the evaluations."""
import logging

from models.factory import get_model
from utils.checkpoint import load_exactly, load_file
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

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


def pretraining_network(p, path):
    """The `PretrainingNetwork` that `p` describes, with exactly the weights of the checkpoint at `path`, or random ones
    where that is None. Initial weights of its backbone are no business of an evaluation."""
    network = get_model({**p, 'backbone_kwargs': {'dilated': p.backbone_kwargs.dilated}})
    if path:
        load_exactly(network, query_weights(path), path)
    else:
        log.warning('pretraining is null: the network has random weights')
    return network
