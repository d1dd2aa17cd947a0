"""Networks for the evaluations, with weights from files."""
from pathlib import Path

import torch
from torch import nn

from models.backbone_weights import backbone_weights
from models.factory import get_model
from models.networks import BackboneNetwork
from utils.checkpoint import load_exactly, load_file
from utils.cli.log import warn_once
from utils.errors import UserError
from utils.model_zoo.zoo import is_zoo, zoo_file

PREFIX = 'module.model_q.'
CLASSIFIER = {'deeplab': ('decoder.4.weight', 'decoder.4.bias'),  # all that the linear classifier trains, by `head`
              'none': ('linear.weight', 'linear.bias')}
HEADS = ('head.weight', 'head.bias')                 # of the pre-training network, and with them:
SALIENCY_HEAD = 'classification_head.weight'
DEVIATION = 0.01  # of the classifier's initial weights


def query_weights(path):
    """State dict of the query network in a pre-training checkpoint: the dict with `model`, or a bare dict of
    `module.model_q.*`. Raises `UserError` when the file is missing, damaged, or holds no such network."""
    weights = _query_part(_state(path))
    if not weights:
        raise UserError(f"{path}: not a pre-training checkpoint: none of its keys starts with '{PREFIX}'")
    return weights


def _query_part(state):
    return {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}


def embedding_network(p, path):
    """The network whose prototypes are clustered or retrieved, with exactly the weights at `path` (None: random ones).

    A `PretrainingNetwork` as `p` describes it, from a pre-training checkpoint; with `head: none` a `BackboneNetwork`, from
    what `backbone_weights` reads. Initial weights of the backbone are no business of an evaluation.
    """
    network = get_model({**p, 'backbone_kwargs': {'dilated': p.backbone_kwargs.dilated}})
    if path:
        load_exactly(network, frozen_weights(p, path), path)
    else:
        _warn_of_random_weights()
    return network


def backbone_up_to(network, stage):
    """The part of a network's backbone that ends with `stage` ('layer1' to 'layer4'), as a network of its own."""
    parts = dict(network.backbone.named_children())
    names = list(parts)[:list(parts).index(stage) + 1]
    return BackboneNetwork(nn.Sequential(*(parts[name] for name in names)))


def frozen_weights(p, path):
    """Pre-trained weights at `path`, under the names that they have in the networks that `p` describes."""
    if p.head == 'none':
        return {f'backbone.{key}': value for key, value in backbone_weights(path, p.backbone).items()}
    return query_weights(path)


def require_masks(p, file, *keys):
    """Raise a `UserError` where the network has no saliency head and one of `keys` doesn't name the data set's masks either.

    file: the experiment's, for messages."""
    for key in keys:
        group, _, inner = key.partition('.')
        if not (_has_saliency_head(p) or p[group][inner]):
            raise UserError(f'{file}: without a saliency head (head: none, or model_kwargs.use_classification_head: False) '
                            f"{key} must name the data set's masks")


def _has_saliency_head(p):
    return p.head != 'none' and p.model_kwargs.use_classification_head


def linear_network(p, classes):
    """The `LinearNetwork` that `p` describes, with `classes` outputs (background counted) and random weights."""
    return get_model({**p, 'num_classes': classes - 1, 'has_bg': True, 'kmeans_eval': False,
                      'backbone_kwargs': {'dilated': p.backbone_kwargs.dilated}})


def probe_network(p, classes):
    """A `LinearNetwork` for the training of its classifier alone (paper section 4): all else is frozen as
    `freeze_batchnorm` says, and still random."""
    network = linear_network(p, classes)
    nn.init.normal_(network.classifier.weight, std=DEVIATION)
    nn.init.zeros_(network.classifier.bias)
    network.freeze(p.freeze_batchnorm)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sorted(trained) == sorted(CLASSIFIER[p.head]), trained
    return network


def load_frozen_weights(network, p):
    """Fill all of a `probe_network` but its classifier with the weights at `p.pretraining`; None leaves it random.

    Raises `UserError` where other keys than the classifier's are missing, or other ones than the heads' left over.
    """
    if not p.pretraining:
        _warn_of_random_weights()
        return
    leftover = () if p.head == 'none' else (*HEADS, SALIENCY_HEAD) if _has_saliency_head(p) else HEADS
    load_exactly(network, frozen_weights(p, p.pretraining), p.pretraining, missing=CLASSIFIER[p.head], leftover=leftover)


def finetuned_network(p, classes, path):
    """A `LinearNetwork` with the weights at `path`: a plain state dict (best_model.pth.tar), or a checkpoint of
    linear_finetune.py. Raises `UserError` for others, and for weights of another class count or backbone."""
    state = _state(path)
    if any(str(key).startswith(PREFIX) for key in state):
        raise UserError(f'{path}: a pre-training checkpoint has no classifier: train one with linear_finetune.py first')
    bias = state.get(CLASSIFIER[p.head][1])
    if getattr(bias, 'ndim', 0) == 1 and len(bias) != classes:
        raise UserError(f'{path}: its classifier has {len(bias)} classes, but the data set {p.val_db_name} has {classes}')
    network = linear_network(p, classes)
    load_exactly(network, state, path)
    return network


def stored_network(path, dilated=True):
    """The network in a file of weights, whose keys and shapes say which: a `PretrainingNetwork` (the query's) of a pre-training
    checkpoint, else a `LinearNetwork`. dilated: output stride 8, else 32, which the file does not say: the wrong one gives
    wrong outputs.

    Raises `UserError` for files that hold neither.
    """
    state = _state(path)
    query = _query_part(state)
    pretraining = bool(query)
    if pretraining:
        state = query
    biases = [HEADS[1]] if pretraining else [bias for _, bias in CLASSIFIER.values()]
    outputs = [len(state[key]) for key in biases if getattr(state.get(key), 'ndim', 0) == 1]
    if not outputs:
        raise UserError(f'{path}: neither a pre-training checkpoint nor a linear network of this project')
    network = get_model({
        'backbone': 'resnet50' if 'backbone.layer1.0.conv3.weight' in state else 'resnet18',
        'backbone_kwargs': {'dilated': dilated}, 'head': 'none' if CLASSIFIER['none'][1] in state else 'deeplab',
        'kmeans_eval': pretraining, 'num_classes': outputs[0] - 1,
        'model_kwargs': {'ndim': outputs[0], 'use_classification_head': SALIENCY_HEAD in state}})
    load_exactly(network, state, path)
    return network


def refuse_other_weights(state, p, source):
    """Raise a `UserError` when the file `p.pretraining`, if it is still there, holds other frozen weights than `state`, a
    state dict of a `LinearNetwork` that was trained from it: those of a new pre-training, say. source: the file of `state`,
    for messages."""
    path = zoo_file(p.pretraining, p.root_dir) if p.pretraining and is_zoo(p.pretraining) else p.pretraining
    if not (path and Path(path).is_file()):
        return
    fresh = frozen_weights(p, str(path))
    common = [key for key in fresh if key in state and not key.endswith(('running_mean', 'running_var', 'batches_tracked'))]
    if any(not (torch.is_tensor(state[key]) and state[key].equal(fresh[key])) for key in common):
        raise UserError(f'{p.pretraining} does not hold the weights that {source} was trained from: start over with --fresh')


def _state(path):
    content = load_file(path)
    state = content.get('model', content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f'{path}: not a file of weights: it holds no state dict (names and tensors)')
    return state


def _warn_of_random_weights():
    warn_once('pretraining is null: the network has random weights')
