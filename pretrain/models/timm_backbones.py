"""timm's networks as backbones, by the name `timm/<timm's name>` (https://github.com/huggingface/pytorch-image-models).

Stages, channels, stride, mean and standard deviation come from timm. Names of weights are timm's own, after `model.`.
Axes: B batch, C channels, N tokens of patches, P class and register tokens before them, h w the grid.
"""
from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import KEYS_OF_FILES, TIMM, TIMM_WEIGHTS, BackboneSpec
from models.base import Backbone
from utils.errors import UserError, one_line

STRIDES = (8, 16, 32)  # that are asked of convolutional networks
TOKENS, KEYS = 'tokens', 'keys'  # of a transformer: its last tokens, normalised, and the keys of its last attention
CLASSIFIERS = {'head', 'head_dist', 'fc', 'fc_norm', 'pre_logits', 'mask_token'}  # of files, also of other authors'
OPTIONS: tuple[dict[str, Any], ...] = ({'dynamic_img_size': True}, {'strict_img_size': False}, {})  # images of any size


@dataclass(frozen=True)
class _Plan:
    """timm's description of a network. options: of its constructor. stages: names of its modules whose outputs are grids, in
    order. norm: whether its last norm belongs to the last grid. patches: whether it is a transformer on one grid of patches.
    strides: that it can have, of its grid. mean, std: of its input."""
    name: str
    options: dict[str, Any]
    stages: tuple[str, ...]
    channels: int
    norm: bool
    patches: bool
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TimmBackbone(Backbone):
    """A network of timm without its classifier. Weights start from timm's random initialisation.

    A convolutional network's last grid is that of `features_only`, a transformer's its patch tokens after the last norm, both
    as in `forward_features`. `freeze_layers` counts stages, or a transformer's blocks.
    """

    def __init__(self, spec: BackboneSpec, output_stride: int):
        super().__init__(spec, output_stride)
        self.plan = _plan(spec.name)
        self.unit = 'blocks' if self.plan.patches else 'stages'
        self.model = _pruned(_create(self.plan.name, self.plan.options, self._stride_option()), self.plan.norm)

    def _stride_option(self):
        return self.output_stride if self.output_stride != max(self.plan.strides) else None

    def grid(self, x: Tensor, stage: str) -> Tensor:
        if stage == KEYS:
            return self._keys(x)
        index = self.stages.index(stage)
        last = index == len(self.stages) - 1
        return self.model.forward_intermediates(x, indices=[index], norm=last and self.plan.norm, stop_early=True,
                                                intermediates_only=True)[0]

    def _keys(self, x: Tensor):
        """B x 3 x H x W -> B x C x h x w, the keys of the last attention, all heads."""
        attention, seen = self.model.blocks[-1].attn, []
        handle = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            self.model.forward_intermediates(x, indices=1, intermediates_only=True)
        finally:
            handle.remove()
        tokens = seen[0][:, self.model.num_prefix_tokens:]                          # B x N x C
        if getattr(attention, 'qkv', None) is None:
            keys = attention.k_proj(tokens)
        else:  # EVA's and BEiT's have no bias here, and the keys' is zero
            bias = attention.qkv.bias
            keys = F.linear(tokens, attention.qkv.weight.chunk(3)[1], None if bias is None else bias.chunk(3)[1])
        return keys.transpose(1, 2).unflatten(2, (x.shape[2] // self.output_stride, -1))

    def stage_module(self, stage: str) -> str:
        return f'model.{self.plan.stages[self.stages.index(stage)]}'


@functools.cache
def timm_spec(name: str) -> BackboneSpec:
    """The entry of `timm/<timm's name>`, with a tag of its weights or without. Raises `UserError` for a name that timm doesn't
    have, with the nearest, and for a network without a grid of features."""
    plan = _plan(name)
    stages = plan.stages
    others: tuple[str, ...] = ()
    if plan.patches:
        stages = (*stages[:-1], TOKENS)
        others = (KEYS,) if _has_keys(_meta_model(plan.name, tuple(plan.options.items()))) else ()
    return BackboneSpec(name, TimmBackbone, plan.channels, plan.strides, stages, frozen=(), normalization=(plan.mean, plan.std),
                        published=functools.partial(_published, plan.name), others=others, rates_at_stride_8=True,
                        own_names=functools.partial(_own_names, name), size_error=functools.partial(_size_error, name))


def nearest_names(name: str) -> list[str]:
    """Names of timm that are like `name`, the nearest first."""
    names = timm.list_models() + timm.list_models(include_tags=True)
    return difflib.get_close_matches(name, names, n=3, cutoff=0)


@functools.cache
def _plan(name: str) -> _Plan:
    own = name.removeprefix(TIMM)
    if own not in timm.list_models() and own not in timm.list_models(include_tags=True):
        raise UserError(f"backbone: {name}: timm has no network of this name (nearest: {', '.join(nearest_names(own))})")
    try:
        options = next(options for options in OPTIONS if _takes(own, options))
        model = _meta_model(own, tuple(options.items()))
        infos = [dict(info) for info in _infos(model)]
        reductions = [int(info['reduction']) for info in infos]
        patches = len(infos) > 1 and len(set(reductions)) == 1 and hasattr(model, 'blocks') and hasattr(model, 'patch_embed')
        strides = (reductions[-1],) if patches else tuple(
            stride for stride in STRIDES if stride == reductions[-1] or _has_stride(own, options, stride)) or (reductions[-1],)
        norm, channels = _last_grid(own, options, model.pretrained_cfg['input_size'])
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError, StopIteration) as error:
        raise UserError(f'backbone: {name}: this network of timm has no grid of features ({one_line(error)}): '
                        'name another') from error
    return _Plan(own, options, tuple(str(info['module']) for info in infos), channels, norm, patches, strides,
                 *(tuple(model.pretrained_cfg[key]) for key in ('mean', 'std')))


def _create(name: str, options: Mapping[str, Any], stride: int | None = None, **more: Any):
    return timm.create_model(name, **{'num_classes': 0, **options, **({'output_stride': stride} if stride else {}), **more})


@functools.cache
def _meta_model(name: str, options: tuple[tuple[str, Any], ...], stride: int | None = None):
    """The network without memory for its weights. Do not modify it."""
    with torch.device('meta'):
        return _create(name, dict(options), stride)


def _takes(name: str, options: dict[str, Any]):
    try:
        _meta_model(name, tuple(options.items()))
    except TypeError as error:
        if not any(key in str(error) for key in options):
            raise
        return False
    return True


def _has_stride(name: str, options: dict[str, Any], stride: int):
    try:
        model = _meta_model(name, tuple(options.items()), stride)
    except (TypeError, ValueError, AssertionError, NotImplementedError):  # each network fails in its own way
        return False
    return _infos(model)[-1]['reduction'] == stride


def _pruned(model: nn.Module, norm: bool):
    """`model` without what its last grid doesn't need. norm: whether that needs the last norm."""
    model.prune_intermediate_layers([len(_infos(model)) - 1], prune_norm=not norm)  # type: ignore[operator]
    return model


def _infos(model: nn.Module) -> list[dict[str, Any]]:
    """timm's descriptions of the network's grids, in order."""
    return list(getattr(model.feature_info, 'info', model.feature_info))  # type: ignore[arg-type]


def _last_grid(name: str, options: dict[str, Any], size: Sequence[int]):
    """Whether the last norm belongs to the last grid, and the grid's channels. size: channels, height and width of an image.
    Raises ValueError for a network some of whose weights decide nothing about the grid: they could not learn, and several
    processes would wait for their gradients."""
    unused = []
    for norm in (True, False):
        with torch.device('meta'):
            model = _pruned(_create(name, options), norm)
            try:
                grid = model.forward_intermediates(torch.empty(2, *size), indices=[len(_infos(model)) - 1], norm=norm,
                                                   intermediates_only=True)[0]
            except AssertionError:  # of networks that give it without the norm only
                if norm:
                    continue
                raise
            grid.sum().backward()
        unused = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
        if not unused:
            return norm, grid.shape[1]
    raise ValueError(f'{unused[0]} does not contribute to it')


def _has_keys(model: nn.Module):
    attention = getattr(model.blocks[-1], 'attn', None)  # type: ignore[index]
    return any(isinstance(getattr(attention, name, None), nn.Linear) for name in ('qkv', 'k_proj'))


@functools.cache  # each script reads its configuration twice
def _size_error(name: str, stride: int, height: int, width: int) -> str | None:
    plan = _plan(name)
    nearest = ' x '.join(str(max(1, round(side / stride)) * stride) for side in (height, width))
    if plan.patches and (height % stride or width % stride):
        return f'must be multiples of {stride}, the patch of backbone: {name} (nearest: {nearest})'
    model = _meta_model(plan.name, tuple(plan.options.items()), stride if stride != max(plan.strides) else None)
    try:
        with torch.device('meta'), torch.no_grad():
            grid = model.forward_intermediates(torch.empty(2, 3, height, width), indices=[len(plan.stages) - 1],
                                               intermediates_only=True)[0]
    except (RuntimeError, AssertionError, ValueError) as error:
        own = ' x '.join(map(str, model.pretrained_cfg['input_size'][1:]))
        return f'do not suit backbone: {name} ({one_line(error)}): its own size is {own}'
    if tuple(grid.shape[2:]) != (-(-height // stride), -(-width // stride)):
        return f'must be multiples of {stride}, or the grid of backbone: {name} would not cover them (nearest: {nearest})'
    return None


def _published(own: str) -> Mapping[str, Callable[[], tuple[dict[str, Any], str]]]:
    """timm:// alone, which is what the backbone's name says, and the weights of every tag of its architecture."""
    architecture = own.partition('.')[0]
    tags = timm.list_pretrained(f'{architecture}.*')
    return {f'{TIMM_WEIGHTS}{name}': functools.partial(_fetch, own, name or own) for name in ('', architecture, *tags)}


def _fetch(own: str, name: str) -> tuple[dict[str, Any], str]:
    wanted, given = (timm.get_pretrained_cfg(each) for each in (own, name))
    if given is None or not given.has_weights:
        raise UserError(f'{TIMM_WEIGHTS}{name}: timm has no weights for this network: name a file ({KEYS_OF_FILES})')
    if wanted is not None and (wanted.mean, wanted.std) != (given.mean, given.std):
        raise UserError(f'{TIMM_WEIGHTS}{name}: these weights are for images of mean {given.mean} and deviation {given.std}, '
                        f'those of backbone: {TIMM}{own} for {wanted.mean} and {wanted.std}: name backbone: {TIMM}{name}')
    try:
        return timm.create_model(name, pretrained=True).state_dict(), f'{TIMM_WEIGHTS}{name}'
    except Exception as error:  # the hub's client, its HTTP library and timm have a family of exceptions each
        file = f'model.safetensors of https://huggingface.co/{given.hf_hub_id}' if given.hf_hub_id else 'its state dict'
        raise UserError(f'{TIMM_WEIGHTS}{name} could not be downloaded ({one_line(error)}): run again, or download {file} by '
                        f'hand and name that file ({KEYS_OF_FILES})') from error


def _own_names(name: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with the names of timm's file, or of the network's authors where timm knows to translate them, under the
    names that `TimmBackbone` has. Classifiers, and what is behind the last grid, are left out."""
    plan = _plan(name)
    whole = _meta_model(plan.name, (*plan.options.items(), ('num_classes', 1000)))
    with torch.device('meta'):
        own = set(_pruned(_create(plan.name, plan.options), plan.norm).state_dict())
    unused = {key.partition('.')[0] for key in whole.state_dict()} - {key.partition('.')[0] for key in own}
    unused |= CLASSIFIERS - {key.partition('.')[0] for key in own}

    def needed(state: Mapping[str, Any]):
        return {key: value for key, value in state.items() if str(key).partition('.')[0] not in unused}
    state = needed(weights)
    translate = getattr(sys.modules[type(whole).__module__], 'checkpoint_filter_fn', None)
    if set(state) != own and translate is not None:
        try:
            translated = needed(translate(dict(weights), whole))
        except Exception:  # it expects other files: the message about this one's keys is the better one
            translated = {}
        if set(translated) == own:
            state = translated
    return {f'model.{key}': value for key, value in state.items()}

