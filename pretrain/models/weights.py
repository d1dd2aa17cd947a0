"""Initial weights of the backbone."""
import torchvision

from utils.checkpoint import load_exactly, load_file
from utils.errors import UserError

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
        weights, source = _moco(moco_state_dict), moco_state_dict
    elif state_dict:
        weights, source = load_file(state_dict), state_dict
    elif pretraining == 'imagenet_classification':
        weights, source = _torchvision(WEIGHTS[name])
    else:
        return None
    if not isinstance(weights, dict):
        raise UserError(f'{source}: expected a ResNet state dict (names and tensors), found {type(weights).__name__}')
    load_exactly(backbone, {key: value for key, value in weights.items() if not str(key).startswith('fc.')}, source)
    return source


def _moco(path):
    content = load_file(path)
    state = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a MoCo v2 checkpoint: it has no 'state_dict'")
    weights = {key.removeprefix(MOCO_PREFIX): value for key, value in state.items() if key.startswith(MOCO_PREFIX)}
    if not weights:
        raise UserError(f"{path}: not a MoCo v2 checkpoint: no key of its state_dict starts with '{MOCO_PREFIX}'")
    return weights


def _torchvision(weights):
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True), weights.url
    except (OSError, RuntimeError) as error:
        raise UserError(f'{weights.url} could not be fetched ({error}): download it by hand and name the file in '
                        'backbone_kwargs.state_dict') from error
