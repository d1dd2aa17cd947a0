"""Bilinear interpolation, align_corners False, as an operation, as a pair of matrices, and its transpose."""
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def resize(grid: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """B x C x h x w -> B x C x *size."""
    return F.interpolate(grid, size=tuple(size), mode='bilinear', align_corners=False)


def interpolation_matrix(source: int, target: int, like: torch.Tensor) -> torch.Tensor:
    """The target x source matrix M with which `resize` is M_down @ grid @ M_across^T, in the dtype and place of `like`."""
    identity = torch.eye(source, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.interpolate(identity, size=target, mode='linear').squeeze(0).t().contiguous()


def resize_transpose(values: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """The transpose of `resize`, which brings gradients and weights of pixels to the grid: B x H x W x D -> B x h x w x D.

    down, across: `interpolation_matrix` of the rows, H x h, and of the columns, W x w."""
    low = (down.t() @ values.flatten(2)).unflatten(2, values.shape[2:])     # B x h x W x D
    return across.t() @ low
