"""What every backbone is to the rest of the program: a network from images to a grid of features, and its stages."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

if TYPE_CHECKING:
    from models.backbones import BackboneSpec


class Backbone(nn.Module):
    """A subclass defines `grid`, and child modules by the names that its entry's `frozen` gives.

    spec: the entry in `models.backbones`. output_stride: input pixels to a step of the last grid.
    """

    def __init__(self, spec: BackboneSpec, output_stride: int):
        super().__init__()
        self.name, self.channels, self.output_stride = spec.name, spec.channels, output_stride
        self.stages, self.normalization = spec.stages, spec.normalization
        self.frozen_parts: tuple[str, ...] = spec.frozen
        self.frozen = False

    def grid(self, x: Tensor, stage: str) -> Tensor:
        """B x 3 x H x W normalised images -> B x channels x h x w, the grid of a stage."""
        raise NotImplementedError

    def grids(self, x: Tensor, stages: Sequence[str]) -> list[Tensor]:
        """The grids of several stages. A subclass may have a faster way than one after the other."""
        return [self.grid(x, stage) for stage in stages]

    def forward(self, x: Tensor) -> Tensor:
        """B x 3 x H x W normalised images -> B x channels x h x w, with h = ceil(H / output stride)."""
        return self.grid(x, self.stages[-1])

    def freeze(self) -> Self:
        """No gradient for the frozen parts, which stay in eval mode: no graph is built below the first that learns."""
        self.frozen = True
        for part in self.frozen_parts:
            getattr(self, part).requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            for part in self.frozen_parts:
                getattr(self, part).eval()
        return self
