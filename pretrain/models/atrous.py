"""3x3 convolutions with a dilation so large for the map that many taps see only padding (arXiv 1706.05587).

Axes: B batch, I channels in, O channels out, h w the grid.
"""
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LIVE_SHARE = 0.6  # of the taps, below which the weight's gradient is faster tap by tap on a CPU
GPU_FORM = 'convolution'  # a name in FORMS. benchmarks/gpu times them all: change this when a GPU has shown a faster one


class AtrousConv2d(nn.Conv2d):
    """A dilated 3x3 convolution, stride 1, without bias, whose output has its input's size.

    convolution: an `nn.Conv2d`, whose weight this takes over. dilation: of the new one.
    It gives the result of `nn.Conv2d` in fewer operations: it skips taps that see only padding, whose gradients are zero. On
    two cores this saves 15% of a step (ResNet-18, views of 96) to 24% (ResNet-50, 224, frozen to layer2).
    """

    def __init__(self, convolution: nn.Conv2d, dilation: int):
        super().__init__(convolution.in_channels, convolution.out_channels, 3, padding=dilation, dilation=dilation, bias=False,
                         device='meta')  # draws no random numbers
        self.weight = convolution.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B x I x h x w -> B x O x h x w."""
        dilation = self.dilation[0]
        if dilation >= max(x.shape[-2:]):  # the others reach beyond the map from everywhere
            return F.conv2d(x, self.weight[:, :, 1:2, 1:2])
        form = self._cpu_form(x) if x.device.type == 'cpu' else GPU_FORM
        if form == 'convolution':
            return super().forward(x)
        casts = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
        return FORMS[form](x.to(dtype), self.weight.to(dtype), dilation)

    def _cpu_form(self, x: torch.Tensor):
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        live = _live(x.shape[-2], self.dilation[0]) * _live(x.shape[-1], self.dilation[0])
        return 'weight by taps' if learns and live < LIVE_SHARE else 'convolution'


class _TapByTap(torch.autograd.Function):
    """The convolution with its weight's gradient as one matrix product a tap, over the pixels that it sees.

    oneDNN skips taps in the padding except in this gradient. On two cores this saves 10% with ResNet-50 at 224, frozen to
    layer2; on the small maps of views of 96, whose live shares are higher, it would cost 2 to 3%.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, padding=dilation, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        padding = [ctx.dilation] * 2
        x_gradient = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], padding, padding, False, [0, 0], 1, [ctx.needs_input_grad[0], False, False])[0]
        weight_gradient = torch.zeros_like(weight)
        pixels, gradient = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)          # B x h x w x I and O
        for i in range(3):
            out_rows, in_rows = _overlap(x.shape[2], (i - 1) * ctx.dilation)
            for j in range(3):
                out_columns, in_columns = _overlap(x.shape[3], (j - 1) * ctx.dilation)
                outputs, inputs = gradient[:, out_rows, out_columns], pixels[:, in_rows, in_columns]
                weight_gradient[:, :, i, j] = outputs.flatten(0, 2).t() @ inputs.flatten(0, 2)
        return x_gradient, weight_gradient, None


def convolution(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The library's convolution. B x I x h x w, O x I x 3 x 3 -> B x O x h x w."""
    return F.conv2d(x, weight, padding=dilation, dilation=dilation)


def by_taps(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The same as one matrix product a tap, over the pixels that it sees, also for both gradients."""
    pixels = x.permute(0, 2, 3, 1)                                                      # B x h x w x I
    output = x.new_zeros(*pixels.shape[:3], len(weight))                                # B x h x w x O
    for i in range(3):
        out_rows, in_rows = _overlap(x.shape[2], (i - 1) * dilation)
        for j in range(3):
            out_columns, in_columns = _overlap(x.shape[3], (j - 1) * dilation)
            output[:, out_rows, out_columns] += pixels[:, in_rows, in_columns] @ weight[:, :, i, j].t()
    return output.permute(0, 3, 1, 2)


FORMS = {'convolution': convolution, 'weight by taps': _TapByTap.apply, 'by taps': by_taps}


def _overlap(length: int, offset: int):
    """Slices of the outputs whose input at +offset is on the map, and of these inputs."""
    first, end = max(0, -offset), max(0, min(length, length - offset))
    return slice(first, end), slice(first + offset, max(0, end + offset))


def _live(length: int, dilation: int):
    """The share of the three taps along a side that is on the map, on average over its positions."""
    return 1 - 2 * min(dilation, length) / (3 * length)
