"""The losses of `losses.py`, with the same values and gradients in less time and memory.

Axes: B images, D embedding, h w the network's grid, H W the masks' size, N pixels of a chunk,
I images of a group, L = B + K logit columns.

Pixel embeddings are the grid's, upsampled bilinearly and then L2-normalised. Neither they nor their logits are ever held
for the whole batch: images are taken in groups and pixels in chunks, and the gradient with respect to the grid is formed
in the forward pass, so that nothing of the size pixels x L outlives its chunk.
"""
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from contrastive.losses import contrast_images, saliency_loss
from models.interpolation import interpolation_matrix, resize_transpose

__all__ = ['contrastive_loss', 'image_contrastive_loss', 'mask_prototypes',
           'saliency_loss']  # the last is the plain one: there is nothing to save

EPS = 1e-12                # of the L2 normalisation
CHUNK_ELEMENTS = 1 << 19   # logits held at once on a CPU: 2 MiB, which its caches hold
GPU_ELEMENTS = 1 << 26     # logits, or upsampled embedding values, held at once on a GPU, which wants large kernels


def contrastive_loss(grid: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor,
                     temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Contrast of every object pixel with the prototypes of the batch and the queue (paper section 3).

    grid: B x D x h x w embeddings before upsampling and normalisation; the only input with a gradient.
    mask: B x H x W, nonzero = object. The upsampling is to H x W.
    prototypes: B x D unit rows; the target of image i's pixels is row i. queue: D x K unit columns.
    temperature: T > 0.
    Returns scalars: the loss (mean weighted with ENet class weights, arXiv 1606.02147), and the top-1 and top-5 accuracy
    in percent. All are 0 if there are no object pixels.
    """
    columns = torch.cat([prototypes.t(), queue], dim=1).to(grid.dtype) / temperature
    return _ContrastiveLoss.apply(grid, mask.bool(), columns)


def image_contrastive_loss(grid: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor,
                           temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `losses.image_contrastive_loss`: there are few logits, and the queries are computed like the prototypes here."""
    return contrast_images(mask_embeddings(grid, mask), mask, prototypes, queue, temperature)


@torch.no_grad()
def mask_prototypes(grid: Tensor, mask: Tensor) -> Tensor:
    """The prototype of each image: its `mask_embeddings`, without gradient."""
    return mask_embeddings(grid, mask)


def mask_embeddings(grid: Tensor, mask: Tensor) -> Tensor:
    """Mean embedding of each image's object: sum of the normalised pixel embeddings in the mask, L2-normalised.

    grid: B x D x h x w before upsampling and normalisation. mask: B x H x W, nonzero = object.
    Returns B x D; a row of zeros for an empty mask.
    """
    inside, matrices, sums = mask.bool(), interpolation(grid, mask), []
    for group in _image_groups(mask, grid.shape[1]):
        weight = inside[group] / upsample(grid[group], *matrices).norm(dim=3).clamp_min(EPS)   # I x H x W
        weight = resize_transpose(weight.unsqueeze(3), *matrices).squeeze(3)                # I x h x w: back to the grid
        cells = grid[group].flatten(2).contiguous()                     # in one order, whatever the layout
        sums.append(torch.bmm(cells, weight.flatten(1).unsqueeze(2)).squeeze(2))
    return F.normalize(torch.cat(sums), dim=1, eps=EPS)


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, mask: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        target_weight = target_weights(mask, grid.dtype)
        loss, top1, top5 = grid.new_zeros(3).unbind()
        grid_gradient = torch.empty_like(grid)
        budget = CHUNK_ELEMENTS if grid.device.type == 'cpu' else GPU_ELEMENTS
        matrices = interpolation(grid, mask)
        for group in _image_groups(mask, max(columns.shape[1], grid.shape[1])):
            upsampled = upsample(grid[group], *matrices)
            pixels, inside, gradient = upsampled.flatten(1, 2), mask[group].flatten(1), torch.zeros_like(upsampled)
            for index in _chunks(inside, max(1, budget // (len(pixels) * columns.shape[1]))):
                part = _chunk(pixels[:, index], inside[:, index], target_weight[group], group, columns)
                loss += part[0]
                top1 += part[1]
                top5 += part[2]
                gradient.flatten(1, 2)[:, index] = part[3]
            grid_gradient[group] = resize_transpose(gradient, *matrices).permute(0, 3, 1, 2)
        ctx.save_for_backward(grid_gradient)
        percent = 100 / mask.sum().clamp_min(1).to(grid.dtype)
        top1, top5 = top1 * percent, top5 * percent
        ctx.mark_non_differentiable(top1, top5)
        return loss, top1, top5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        grid_gradient, = ctx.saved_tensors
        return grid_gradient * loss_gradient, None, None


def target_weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight of each pixel of image i in the weighted mean: c_i / sum over pixels of c, with c_i the ENet weight.

    All pixels of an image share their target, so class frequencies follow from the masks' areas. B, `dtype`.
    """
    area = mask.flatten(1).sum(1).to(dtype)
    weight = 1 / torch.log(1.02 + area / area.sum().clamp_min(1))
    return weight / (area * weight).sum().clamp_min(1)


def _chunk(pixels: Tensor, inside: Tensor, weight: Tensor, targets: slice, columns: Tensor):
    """Loss, number of top-1 and top-5 hits, and gradient (I x N x D) of N pixels of each of I images.

    pixels: I x N x D, before normalisation. inside: I x N, False for pixels that don't count. weight: I, the weight of a pixel.
    targets: the slice of the images' own columns. columns: D x L, divided by the temperature.
    """
    norm = pixels.norm(dim=2, keepdim=True).clamp_min(EPS)
    unit = pixels / norm
    logits = unit @ columns                                             # I x N x L
    right = logits[:, :, targets].diagonal(dim1=0, dim2=2).t().clone()  # I x N
    highest = logits.amax(2)
    probability = torch.softmax(logits, dim=2)
    better = logits.gt_(right.unsqueeze(2)).sum(2)                      # in place: a sum of booleans would copy them
    log_sum = highest - probability.amax(2).log()                       # of the exponentials; the highest never underflows
    weight = weight.unsqueeze(1) * inside
    loss = (weight * (log_sum - right)).sum()
    gradient = probability @ columns.t() - columns.t()[targets].unsqueeze(1)    # with respect to the unit vectors
    gradient = (gradient - unit * (unit * gradient).sum(2, keepdim=True)) * (weight.unsqueeze(2) / norm)
    return loss, ((better < 1) & inside).sum(), ((better < 5) & inside).sum(), gradient


def _chunks(inside: Tensor, rows: int):
    """Indices of the pixels to look at, `rows` at a time. inside: I x H*W.

    On a CPU, where there is one image, those inside its mask. On a GPU their number would have to be fetched, which makes the
    host wait, so there it is all of them, and those outside weigh nothing.
    """
    if inside.device.type == 'cpu':
        return inside[0].nonzero().squeeze(1).split(rows) if inside.any() else ()
    return [slice(start, start + rows) for start in range(0, inside.shape[1], rows)]


def _image_groups(mask: Tensor, values: int):
    """Slices of the images that are taken at once: one by one on a CPU, on a GPU as many as GPU_ELEMENTS holds. values: held at
    once for each pixel."""
    images = 1 if mask.device.type == 'cpu' else max(1, GPU_ELEMENTS // (values * mask[0].numel()))
    return [slice(start, min(start + images, len(mask))) for start in range(0, len(mask), images)]


def interpolation(grid: Tensor, mask: Tensor) -> list[Tensor]:
    """The interpolation from the grid to the masks, by rows and by columns."""
    return [interpolation_matrix(*sizes, grid) for sizes in zip(grid.shape[-2:], mask.shape[-2:], strict=True)]


def upsample(grid: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Bilinear upsampling as two matrix products: B x D x h x w -> B x H x W x D. down: H x h. across: W x w."""
    wide = across @ grid.contiguous().permute(0, 2, 3, 1)               # B x h x W x D, in one order whatever the layout
    return (down @ wide.flatten(2)).unflatten(2, wide.shape[2:])
