"""Weights of the backbone."""
import pickle
import sys
from http.client import HTTPException

import torchvision

from utils.checkpoint import load_exactly, load_file
from utils.errors import UserError
from utils.model_zoo.sources import TORCHVISION

WEIGHTS = {'resnet18': torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
           'resnet50': torchvision.models.ResNet50_Weights.IMAGENET1K_V1}
MOCO_PREFIX = 'module.encoder_q.'


def load_initial_weights(backbone, name, pretraining=None, moco_state_dict=None, state_dict=None):
    """Fill `backbone` (a `Backbone` called `name`) and return where the weights came from, or None for random ones.

    pretraining: 'imagenet_classification' (torchvision's IMAGENET1K_V1, or the file `state_dict`), 'imagenet_moco' (the
    MoCo v2 checkpoint `moco_state_dict`) or None (random, or the file `state_dict`: a plain ResNet state dict).
    Raises `UserError` when a file is absent or unreadable, or when its keys, `fc.*` aside, are not exactly the
    backbone's; the message lists them.
    """
    if pretraining == 'imagenet_moco':
        if not moco_state_dict:
            raise UserError('pretraining: imagenet_moco needs backbone_kwargs.moco_state_dict, a MoCo v2 checkpoint')
        weights, source = _moco(load_file(moco_state_dict), moco_state_dict), moco_state_dict
    elif state_dict:
        weights, source = load_file(state_dict), state_dict
    elif pretraining == 'imagenet_classification':
        weights, source = _torchvision(WEIGHTS[name])
    else:
        return None
    load_exactly(backbone, _without_classifier(weights, source), source)
    return source


def backbone_weights(source, name):
    """State dict, without `fc.*`, of a ResNet called `name`: from a file with a MoCo v2 checkpoint or a plain ResNet state
    dict, or torchvision's own (`torchvision://resnet50-IMAGENET1K_V1`). Raises `UserError` as `load_initial_weights` does.
    """
    if source.startswith(TORCHVISION):
        weights = _torchvision(_torchvision_weights(source, name))[0]
    else:
        weights = load_file(source)
        if isinstance(weights, dict) and isinstance(weights.get('state_dict'), dict):
            weights = _moco(weights, source)
        elif isinstance(weights, dict) and isinstance(weights.get('model'), dict):
            raise UserError(f'{source}: a checkpoint of this project, which head: deeplab reads; head: none takes a MoCo v2 '
                            'checkpoint or a plain ResNet state dict')
    return _without_classifier(weights, source)


def _without_classifier(weights, source):
    if not isinstance(weights, dict):
        raise UserError(f'{source}: expected a ResNet state dict (names and tensors), found {type(weights).__name__}')
    return {key: value for key, value in weights.items() if not str(key).startswith('fc.')}


def _moco(content, path):
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a MoCo v2 checkpoint: it has no 'state_dict'")
    weights = {key.removeprefix(MOCO_PREFIX): value for key, value in state.items() if key.startswith(MOCO_PREFIX)}
    if not weights:
        raise UserError(f"{path}: not a MoCo v2 checkpoint: no key of its state_dict starts with '{MOCO_PREFIX}'")
    return weights


def _torchvision_weights(source, name):
    """The member of torchvision's enumeration that `torchvision://<name>-<member>` names."""
    members = {f'{TORCHVISION}{name}-{member}': weights for member, weights in type(WEIGHTS[name]).__members__.items()}
    if source not in members:
        raise UserError(f"{source}: for backbone: {name} torchvision has {', '.join(members)}")
    return members[source]


def _torchvision(weights):
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True), weights.url
    except (OSError, RuntimeError, EOFError, HTTPException, pickle.UnpicklingError) as error:
        raise UserError(f'{weights.url} could not be fetched or read ({error}): download it by hand and name the file in the '
                        'experiment (backbone_kwargs.state_dict in pre-training, pretraining in evaluations)') from error
