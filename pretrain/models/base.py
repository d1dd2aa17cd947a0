"""The interface of all backbones: a network from images to a grid of features, and its stages."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

if TYPE_CHECKING:
    from models.backbones import BackboneSpec

ALL = 'all'  # of freeze_layers


class Backbone(nn.Module):
    """A subclass defines `grid`, child modules by the names that its entry's `frozen` gives, and those of its stages.

    spec: the entry in `models.backbones`. output_stride: input pixels to a step of the last grid.
    """
    unit = 'stages'  # what its stages are called

    def __init__(self, spec: BackboneSpec, output_stride: int):
        super().__init__()
        self.name, self.channels, self.output_stride = spec.name, spec.channels, output_stride
        self.stages, self.normalization = spec.stages, spec.normalization
        self.rates_at_stride_8 = spec.rates_at_stride_8
        self.frozen_parts: tuple[str, ...] = spec.frozen
        self.frozen: bool | int | str = False

    def grid(self, x: Tensor, stage: str) -> Tensor:
        """B x 3 x H x W normalised images -> B x channels x h x w, the grid of a stage."""
        raise NotImplementedError

    def grids(self, x: Tensor, stages: Sequence[str]) -> list[Tensor]:
        """The grids of several stages. A subclass may compute them faster than one after the other."""
        return [self.grid(x, stage) for stage in stages]

    def forward(self, x: Tensor) -> Tensor:
        """B x 3 x H x W normalised images -> B x channels x h x w, with h = ceil(H / output stride)."""
        return self.grid(x, self.stages[-1])

    def stage_module(self, stage: str) -> str:
        """The name, with dots, of the module whose output is the grid of a stage."""
        return stage

    def freeze(self, layers: bool | int | str = True) -> Self:
        """No gradient for leading layers, which stay in eval mode: no graph is built below the first trained layer.

        layers: True for the entry's frozen parts (without any: the first half of the stages), a number of leading stages with
        all that is before them, 'all', or False."""
        self.frozen = layers
        for module in self._frozen_modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        for parameter in self._loose_parameters():
            parameter.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen_modules():
            module.training = False
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen is False:
            return []
        if self.frozen is True and self.frozen_parts:
            return [module for part in self.frozen_parts for module in getattr(self, part).modules()]
        if self.frozen == ALL:
            return list(self.modules())
        number = -(-len(self.stages) // 2) if self.frozen is True else int(self.frozen)
        last = self.stage_module(self.stages[number - 1])
        names = [name for name, _ in self.named_modules()]  # in the order of their execution
        end = max(index for index, name in enumerate(names) if f'{name}.'.startswith(f'{last}.')) + 1
        later = tuple(names[end:])
        return [self.get_submodule(name) for name in names[:end] if not any(_inside(other, name) for other in later)]

    def _loose_parameters(self) -> list[nn.Parameter]:
        """Parameters of modules that hold frozen ones and others, like position embeddings and class tokens: they are used
        before the first stage."""
        if self.frozen is True and self.frozen_parts:
            return []
        frozen = set(self._frozen_modules())
        holders = [module for module in self.modules() if module not in frozen and not frozen.isdisjoint(module.modules())]
        return [parameter for module in holders for parameter in module.parameters(recurse=False)]


def _inside(name: str, holder: str):
    return not holder or name.startswith(f'{holder}.')
