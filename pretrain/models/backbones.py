"""The registry of backbones: its entry holds everything about a backbone, and all other code uses it.

Nothing here loads PyTorch, except for `timm/` names, since the table of configuration keys needs the names. To add a backbone,
write a subclass of `models.base.Backbone` and `register` an entry; entries of timm's networks are made when they are asked for.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, nearest_name

if TYPE_CHECKING:
    from models.base import Backbone

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalization = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its channels, in [0, 1]
TIMM = 'timm/'  # timm/vit_small_patch16_224.dino, for example: a network of timm
TIMM_WEIGHTS = 'timm://'  # what timm publishes: timm://vit_small_patch16_224.dino, or alone the weights of the backbone's name
# Where users name a file of weights, for messages
KEYS_OF_FILES = 'backbone_kwargs.state_dict in pre-training, pretraining in evaluations, --weights of generate_masks.py'
TORCHVISION = 'torchvision://'  # torchvision://resnet50-IMAGENET1K_V1, for example: torchvision keeps it in its own folder


def _without_fc(weights: Mapping[str, Any]):
    return {key: value for key, value in weights.items() if not str(key).startswith('fc.')}


def _any_size(stride: int, height: int, width: int):
    return None


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone.

    name: the value of the key `backbone`. build: makes the module, with random weights, from this entry and an output stride.
    channels: of the last grid. output_strides: input pixels to a step of the grid that `build` can make, densest first.
    stages: names of the grids that can be asked for, in order; the last is the whole backbone. others: of those besides.
    frozen: names of the child modules that `freeze_layers: True` freezes; without any it freezes the first half of the stages.
    normalization: mean and deviation of the input's channels.
    published: gives a mapping from a source's name to a function that loads it: state dict and where it came from.
    imagenet: the source that `pretraining: imagenet_classification` means, or None.
    own_names: a state dict as others have it -> the same under the module's names, without classifiers.
    rates_at_stride_8: whether DeepLab's rates are for output stride 8 and shrink with a coarser grid; otherwise they are the
    same at any stride, as published. size_error: from output stride, height and width of images to the reason why the backbone
    can't take them, which ends a sentence that starts with the size, or None.
    """
    name: str
    build: Callable[[BackboneSpec, int], Backbone]
    channels: int
    output_strides: tuple[int, ...]
    stages: tuple[str, ...]
    frozen: tuple[str, ...]
    normalization: Normalization = IMAGENET
    published: Callable[[], Mapping[str, Callable[[], tuple[dict[str, Any], str]]]] = dict
    imagenet: str | None = None
    others: tuple[str, ...] = ()
    own_names: Callable[[Mapping[str, Any]], dict[str, Any]] = _without_fc
    rates_at_stride_8: bool = False
    size_error: Callable[[int, int, int], str | None] = _any_size


_registry: dict[str, BackboneSpec] = {}


def register(spec: BackboneSpec) -> None:
    """Make a backbone known by its name."""
    _registry[spec.name] = spec


def backbone_names() -> tuple[str, ...]:
    """All values of the key `backbone`, except for those of timm."""
    return tuple(_registry)


def is_timm(name: str) -> bool:
    """Whether a backbone's name is that of a network of timm."""
    return str(name).startswith(TIMM)


def find_backbone(name: str) -> BackboneSpec:
    """The entry called `name`. Raises `UserError` with the nearest name for an unknown one."""
    if is_timm(name):
        from models.timm_backbones import timm_spec  # here, as it loads PyTorch
        return timm_spec(name)
    if name not in _registry:
        near = nearest_name(str(name), _registry, cutoff=0)
        raise UserError(f"backbone must be one of {', '.join(_registry)}, or {TIMM}<name of timm's>, not '{name}' (nearest: "
                        f"'{near}')")
    return _registry[name]


def output_stride(name: str, kwargs: Mapping[str, Any]) -> int:
    """Input pixels to a step of the grid. kwargs: `backbone_kwargs` of a configuration: `output_stride`, or without it
    `dilated`, which takes the densest grid (the default) or the coarsest one.

    Raises `UserError` for a stride that the backbone does not have.
    """
    strides = find_backbone(name).output_strides
    asked = kwargs.get('output_stride')
    if asked is None:
        return min(strides) if kwargs.get('dilated', True) else max(strides)
    if asked not in strides:
        raise UserError(f'backbone_kwargs.output_stride must be one of {", ".join(map(str, strides))} for backbone: {name}, '
                        f'not {asked}')
    return asked


def check_strides(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise `UserError` if `dilated` and `output_stride` in `kwargs` contradict each other: a dilated grid is denser than the
    coarsest one. kwargs: as given, without defaults."""
    asked, dilated, coarsest = kwargs.get('output_stride'), kwargs.get('dilated'), max(find_backbone(name).output_strides)
    if asked and dilated is not None and dilated == (asked == coarsest) and len(find_backbone(name).output_strides) > 1:
        raise UserError(f'backbone_kwargs.dilated: {dilated} and backbone_kwargs.output_stride: {asked} contradict each other: '
                        'remove one')


def grid_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `backbone_kwargs` that determines the grid, without the initial weights, which evaluations don't read."""
    return {key: kwargs[key] for key in ('dilated', 'output_stride') if kwargs.get(key) is not None}


def build_backbone(name: str, kwargs: Mapping[str, Any]) -> Backbone:
    """The backbone called `name` with random weights. kwargs: as in `output_stride`."""
    spec = find_backbone(name)
    return spec.build(spec, output_stride(name, kwargs))


def matching_backbones(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the backbones, those of timm aside, whose state dict `fits`."""
    return [name for name in _registry if fits(name, shapes)]


def fits(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the state dict of the backbone called `name` has exactly these names and shapes (batch norm's counters aside)."""
    return _without_counters(shapes) == _shapes(find_backbone(name))


@functools.cache
def _shapes(spec: BackboneSpec):
    import torch
    with torch.device('meta'):
        own = spec.build(spec, spec.output_strides[0]).state_dict()
    return _without_counters({key: tuple(value.shape) for key, value in own.items()})


def _without_counters(shapes: Mapping[str, tuple[int, ...]]):
    return {key: tuple(shape) for key, shape in shapes.items() if not key.endswith('num_batches_tracked')}


def _resnet(spec: BackboneSpec, stride: int):
    from models.resnet import ResNet
    return ResNet(spec, stride)


def _torchvision_resnet(name: str, channels: int):
    """The entry of a ResNet of torchvision (DeepLabv3 at output stride 8, arXiv 1706.05587)."""
    def published():
        from models.resnet import torchvision_weights
        return {f'{TORCHVISION}{source}': load for source, load in torchvision_weights(name).items()}
    return BackboneSpec(name, _resnet, channels, output_strides=(8, 32), stages=('layer1', 'layer2', 'layer3', 'layer4'),
                        frozen=('conv1', 'bn1', 'layer1', 'layer2'), published=published,
                        imagenet=f'{TORCHVISION}{name}-IMAGENET1K_V1')


for _name, _channels in (('resnet18', 512), ('resnet34', 512), ('resnet50', 2048), ('resnet101', 2048), ('resnet152', 2048),
                         ('wide_resnet50_2', 2048), ('wide_resnet101_2', 2048)):
    register(_torchvision_resnet(_name, _channels))
