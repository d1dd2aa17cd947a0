"""Weights of a backbone: published ones, and files as their authors left them."""
from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.backbones import TIMM_WEIGHTS, find_backbone
from utils.checkpoint import load_exactly, load_file, unwrapped
from utils.errors import UserError

if TYPE_CHECKING:
    from models.base import Backbone

# Prefixes of networks in other projects' files, without those of wrapped modules, which `unwrapped` removes
MOCO_PREFIXES = ('encoder_q.', 'base_encoder.')    # of MoCo v1 and v2, and of v3
DINO_NETWORKS = ('teacher', 'student')             # the first is what its authors evaluate
DINO_PREFIX = 'backbone.'
MAE_DECODER = ('decoder_', 'mask_token')           # what only its pre-training needs
# Of this project's checkpoints: the first in those of pre-training alone, and at least one of the heads in each
OUR_QUERY, OUR_BACKBONE = 'model_q.', 'backbone.'
OUR_HEADS = ('decoder.', 'linear.', 'head.', 'classification_head.')

TIMEOUT = 20  # seconds that `weights_at_hand` waits for a server

log = logging.getLogger('maskcontrast')


def load_initial_weights(backbone: Backbone, name: str, pretraining: str | None = None,
                         moco_state_dict: str | Path | None = None, state_dict: str | Path | None = None) -> str | None:
    """Fill `backbone` (the one called `name`) and return where the weights came from, or None for random ones.

    pretraining: 'imagenet_classification' (what its entry says, or `state_dict`), 'imagenet_moco' (the MoCo checkpoint
    `moco_state_dict`) or None (random, or `state_dict`). state_dict: what `backbone_weights` takes.
    Raises `UserError` if a file is absent or unreadable, or when its keys, those of classifiers aside, are not exactly the
    backbone's; the message lists them.
    """
    if pretraining == 'imagenet_moco':
        if not moco_state_dict:
            raise UserError('pretraining: imagenet_moco needs backbone_kwargs.moco_state_dict, a MoCo checkpoint')
        source = str(moco_state_dict)
        weights = find_backbone(name).own_names(_moco(load_file(moco_state_dict), moco_state_dict))
    elif state_dict:
        weights, source = _read(state_dict, name)
    elif pretraining == 'imagenet_classification':
        found, source = _published(find_backbone(name).imagenet, name)
        weights = find_backbone(name).own_names(found)
    else:
        return None
    load_exactly(backbone, weights, source)
    log_weights(backbone, weights, source)
    return source


def log_weights(backbone: Backbone, weights: Mapping[str, Any], source: str | Path) -> None:
    """A line in the log about weights that `backbone` was filled with."""
    mean, deviation = backbone.normalization
    log.info('%s: %d keys matched, all of backbone: %s, %d %s, output stride %d; mean %s, deviation %s', source, len(weights),
             backbone.name, len(backbone.stages), backbone.unit, backbone.output_stride, mean, deviation)


def backbone_weights(source: str | Path, name: str) -> dict[str, Any]:
    """State dict, under its own names and without classifiers, of the backbone called `name`.

    source: a file of torch.save or safetensors with a plain state dict, a checkpoint of this project (of pre-training the
    query's backbone), of MoCo (v1 to v3), DINO or MAE; or the name of published weights:
    `torchvision://resnet50-IMAGENET1K_V1`, `timm://vit_small_patch16_224.dino`, or `timm://` for what the backbone's own name
    says.
    Raises `UserError` as `load_initial_weights` does.
    """
    return _read(source, name)[0]


def weights_at_hand(source: str | Path, name: str) -> dict[str, Any]:
    """As `backbone_weights`, for callers that can do without: a server that is silent for TIMEOUT is an error, too."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub has none of its own
    try:
        return backbone_weights(source, name)
    finally:
        socket.setdefaulttimeout(before)


def published_weights(name: str) -> dict[str, Any]:
    """State dict, as `backbone_weights` gives it, of the weights that the name of a backbone stands for."""
    spec = find_backbone(name)
    weights, _ = _published(spec.imagenet or TIMM_WEIGHTS, name)
    return spec.own_names(weights)


def _read(source: str | Path, name: str) -> tuple[dict[str, Any], str]:
    """State dict of a file or of published weights, under the backbone's own names, and where it came from."""
    if '://' in str(source):
        weights, found = _published(str(source), name)
        return find_backbone(name).own_names(weights), found
    content = load_file(source)
    weights = _our_backbone(content, source) or find_backbone(name).own_names(_encoder(content, source))
    return weights, str(source)


def _our_backbone(content: Any, path: str | Path) -> dict[str, Any]:
    """The backbone's state dict, float32, in the content of a checkpoint of this project; empty for other files."""
    if not isinstance(content, dict) or any(isinstance(content.get(network), dict) for network in DINO_NETWORKS):
        return {}
    weights = unwrapped(content, path)
    network = _with_prefix(weights, (OUR_QUERY,)) or weights
    if not any(key.startswith(OUR_HEADS) for key in network):
        return {}
    return {key: value.float() if getattr(value, 'dtype', None) == torch.float16 else value
            for key, value in _with_prefix(network, (OUR_BACKBONE,)).items()}


def _encoder(content: Any, path: str | Path) -> dict[str, Any]:
    """The network's state dict in a file's content, under the names of its authors."""
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected a state dict (names and tensors), found {type(content).__name__}')
    for network in DINO_NETWORKS:
        if isinstance(content.get(network), dict):
            weights = _with_prefix(unwrapped(content[network], path), (DINO_PREFIX,))
            if not weights:
                raise UserError(f"{path}: not a DINO checkpoint: no key of its {network} starts with '{DINO_PREFIX}'")
            return weights
    weights = unwrapped(content, path)
    decoder = MAE_DECODER if any(key.startswith(MAE_DECODER[0]) for key in weights) else ()  # DINOv2 has a mask token, too
    return _with_prefix(weights, MOCO_PREFIXES) or {
        key: value for key, value in weights.items() if not key.startswith(decoder)}


def _moco(content: Any, path: str | Path) -> dict[str, Any]:
    weights = _with_prefix(unwrapped(content, path), MOCO_PREFIXES) if isinstance(content, dict) else {}
    if not weights:
        names = ' or '.join(f"'module.{prefix}'" for prefix in MOCO_PREFIXES)
        raise UserError(f'{path}: not a MoCo checkpoint: ' + (
            f'no key of its state_dict starts with {names}' if isinstance(content, dict) and 'state_dict' in content else
            "it has no 'state_dict'"))
    return weights


def _with_prefix(state: Mapping[str, Any], prefixes: tuple[str, ...]):
    """The entries that start with the first matching prefix, without it."""
    prefix = next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in state)), None)
    return {key.removeprefix(prefix): value for key, value in state.items() if prefix and key.startswith(prefix)}


def _published(source: str | None, name: str) -> tuple[dict[str, Any], str]:
    """State dict of published weights, and where they came from."""
    sources = find_backbone(name).published()
    if source is None:
        raise UserError(f'there are no ImageNet weights for backbone: {name} by this name: set backbone_kwargs.state_dict to a '
                        f'file{f" or to {TIMM_WEIGHTS}" if TIMM_WEIGHTS in sources else ""} instead')
    if source not in sources:
        raise UserError(f"{source}: for backbone: {name} there are {', '.join(sources) or 'no published weights'}")
    return sources[source]()
