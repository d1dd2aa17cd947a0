"""Weights of a backbone, from files or published by others."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from models.backbones import build_backbone, find_backbone
from utils.checkpoint import load_exactly, load_file, unwrapped
from utils.errors import UserError

MOCO_PREFIX, QUERY_PREFIX = 'encoder_q.', 'model_q.'  # of MoCo's and this project's networks, as `unwrapped` leaves them


def load_initial_weights(backbone: nn.Module, name: str, pretraining: str | None = None,
                         moco_state_dict: str | Path | None = None, state_dict: str | Path | None = None) -> str | None:
    """Fill `backbone` (the one called `name`) and return where the weights came from, or None for random ones.

    pretraining: 'imagenet_classification' (what its entry says, or the file `state_dict`), 'imagenet_moco' (the MoCo v2
    checkpoint `moco_state_dict`) or None (random, or the file `state_dict`: a plain state dict).
    Raises `UserError` when a file is absent or unreadable, or when its keys, `fc.*` aside, are not exactly the
    backbone's; the message lists them.
    """
    if pretraining == 'imagenet_moco':
        if not moco_state_dict:
            raise UserError('pretraining: imagenet_moco needs backbone_kwargs.moco_state_dict, a MoCo v2 checkpoint')
        weights, source = _moco(load_file(moco_state_dict), moco_state_dict), str(moco_state_dict)
    elif state_dict:
        weights, source = _plain(load_file(state_dict), state_dict), str(state_dict)
    elif pretraining == 'imagenet_classification':
        weights, source = _published(find_backbone(name).imagenet, name)
    else:
        return None
    load_exactly(backbone, _without_classifier(weights), source)
    return source


def backbone_weights(source: str | Path, name: str) -> dict[str, Any]:
    """State dict, without `fc.*`, of the backbone called `name`: from a file with a MoCo v2 checkpoint or a plain state dict,
    or published, by the name of its source (`torchvision://resnet50-IMAGENET1K_V1`).

    Raises `UserError` as `load_initial_weights` does.
    """
    if '://' in str(source):
        weights = _published(str(source), name)[0]
    else:
        content = load_file(source)
        weights = _plain(content, source)
        if any(key.startswith(QUERY_PREFIX) for key in weights):
            raise UserError(f'{source}: a checkpoint of this project, which head: deeplab reads; head: none takes a MoCo v2 '
                            'checkpoint or a plain state dict')
        if any(key.startswith(MOCO_PREFIX) for key in weights) or (
                'state_dict' in content and not set(weights) & set(build_backbone(name, {}).state_dict())):
            weights = _moco(content, source)  # or its error, where no key is one of the backbone's
    return _without_classifier(weights)


def _plain(content: Any, source: str | Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f'{source}: expected a state dict (names and tensors), found {type(content).__name__}')
    return unwrapped(content, source)


def _without_classifier(weights: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in weights.items() if not key.startswith('fc.')}


def _moco(content: Any, path: str | Path) -> dict[str, Any]:
    state = unwrapped(content, path) if isinstance(content, dict) else {}
    weights = {key.removeprefix(MOCO_PREFIX): value for key, value in state.items() if key.startswith(MOCO_PREFIX)}
    if not weights:
        reason = ("it has no 'state_dict'" if not isinstance(content, dict) or 'state_dict' not in content else
                  f"no key of its state_dict starts with 'module.{MOCO_PREFIX}'")
        raise UserError(f'{path}: not a MoCo v2 checkpoint: {reason}')
    return weights


def _published(source: str | None, name: str) -> tuple[dict[str, Any], str]:
    """State dict of published weights, and where they came from."""
    sources = find_backbone(name).published()
    if source is None:
        raise UserError(f'there are no published ImageNet weights for backbone: {name}: name a file as '
                        'backbone_kwargs.state_dict')
    if source not in sources:
        raise UserError(f"{source}: for backbone: {name} there are {', '.join(sources) or 'no published weights'}")
    return sources[source]()
