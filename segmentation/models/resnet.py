"""torchvision's ResNet without average pool and classifier, at output stride 8 or 32 (DeepLabv3, arXiv 1706.05587)."""
from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchvision.models import get_model_weights, resnet

from models.atrous import AtrousConv2d
from models.backbones import KEYS_OF_FILES
from models.base import Backbone
from utils.errors import UserError

if TYPE_CHECKING:
    from models.backbones import BackboneSpec


class ResNet(Backbone):
    """Weights start from torchvision's random initialisation; parameter names are torchvision's own."""

    def __init__(self, spec: BackboneSpec, output_stride: int):
        super().__init__(spec, output_stride)
        net = getattr(resnet, spec.name)(weights=None)
        for part in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'):
            self.add_module(part, getattr(net, part))
        if output_stride == 8:
            _dilate(self.get_submodule('layer3'), first=1, others=2)
            _dilate(self.get_submodule('layer4'), first=2, others=4)

    def grid(self, x: Tensor, stage: str) -> Tensor:
        return self.grids(x, (stage,))[0]

    def grids(self, x: Tensor, stages: Sequence[str]) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        for name, part in self.named_children():
            x = part(x)
            if name in stages:
                found[name] = x
            if len(found) == len(stages):
                return [found[stage] for stage in stages]
        raise ValueError(f'there is no stage called {" or ".join(stages)}')


def _dilate(layer: nn.Module, first: int, others: int):
    """Trade the stride of `layer` for dilation: `first` where the stride was, `others` in every later 3x3 convolution.

    torchvision's `replace_stride_with_dilation` does the same, for bottleneck blocks only.
    """
    for block in layer.children():
        for name, module in block.named_children():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                setattr(block, name, AtrousConv2d(module, first if module.stride == (2, 2) else others))
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)


def torchvision_weights(name: str) -> dict[str, Callable[[], tuple[dict[str, Any], str]]]:
    """The published weights of torchvision's model called `name`, by names such as resnet50-IMAGENET1K_V1: functions that load
    them, and raise `UserError` where they can't be fetched or read."""
    return {f'{name}-{member.name}': functools.partial(_load, member) for member in get_model_weights(name)}


def _load(weights: Any) -> tuple[dict[str, Any], str]:
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True), weights.url
    except (OSError, RuntimeError, EOFError, HTTPException, pickle.UnpicklingError) as error:
        raise UserError(f'{weights.url} could not be downloaded or read ({error}): download it by hand and name '
                        f'that file ({KEYS_OF_FILES})') from error
