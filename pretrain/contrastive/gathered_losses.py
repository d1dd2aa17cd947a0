"""The losses of `fused_losses.py` for a GPU, of object pixels only: the same values and gradients in a third of the work.

The GPU is never asked how many object pixels there are, which would make the host wait: the loader has counted them. The
arithmetic of a chunk is compiled into a few kernels where PyTorch can do that. Without a count it is the fused form.

Axes: B images, D embedding, h w the network's grid, H W the masks' size, N pixels of a chunk,
I images of a group, L = B + K logit columns.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrastive import fused_losses
from contrastive.compilation import Compiled
from contrastive.fused_losses import EPS, image_contrastive_loss, mask_prototypes, saliency_loss, target_weights
from models.interpolation import resize_transpose

__all__ = ['contrastive_loss', 'image_contrastive_loss', 'mask_prototypes',
           'saliency_loss']  # all but the first have few logits or none: there is little to save

CHUNK_ELEMENTS = 1 << 25   # logits held at once: 128 MiB
GROUP_ELEMENTS = 1 << 26   # upsampled embedding values held at once: 256 MiB, and as much again for their gradient


def contrastive_loss(grid: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor, temperature: float,
                     object_pixels: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As `fused_losses.contrastive_loss`. object_pixels: number of nonzero pixels in the mask of each image, B numbers on the
    host; None: unknown.

    Raises ValueError on a CPU if they differ from the mask. On a GPU that check would make the host wait, so they are trusted:
    object pixels beyond the count are left out.
    """
    if object_pixels is None:
        return fused_losses.contrastive_loss(grid, mask, prototypes, queue, temperature)
    inside = mask.bool()
    if len(object_pixels) != len(mask):
        raise ValueError(f'{len(object_pixels)} counts of object pixels for {len(mask)} masks')
    if mask.device.type == 'cpu' and inside.flatten(1).sum(1).tolist() != list(object_pixels):
        raise ValueError(f'object_pixels are {list(object_pixels)}, but those of the masks {inside.flatten(1).sum(1).tolist()}')
    columns = torch.cat([prototypes.t(), queue], dim=1).to(grid.dtype) / temperature
    return _ContrastiveLoss.apply(grid, inside, columns, tuple(map(int, object_pixels)))


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, mask: Tensor, columns: Tensor,
                counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        sums, grid_gradient = _loss_and_gradient(grid, mask, columns, counts)
        ctx.save_for_backward(grid_gradient)
        percent = 100 / max(sum(counts), 1)
        loss, top1, top5 = sums[0], sums[1] * percent, sums[2] * percent
        ctx.mark_non_differentiable(top1, top5)
        return loss, top1, top5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        grid_gradient, = ctx.saved_tensors
        return grid_gradient * loss_gradient, None, None, None


def _loss_and_gradient(grid: Tensor, mask: Tensor, columns: Tensor, counts: Sequence[int]):
    """(loss, top-1 hits, top-5 hits) as a tensor of three, and the loss's gradient with respect to the grid.

    mask: bool. columns: D x L, divided by the temperature. counts: object pixels of each image."""
    chunk = _compiled_chunk if grid.device.type == 'cuda' else pixel_chunk
    weight, matrices, sums = target_weights(mask, grid.dtype), fused_losses.interpolation(grid, mask), grid.new_zeros(3)
    gradient, pixels = torch.empty_like(grid), mask[0].numel()
    images = min(len(mask), max(1, GROUP_ELEMENTS // (grid.shape[1] * pixels)))
    rows = max(1, min(CHUNK_ELEMENTS // columns.shape[1], images * pixels // 8))    # whatever the counts: one shape to compile
    for start in range(0, len(mask), images):
        group = slice(start, start + images)
        upsampled = fused_losses.upsample(grid[group], *matrices)       # I x H x W x D
        flat = upsampled.flatten(0, 2)
        flat_gradient = torch.cat([torch.zeros_like(flat), flat[:1]])   # with one more row, for padding
        for index in gathered(mask[group].flatten(), sum(counts[group]), rows):
            inside = index >= 0
            place = index.clamp_min(0)
            target = place.div(pixels, rounding_mode='floor') + start
            part, of_pixels = chunk(flat[place], target, weight[target] * inside, columns)
            sums += part
            flat_gradient.index_copy_(0, torch.where(inside, index, len(flat)), of_pixels)
        back = resize_transpose(flat_gradient[:-1].view_as(upsampled), *matrices)
        gradient[group] = back.permute(0, 3, 1, 2)
    return sums, gradient


def gathered(inside: Tensor, count: int, rows: int) -> tuple[Tensor, ...]:
    """The indices at which a flat bool tensor is true, without a wait, in chunks of `rows`; -1 fills up the last one.
    count: how many there are. No chunk for none."""
    return torch.nonzero_static(inside, size=-(-count // rows) * rows).squeeze(1).split(rows) if count else ()


def pixel_chunk(pixels: Tensor, target: Tensor, weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, top-1 hits, top-5 hits) of N pixels as a tensor of three, and the gradient of the loss, N x D.

    pixels: N x D, before normalisation. target: N, the pixel's image, which is its column. weight: N, the weight of the pixel;
    0: padding. columns: D x L, divided by the temperature.
    """
    norm = pixels.norm(dim=1, keepdim=True).clamp_min(EPS)
    unit = pixels / norm
    logits = unit @ columns                                             # N x L
    right = logits.gather(1, target.unsqueeze(1))                       # N x 1
    better = (logits > right).sum(1)
    log_sum = torch.logsumexp(logits, 1)
    loss = (weight * (log_sum - right.squeeze(1))).sum()
    counts = weight > 0
    hits = [((better < k) & counts).sum().to(loss.dtype) for k in (1, 5)]
    probability = torch.exp(logits - log_sum.unsqueeze(1))
    gradient = probability @ columns.t() - columns.t()[target]          # with respect to the unit vectors
    gradient = (gradient - unit * (unit * gradient).sum(1, keepdim=True)) * (weight.unsqueeze(1) / norm)
    return torch.stack([loss, *hits]), gradient


_compiled_chunk = Compiled(pixel_chunk, 'the losses')
