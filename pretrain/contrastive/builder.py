"""The method: a query and a key network, a queue of prototypes, and one step of their contrast (paper section 3).

Axes: B images of this process, D embedding, K queue, H W the input's size, h w the network's grid.
"""
import copy
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from contrastive import fused_losses, gathered_losses, losses
from models.factory import get_model
from models.networks import PretrainingNetwork
from utils.parallel import distributed, ranks

LOSSES = {'fused': fused_losses, 'plain': losses, 'gathered': gathered_losses}


class ContrastiveModel(nn.Module):
    """MaskContrast on top of momentum contrast (paper section 3.3; arXiv 1911.05722).

    p: mapping with `backbone`, `backbone_kwargs`, `model_kwargs`, `moco_kwargs` (T, m, K, and perhaps `loss`, auto or a name in
    LOSSES, and `contrast`, pixel or image) and `freeze_layers`. K: 0 for no queue, contrast within a process's batch only.
    State: model_q.* and model_k.*, equal at the start; queue, D x K unit columns; queue_ptr, the next column to write.
    """

    model_q: PretrainingNetwork
    model_k: PretrainingNetwork
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, p: Mapping[str, Any]):
        super().__init__()
        moco = p['moco_kwargs']
        self.K, self.m, self.T = moco['K'], moco['m'], moco['T']
        self.loss_form = moco.get('loss') or 'auto'
        self.contrast = moco.get('contrast') or 'pixel'
        network = get_model(p)
        assert isinstance(network, PretrainingNetwork)  # which get_model gives for `moco_kwargs`
        self.model_q = network
        self.model_k = copy.deepcopy(self.model_q).requires_grad_(False)
        layers = p.get('freeze_layers') or False
        self.model_q.backbone.freeze(layers)  # no gradient, and eval mode whatever train() says
        self.model_k.backbone.freeze(layers)
        self._average = get_ema_multi_avg_fn(self.m)
        ndim = self.model_q.head.out_channels
        self.register_buffer('queue', F.normalize(torch.randn(ndim, self.K), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    def forward(self, im_q: Tensor, im_k: Tensor, sal_q: Tensor, sal_k: Tensor,
                object_pixels: Sequence[int] | None = None) -> dict[str, Tensor]:
        """One step in train mode: losses and accuracies; updates the key network and the queue.

        im_q, im_k: B x 3 x H x W normalised float images, the query and the key view.
        sal_q, sal_k: B x H x W integer masks, nonzero = object (B x h x w without `upsample`).
        object_pixels: number of nonzero pixels in each mask of `sal_q`, B numbers on the host, for
        `gathered_losses` alone; None: unknown.
        Returns scalars: `loss`, `contrastive_loss`, `saliency_loss`, `acc1`, `acc5` (percent).
        Raises ValueError for masks of another size, and if K is not a multiple of the global batch.
        """
        self.check_batch(len(im_q))
        q, saliency = self.model_q.grid(im_q)                           # B x D x h x w, B x h x w
        self.check_masks(im_q, q, sal_q, sal_k)
        with torch.no_grad():
            self.update_key_network()                                   # by the weights before this step's SGD update
            k = self._key_grid(im_k)                                    # B x D x h x w
        prototypes = self.prototypes(k, sal_k)                          # B x D
        output = self.step_losses(q, saliency, sal_q, prototypes, object_pixels)
        self.enqueue(prototypes)
        return output

    @property
    def losses(self) -> ModuleType:
        """The module with the losses in the form that the configuration asks for, or the fastest one for the device."""
        if self.loss_form == 'auto':
            fast = self.queue.is_cuda and not torch.are_deterministic_algorithms_enabled()
            return gathered_losses if fast else fused_losses
        return LOSSES[self.loss_form]

    def prototypes(self, k: Tensor, mask: Tensor) -> Tensor:
        """The mean embedding of each key mask, L2-normalised: B x D, float32, without gradient."""
        with torch.autocast(k.device.type, enabled=False):
            return self.losses.mask_prototypes(_at_least_float32(k), mask)

    def step_losses(self, q: Tensor, saliency: Tensor | None, mask: Tensor, prototypes: Tensor,
                    object_pixels: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Losses and accuracies of one process's share of the batch, in float32.

        q: B x D x h x w. saliency: B x h x w logits, or None without a saliency head. mask: of the query views.
        object_pixels: as for `forward`."""
        pixels = self.contrast == 'pixel'
        contrast = self.losses.contrastive_loss if pixels else self.losses.image_contrastive_loss
        counted = {'object_pixels': object_pixels} if pixels and self.losses is gathered_losses else {}
        with torch.autocast(q.device.type, enabled=False):
            queue = self.queue.clone()                                  # D x K: it moves on before the backward pass
            contrastive, acc1, acc5 = contrast(_at_least_float32(q), mask, prototypes, queue, self.T, **counted)
            balanced = (torch.zeros_like(contrastive) if saliency is None
                        else self.losses.saliency_loss(_at_least_float32(saliency), mask))
        return {'loss': contrastive + balanced, 'contrastive_loss': contrastive, 'saliency_loss': balanced,
                'acc1': acc1, 'acc5': acc5}

    @torch.no_grad()
    def update_key_network(self) -> None:
        """key = m * key + (1 - m) * query for every parameter that learns; each network keeps its own batch-norm statistics."""
        pairs = [(key, query) for key, query in zip(self.model_k.parameters(), self.model_q.parameters(), strict=True)
                 if query.requires_grad]
        keys, queries = map(list, zip(*pairs, strict=True))
        self._average(keys, queries, None)

    def _key_grid(self, images: Tensor):
        """The key network's grid for this process's images. With several processes it is computed on a shuffled batch; in a
        single process the order does not matter."""
        if ranks.world_size() == 1:
            return self.model_k.grid(images)[0]
        return on_shuffled_batch(images, lambda shuffled: self.model_k.grid(shuffled)[0])

    @torch.no_grad()
    def enqueue(self, prototypes: Tensor) -> None:
        """Write the prototypes of all processes, in rank order, into the queue at `queue_ptr`, which moves on."""
        if not self.K:
            return
        keys = distributed.all_gather(prototypes)
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue.index_copy_(1, columns, keys.t().to(self.queue.dtype))
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)

    def check_batch(self, images: int) -> None:
        """images: of this process. Raises ValueError if K is not a multiple of the global batch."""
        batch = images * ranks.world_size()
        if self.K % batch:
            raise ValueError(f'the queue length K = {self.K} is not a multiple of the global batch {batch}')

    def check_masks(self, images: Tensor, grid: Tensor, *masks: Tensor) -> None:
        """Raises ValueError for masks that do not have the size of the outputs."""
        size = images.shape[-2:] if self.model_q.upsample else grid.shape[-2:]
        for mask in masks:
            if tuple(mask.shape) != (len(images), *size):
                raise ValueError(f'masks of shape {tuple(mask.shape)}, but the outputs are {(len(images), *size)}')


def on_shuffled_batch(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """`network(images)` for this process's images, computed on a batch that is shuffled over all processes.

    The shuffle keeps batch norm from leaking which image is which. Each image travels to one process, and only its grid
    travels back, not the upsampled embeddings.
    """
    order = distributed.shared_permutation(len(images) * ranks.world_size())
    outputs = network(distributed.take_rows(images, order))
    return distributed.take_rows(outputs, order.argsort())


def _at_least_float32(tensor: Tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()
