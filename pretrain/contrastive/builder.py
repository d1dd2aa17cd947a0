"""The method: a query and a key network, a queue of prototypes, and one step of their contrast (paper section 3).

Axes: B images of this process, P processes it computes, D embedding, K queue, H W the input's size, h w the network's grid.
"""
import contextlib
import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from contrastive.losses import contrastive_loss, mask_prototypes, saliency_loss
from models.factory import get_model
from utils.parallel import distributed, ranks


class ContrastiveModel(nn.Module):
    """MaskContrast on top of momentum contrast (paper section 3.3; arXiv 1911.05722).

    p: mapping with `backbone`, `backbone_kwargs`, `model_kwargs`, `moco_kwargs` (T, m, K) and `freeze_layers`, and perhaps
    `simulate_processes`: how many processes the run computes as, a multiple of the real number, which is the default. Each
    has its own batch-norm statistics, in-batch prototypes and weights of the losses, which are averaged.
    Attribute streams: the `RandomStreams` of the processes that are computed here, or None.
    State: model_q.* and model_k.*, equal at the start; queue, D x K unit columns; queue_ptr, the next column to write.
    """

    def __init__(self, p):
        super().__init__()
        moco = p['moco_kwargs']
        self.K, self.m, self.T = moco['K'], moco['m'], moco['T']
        self.processes = (p.get('simulate_processes') or ranks.world_size()) // ranks.world_size()  # computed here
        self.streams = None
        self.model_q = get_model(p)
        self.model_k = copy.deepcopy(self.model_q).requires_grad_(False)
        if p.get('freeze_layers'):
            self.model_q.backbone.freeze()
            self.model_k.backbone.freeze()
        self._update_key = get_ema_multi_avg_fn(self.m)
        ndim = self.model_q.head.out_channels
        self.register_buffer('queue', F.normalize(torch.randn(ndim, self.K), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    def forward(self, im_q, im_k, sal_q, sal_k):
        """One step in train mode: losses and accuracies; updates the key network and the queue.

        im_q, im_k: B x 3 x H x W normalised float images, the query and the key view.
        sal_q, sal_k: B x H x W integer masks, nonzero = object (B x h x w without `upsample`).
        Returns scalars: `loss`, `contrastive_loss`, `saliency_loss`, `acc1`, `acc5` (percent).
        Raises ValueError for masks of another size, when K is no multiple of the global batch, and when B is none of P.
        """
        batch = len(im_q) * ranks.world_size()
        if self.K % batch:
            raise ValueError(f'the queue length K = {self.K} is not a multiple of the global batch {batch}')
        if len(im_q) % self.processes:
            raise ValueError(f'{len(im_q)} images can not be divided over {self.processes} simulated processes')
        queries = self._each_process(self.model_q, im_q)                # P times (B/P x D x h x w, B/P x h x w)
        self._check_masks(im_q, queries[0][0], sal_q, sal_k)
        with torch.no_grad():
            self._momentum_update()
            k = self._key_grid(im_k)                                    # B x D x h x w
            prototypes = mask_prototypes(k, sal_k)                      # B x D
        shares = zip(queries, sal_q.chunk(self.processes), prototypes.chunk(self.processes), strict=True)
        outputs = [self._losses(*query, mask, keys) for query, mask, keys in shares]
        self._enqueue(prototypes)
        return {name: torch.stack([output[name] for output in outputs]).mean() for name in outputs[0]}

    def _losses(self, q, saliency, mask, prototypes):
        """Losses and accuracies of one process's share of the batch."""
        contrastive, acc1, acc5 = contrastive_loss(q, mask, prototypes, self.queue, self.T)
        saliency = saliency_loss(saliency, mask) if saliency is not None else torch.zeros_like(contrastive)
        return {'loss': contrastive + saliency, 'contrastive_loss': contrastive, 'saliency_loss': saliency,
                'acc1': acc1, 'acc5': acc5}

    def _each_process(self, network, images):
        """Grids of `images`, of each process's share by itself. Only the first one's batch-norm statistics are kept."""
        outputs = []
        for number, share in enumerate(images.chunk(self.processes)):
            if self.streams:
                self.streams.use(number)
            torch.clear_autocast_cache()  # through weights that are cast once for all, gradients would add up in half precision
            with _statistics_left_alone(network) if number else contextlib.nullcontext():
                outputs.append(network.grid(share))
        if self.streams:
            self.streams.use(0)
        return outputs

    @torch.no_grad()
    def _momentum_update(self):
        """key = m * key + (1 - m) * query for every parameter that learns; batch-norm statistics stay each one's own."""
        pairs = [(key, query) for key, query in zip(self.model_k.parameters(), self.model_q.parameters(), strict=True)
                 if query.requires_grad]
        keys, queries = map(list, zip(*pairs, strict=True))
        self._update_key(keys, queries, None)

    @torch.no_grad()
    def _key_grid(self, images):
        """The key network's grid for this process's images, computed on a batch shuffled over all processes.

        The shuffle keeps batch norm from leaking which image is which; within one process it would change nothing.
        Each image travels to one process, and only its grid travels back, not the upsampled embeddings.
        """
        batch = len(images) * ranks.world_size()
        if batch == len(images) and self.processes == 1:
            return self.model_k.grid(images)[0]
        order = distributed.shared_permutation(batch)
        shuffled = distributed.take_rows(images, order)
        grid = torch.cat([grid for grid, _ in self._each_process(self.model_k, shuffled)])
        return distributed.take_rows(grid, order.argsort())

    @torch.no_grad()
    def _enqueue(self, prototypes):
        """Write the prototypes of all processes, in rank order, into the queue at `queue_ptr`, which moves on."""
        keys = distributed.all_gather(prototypes)
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue.index_copy_(1, columns, keys.t().to(self.queue.dtype))
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)

    def _check_masks(self, images, grid, *masks):
        size = images.shape[-2:] if self.model_q.upsample else grid.shape[-2:]
        for mask in masks:
            if tuple(mask.shape) != (len(images), *size):
                raise ValueError(f'masks of shape {tuple(mask.shape)}, but the outputs are {(len(images), *size)}')


@contextlib.contextmanager
def _statistics_left_alone(network):
    """Batch norms in train mode use their batch's statistics, and don't add them to the running ones."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
