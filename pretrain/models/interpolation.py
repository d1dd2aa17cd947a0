"""Bilinear interpolation, align_corners False, as an operation and as a pair of matrices."""
import functools

import torch
from torch.nn import functional as F


def resize(grid, size):
    """B x C x h x w -> B x C x *size."""
    return F.interpolate(grid, size=tuple(size), mode='bilinear', align_corners=False)


def interpolation_matrix(source, target, like):
    """The target x source matrix M with which `resize` is M_down @ grid @ M_across^T, in the dtype and place of `like`."""
    return _matrix(source, target, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _matrix(source, target, dtype, device):
    identity = torch.eye(source, dtype=dtype, device=device).unsqueeze(0)
    return F.interpolate(identity, size=target, mode='linear').squeeze(0).t().contiguous()
