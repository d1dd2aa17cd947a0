"""One embedding per image: the mean over its object mask (paper section 4).

Axes: B images, D embedding, h w the network's grid, H W its input's size.
"""
import cv2
import numpy as np
import torch
from torch.nn import functional as F

from models.interpolation import interpolation_matrix, resize, resize_transpose

SALIENT = 0.5  # a pixel belongs to an object above this logit (no sigmoid)


def object_weights(saliency: torch.Tensor | None, size: tuple[int, int],
                   masks: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and the weight of each pixel in its image's prototype.

    saliency: B x h x w logits of the network, or None. size: (H, W). masks: B x H x W, the data set's own masks, or None.
    Returns masks (B x H x W bool) and weights (B x H x W float32): the logit inside the predicted mask, or 1 inside a
    given one; 0 elsewhere.
    """
    if masks is not None:
        return masks.bool(), masks.float()
    assert saliency is not None  # a network without a saliency head needs masks
    logits = resize(saliency.float().unsqueeze(1), size).squeeze(1)
    masks = logits > SALIENT
    return masks, logits * masks


def prototypes(grid: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over pixels of weight x upsampled embedding, L2-normalised: B x D float32; zeros for an empty mask.

    grid: B x D x h x w embeddings before upsampling, not normalised. weights: B x H x W.
    The upsampling is linear, so its transpose brings the weights to the grid instead of the embeddings to the pixels.
    """
    sizes = zip(grid.shape[-2:], weights.shape[1:], strict=True)
    matrices = [interpolation_matrix(small, large, weights) for small, large in sizes]
    weights = resize_transpose(weights.unsqueeze(3), *matrices).squeeze(3)          # B x h x w
    sums = torch.bmm(grid.float().flatten(2), weights.flatten(1).unsqueeze(2)).squeeze(2)
    return F.normalize(sums, dim=1)


def object_prototypes(grid: torch.Tensor, instances: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Those of single objects: n x D float32.

    grid: 1 x D x h x w, of their image, or n x D x h x w, one for each. instances: H x W, which object a pixel is of.
    numbers: n of these objects.
    """
    masks = instances == numbers.view(-1, 1, 1)
    return prototypes(grid.expand(len(numbers), -1, -1, -1), masks.float())


class CompressedMask:
    """A mask kept as a PNG in memory: some hundred bytes instead of a value a pixel."""

    def __init__(self, mask: np.ndarray):
        """mask: H x W uint8, 0 or 1, or H x W int32, the numbers of objects."""
        self.numbers = mask.dtype != np.uint8
        if self.numbers:
            self.data = cv2.imencode('.png', mask.astype(np.uint16))[1]
        else:
            self.data = cv2.imencode('.png', mask, [cv2.IMWRITE_PNG_BILEVEL, 1])[1]

    def array(self) -> np.ndarray:
        """As it was."""
        mask = cv2.imdecode(self.data, cv2.IMREAD_UNCHANGED if self.numbers else cv2.IMREAD_GRAYSCALE)
        assert mask is not None  # it was encoded above
        return np.asarray(mask).astype(np.int32) if self.numbers else (np.asarray(mask) > 0).astype(np.uint8)
