"""From a configuration to a network."""
from models.backbone_weights import load_initial_weights
from models.networks import BackboneNetwork, LinearNetwork, PretrainingNetwork
from models.resnet import CHANNELS, Backbone
from utils.errors import UserError
from utils.model_zoo.zoo import local_file


def get_model(p):
    """The network that the configuration `p` (a mapping) describes, with its initial backbone weights.

    The pre-training network where `kmeans_eval` is True or, without that key, `model_kwargs` or `moco_kwargs` are given;
    else the linear network with `num_classes` (20, without background) + `has_bg` (True) outputs. With `head: none` both
    are made of the backbone alone (baselines).
    Raises `UserError` for an unknown backbone and for unreadable or unfitting weights.
    """
    if p['backbone'] not in CHANNELS:
        raise UserError(f"backbone must be one of {', '.join(CHANNELS)}, not '{p['backbone']}'")
    kwargs = p.get('backbone_kwargs') or {}
    backbone = Backbone(p['backbone'], dilated=kwargs.get('dilated', True))
    moco = kwargs.get('moco_state_dict')
    if kwargs.get('pretraining') == 'imagenet_moco' and moco and 'root_dir' in p:
        moco = local_file(moco, p['root_dir'])  # for who calls this without main.py
    load_initial_weights(backbone, p['backbone'], kwargs.get('pretraining'), moco, kwargs.get('state_dict'))
    decoder = p.get('head', 'deeplab') != 'none'
    if not p.get('kmeans_eval', 'model_kwargs' in p or 'moco_kwargs' in p):
        return LinearNetwork(backbone, p.get('num_classes', 20) + int(p.get('has_bg', True)), decoder)
    if not decoder:
        return BackboneNetwork(backbone)
    head = p.get('model_kwargs') or {}
    return PretrainingNetwork(backbone, ndim=head.get('ndim', 32), upsample=head.get('upsample', True),
                              use_classification_head=head.get('use_classification_head', True))
