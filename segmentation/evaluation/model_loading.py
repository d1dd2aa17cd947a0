"""Networks for the evaluations, with weights from files."""
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from easydict import EasyDict
from torch import nn

from models.backbone_weights import backbone_weights, load_initial_weights, log_weights
from models.backbones import backbone_names, fits, grid_kwargs, matching_backbones
from models.factory import get_model
from models.networks import BackboneNetwork, LinearNetwork, PretrainingNetwork
from utils.checkpoint import load_exactly, load_file, unwrapped
from utils.cli.log import warn_once
from utils.errors import UserError
from utils.model_zoo.zoo import is_zoo, zoo_file

QUERY = 'model_q.'  # the prefix of the query network, as `unwrapped` leaves it
CLASSIFIER = {'deeplab': ('decoder.4.weight', 'decoder.4.bias'),  # all that the linear classifier trains, by `head`
              'linear': ('linear.weight', 'linear.bias'), 'none': ('linear.weight', 'linear.bias')}
DECODER = 'decoder.'                                 # further weights of `head: deeplab`
HEADS = ('head.weight', 'head.bias')                 # of the pre-training network, and with them:
SALIENCY_HEAD = 'classification_head.weight'
DEVIATION = 0.01  # of the classifier's initial weights


def query_weights(path: str | Path) -> dict[str, Any]:
    """State dict of the query network in a file, float32: a pre-training checkpoint, one that `keep_every` kept (in half
    precision), the weights in one, or those of the query network alone, without anything that `unwrapped` removes. Raises
    `UserError` if the file is missing, damaged, or does not hold such a network."""
    weights = {key: value.float() if getattr(value, 'dtype', None) == torch.float16 else value
               for key, value in _query_part(_state(path)).items()}
    if not weights:
        raise UserError(f"{path}: not a pre-training checkpoint: none of its keys starts with 'module.{QUERY}': name the "
                        'checkpoint.pth.tar of main.py')
    return weights


def _query_part(state: Mapping[str, Any]):
    """Of a pre-training network's state dict; empty for that of others."""
    query = {key.removeprefix(QUERY): value for key, value in state.items() if key.startswith(QUERY)}
    return query or ({**state} if set(HEADS) <= set(state) else {})


def embedding_network(p: EasyDict, path: str | Path | None) -> PretrainingNetwork | BackboneNetwork:
    """The network whose prototypes are clustered or retrieved, with exactly the weights at `path` (None: random ones).

    A `PretrainingNetwork` as `p` describes it, from a pre-training checkpoint; with `head: none` a `BackboneNetwork`, from
    what `backbone_weights` reads. An evaluation does not need initial weights of the backbone.
    """
    network = get_model({**p, 'backbone_kwargs': grid_kwargs(p.backbone_kwargs)})
    assert not isinstance(network, LinearNetwork)  # kmeans_eval is True
    if path:
        weights = frozen_weights(p, path)
        load_exactly(network, weights, path)
        if p.head == 'none':
            log_weights(network.backbone, weights, path)
    else:
        _warn_of_random_weights()
    return network


class StageNetwork(BackboneNetwork):
    """The backbone of a network, with one of its grids as the embedding: a stage's, or another that it has."""

    def __init__(self, network: PretrainingNetwork | BackboneNetwork, stage: str):
        super().__init__(network.backbone)
        self.stage = stage

    def grid(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        """As `BackboneNetwork.grid`."""
        return self.backbone.grid(images, self.stage), None


def frozen_weights(p: EasyDict, path: str | Path) -> dict[str, Any]:
    """Pre-trained weights at `path`, under the names that they have in the networks that `p` describes."""
    if p.head == 'none':
        return {f'backbone.{key}': value for key, value in backbone_weights(path, p.backbone).items()}
    return query_weights(path)


def linear_network(p: EasyDict, classes: int) -> LinearNetwork:
    """The `LinearNetwork` that `p` describes, with `classes` outputs (background counted) and random weights."""
    network = get_model({**p, 'num_classes': classes - 1, 'has_bg': True, 'kmeans_eval': False,
                      'backbone_kwargs': grid_kwargs(p.backbone_kwargs)})
    assert isinstance(network, LinearNetwork)  # kmeans_eval is False
    return network


def probe_network(p: EasyDict, classes: int) -> LinearNetwork:
    """A `LinearNetwork` for the training of its classifier alone (paper section 4): all else is frozen as
    `freeze_batchnorm` says, and still random."""
    network = linear_network(p, classes)
    _reset_classifier(network)
    network.freeze(p.freeze_batchnorm)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sorted(trained) == sorted(CLASSIFIER[p.head]), trained
    return network


def _reset_classifier(network: LinearNetwork):
    nn.init.normal_(network.classifier.weight, std=DEVIATION)
    assert network.classifier.bias is not None
    nn.init.zeros_(network.classifier.bias)


def load_frozen_weights(network: LinearNetwork, p: EasyDict) -> None:
    """Fill all of a `probe_network` but its classifier with the weights at `p.pretraining`; None leaves it random.

    Raises `UserError` if other keys than the classifier's are missing, or other ones than the heads' left over.
    """
    if not p.pretraining:
        _warn_of_random_weights()
        return
    leftover = () if p.head == 'none' else (*HEADS, SALIENCY_HEAD) if p.model_kwargs.use_classification_head else HEADS
    weights = frozen_weights(p, p.pretraining)
    load_exactly(network, weights, p.pretraining, missing=CLASSIFIER[p.head], leftover=leftover)
    if p.head == 'none':
        log_weights(network.backbone, weights, p.pretraining)


def load_starting_weights(network: LinearNetwork, p: EasyDict) -> None:
    """The weights that the training of a whole `linear_network` starts from: all but the classifier's from `p.pretraining`, or
    without it the backbone's own, as `backbone_kwargs` says. The classifier starts as a linear one does. Raises as
    `load_frozen_weights` and `load_initial_weights` do."""
    _reset_classifier(network)
    if p.pretraining:
        load_frozen_weights(network, p)
        return
    kwargs = p.backbone_kwargs
    source = load_initial_weights(network.backbone, p.backbone, kwargs.pretraining, kwargs.moco_state_dict, kwargs.state_dict)
    if not source:
        _warn_of_random_weights()


def finetuned_network(p: EasyDict, classes: int, path: str | Path) -> LinearNetwork:
    """A `LinearNetwork` with the weights at `path`: a state dict (best_model.pth.tar), or a checkpoint of linear_finetune.py or
    finetune.py, without anything that `unwrapped` removes. Raises `UserError` for others, and for weights of another class
    count or backbone."""
    state = _state(path)
    if any(key.startswith(QUERY) for key in state):
        raise UserError(f'{path}: a pre-training checkpoint has no classifier: train one with linear_finetune.py first')
    bias = state.get(CLASSIFIER[p.head][1])
    if getattr(bias, 'ndim', 0) == 1 and len(bias) != classes:
        raise UserError(f'{path}: its classifier has {len(bias)} classes, but the data set {p.val_db_name} has {classes}')
    network = linear_network(p, classes)
    load_exactly(network, state, path)
    return network


def stored_network(path: str | Path, backbone: str | None = None,
                   output_stride: int | None = None) -> PretrainingNetwork | LinearNetwork:
    """The network in a file of weights: a `PretrainingNetwork` (the query's) of a pre-training checkpoint, otherwise a
    `LinearNetwork`.

    backbone, output_stride: None for those in the checkpoint's configuration or, without one, in the config.yml beside it. A
    file without either is recognised by its names and shapes, and has the backbone's densest grid: the stride is not in the
    weights, and the wrong one gives wrong outputs.
    Raises `UserError` for files that do not hold such a network, and if the backbone can't be determined.
    """
    content = load_file(path)
    state = unwrapped(content, path)
    query = _query_part(state)
    pretraining = bool(query)
    if pretraining:
        state = query
    biases = {HEADS[1]} if pretraining else {bias for _, bias in CLASSIFIER.values()}
    outputs = [len(state[key]) for key in biases if getattr(state.get(key), 'ndim', 0) == 1]
    if not outputs:
        raise UserError(f'{path}: neither a pre-training checkpoint nor a linear network of this project')
    shapes = _backbone_shapes(state)
    names = matching_backbones(shapes)
    known = _architecture(content, Path(path), shapes)
    name = backbone or known.get('backbone') or _only(names, path)
    kwargs = grid_kwargs(known.get('backbone_kwargs') or {}) if name == known.get('backbone') else {}
    network = get_model({
        'backbone': name, 'backbone_kwargs': kwargs if output_stride is None else {'output_stride': output_stride},
        'head': 'deeplab' if any(key.startswith(DECODER) for key in state) else 'linear',
        'kmeans_eval': pretraining, 'num_classes': outputs[0] - 1,
        'model_kwargs': {'ndim': outputs[0], 'use_classification_head': SALIENCY_HEAD in state}})
    load_exactly(network, state, path)
    assert not isinstance(network, BackboneNetwork)  # which has no outputs
    return network


def _backbone_shapes(state: Mapping[str, Any]):
    """Shapes of the backbone's weights in a state dict, by their names in the backbone."""
    return {key.removeprefix('backbone.'): tuple(value.shape) for key, value in state.items()
            if str(key).startswith('backbone.') and torch.is_tensor(value)}


def _architecture(content: dict[str, Any], path: Path, shapes: Mapping[str, tuple[int, ...]]):
    """The configuration in a checkpoint or, without one, in the config.yml beside it, if its backbone fits `shapes`.
    Empty without either."""
    if isinstance(content.get('config'), dict):
        return content['config']
    try:
        beside = yaml.safe_load((path.parent / 'config.yml').read_text(encoding='utf-8'))
        same = isinstance(beside.get('backbone_kwargs') or {}, dict) and fits(beside['backbone'], shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, UserError):
        return {}
    return beside if same else {}


def _only(names: Collection[str], path: str | Path):
    if len(names) != 1:
        reason = f'fit {" and ".join(names)}' if names else f'fit none of {", ".join(backbone_names())}'
        raise UserError(f'{path}: the backbone of these weights is unknown ({reason}): name it (export.py --backbone, or the '
                        'argument backbone of hub; timm/<name> for one of timm)')
    return next(iter(names))


def refuse_other_weights(state: Mapping[str, Any], p: EasyDict, source: str | Path) -> None:
    """Raise a `UserError` if the file `p.pretraining`, if it is still there, holds other frozen weights than `state`, a state
    dict of a `LinearNetwork` that was trained from it: for example those of a new pre-training. source: the file of `state`,
    for messages."""
    path = zoo_file(p.pretraining, p.root_dir) if p.pretraining and is_zoo(p.pretraining) else p.pretraining
    if not (path and Path(path).is_file()):
        return
    fresh = frozen_weights(p, str(path))
    common = [key for key in fresh if key in state and not key.endswith(('running_mean', 'running_var', 'batches_tracked'))]
    if any(not (torch.is_tensor(state[key]) and state[key].equal(fresh[key])) for key in common):
        raise UserError(f'{p.pretraining} does not hold the weights that {source} was trained from: start over with --fresh')


def _state(path: str | Path):
    return unwrapped(load_file(path), path)


def _warn_of_random_weights():
    warn_once('pretraining is null: the network has random weights')
