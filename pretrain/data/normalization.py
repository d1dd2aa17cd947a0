"""From decoded images to the input of a network."""
import functools

import torch

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


def to_images(batch: torch.Tensor, device: torch.device, normalization: Normalization) -> torch.Tensor:
    """B x H x W x 3 uint8 RGB -> normalised B x 3 x H x W float32 on `device`, in channels_last layout.

    normalization: mean and deviation of each channel, for values in [0, 1]: the backbone's (`models.backbones`)."""
    mean, std = _tensors(normalization, device)
    return batch.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


@functools.lru_cache(maxsize=8)
def _tensors(normalization: Normalization, device: torch.device):
    """Mean and deviation, 1 x 3 x 1 x 1 each. Copied to a GPU once, as each such copy makes the host wait."""
    return [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in normalization]
