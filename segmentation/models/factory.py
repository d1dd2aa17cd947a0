"""From a configuration to a network."""
from collections.abc import Mapping
from typing import Any

from models.backbone_weights import load_initial_weights
from models.backbones import build_backbone
from models.networks import BackboneNetwork, LinearNetwork, PretrainingNetwork
from utils.model_zoo.zoo import local_file


def get_model(p: Mapping[str, Any]) -> PretrainingNetwork | BackboneNetwork | LinearNetwork:
    """The network that the configuration `p` describes, with its initial backbone weights.

    The pre-training network where `kmeans_eval` is True or, without that key, `model_kwargs` or `moco_kwargs` are given;
    otherwise the linear network with `num_classes` (20, without background) + `has_bg` (True) outputs. With `head: linear` both
    have linear layers on the backbone's grid in the decoder's place, with `head: none` the backbone alone (baselines). Raises
    `UserError` for an unknown backbone and for unreadable or unfitting weights.
    """
    kwargs = p.get('backbone_kwargs') or {}
    backbone = build_backbone(p['backbone'], kwargs)
    moco = kwargs.get('moco_state_dict')
    if kwargs.get('pretraining') == 'imagenet_moco' and moco and 'root_dir' in p:
        moco = local_file(moco, p['root_dir'])  # for callers other than main.py
    load_initial_weights(backbone, p['backbone'], kwargs.get('pretraining'), moco, kwargs.get('state_dict'))
    kind = p.get('head', 'deeplab')
    decoder = kind == 'deeplab'
    if not p.get('kmeans_eval', 'model_kwargs' in p or 'moco_kwargs' in p):
        return LinearNetwork(backbone, p.get('num_classes', 20) + int(p.get('has_bg', True)), decoder)
    if kind == 'none':
        return BackboneNetwork(backbone)
    head = p.get('model_kwargs') or {}
    return PretrainingNetwork(backbone, ndim=head.get('ndim', 32), upsample=head.get('upsample', True),
                              use_classification_head=head.get('use_classification_head', True), decoder=decoder)
