"""The losses of pre-training as the paper has them (section 3), in plain autograd.

`fused_losses.py` (on a CPU) and `gathered_losses.py` (on a GPU) compute the same values and gradients in less time and memory.
They run unless the experiment sets `moco_kwargs.loss: plain`.

Axes: B images, D embedding, h w the network's grid, H W the masks' size, P object pixels of the batch (or images), K queue.
Grids are the network's outputs before upsampling and normalisation. Masks are nonzero on the object.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from models.interpolation import resize


def pixel_embeddings(grid: Tensor, mask: Tensor) -> Tensor:
    """The grid at the size of the mask, upsampled bilinearly and then L2-normalised. B x D x h x w -> B x D x H x W."""
    return F.normalize(resize(grid, mask.shape[1:]), dim=1)


def saliency_loss(grid: Tensor, mask: Tensor) -> Tensor:
    """Balanced binary cross-entropy: all object pixels together weigh as much as all background pixels.

    grid: B x h x w logits."""
    logits = resize(grid.unsqueeze(1), mask.shape[1:]).squeeze(1)               # B x H x W
    target = mask.bool().to(logits.dtype)
    background = 1 - target.mean()                                              # share of the batch's pixels
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    return torch.where(mask.bool(), background * losses, (1 - background) * losses).mean()


@torch.no_grad()
def mask_prototypes(grid: Tensor, mask: Tensor) -> Tensor:
    """The prototype of each image: its `mask_embeddings`, without gradient."""
    return mask_embeddings(grid, mask)


def mask_embeddings(grid: Tensor, mask: Tensor) -> Tensor:
    """The mean embedding of each image's object, L2-normalised: B x D. Zeros for an empty mask."""
    pixels = pixel_embeddings(grid, mask)                                       # B x D x H x W
    sums = (pixels * mask.bool().unsqueeze(1)).sum((2, 3))                      # B x D
    return F.normalize(sums, dim=1)                                             # of the sum as of the mean


def contrastive_loss(grid: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor,
                     temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Contrast of every object pixel with its image's prototype against those of the batch and the queue.

    prototypes: B x D unit rows. queue: D x K unit columns. Returns the loss (mean weighted with ENet class weights,
    arXiv 1606.02147), and the top-1 and top-5 accuracy in percent; all are 0 if there are no object pixels.
    """
    inside = mask.bool()
    pixels = pixel_embeddings(grid, mask).permute(0, 2, 3, 1)[inside]           # P x D
    own = torch.arange(len(mask), device=mask.device).view(-1, 1, 1)
    target = own.expand_as(mask)[inside]                                        # P: the pixel's own image
    return contrast(pixels, target, prototypes, queue, temperature)


def image_contrastive_loss(grid: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor,
                           temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `contrastive_loss`, for images instead of pixels: the one query of an image is the mean embedding of its object."""
    return contrast_images(mask_embeddings(grid, mask), mask, prototypes, queue, temperature)


def contrast_images(queries: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor,
                    temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """`contrast` of the queries, B x D, of those images that have an object."""
    target = mask.flatten(1).any(1).nonzero().squeeze(1)
    return contrast(queries[target], target, prototypes, queue, temperature)


def contrast(queries: Tensor, target: Tensor, prototypes: Tensor, queue: Tensor,
             temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, top-1 and top-5 accuracy of P queries, P x D unit rows, whose right prototypes are `target`, P."""
    if not len(target):  # the sum of nothing is 0, and the backward pass goes through it
        return queries.sum(), queries.new_zeros(()), queries.new_zeros(())
    logits = torch.cat([queries @ prototypes.t(), queries @ queue], dim=1) / temperature    # P x (B + K)
    counts = target.bincount(minlength=logits.shape[1]).to(logits.dtype)        # B + K: 0 for the queue
    loss = F.cross_entropy(logits, target, weight=1 / torch.log(1.02 + counts / len(target)))
    right = logits.gather(1, target.unsqueeze(1))                               # P x 1
    better = (logits > right).sum(1)                                            # P: columns above the right one
    acc1, acc5 = (100 * (better < k).to(loss.dtype).mean() for k in (1, 5))
    return loss, acc1, acc5
