"""One process that computes the result of several: `simulate_processes`.

The published runs had 2 processes, each with its own batch-norm statistics, in-batch prototypes and weights of the losses.
"""
import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from contrastive.builder import ContrastiveModel, on_shuffled_batch
from models.networks import PretrainingNetwork
from utils.parallel.random_streams import RandomStreams


class SimulatedProcesses(nn.Module):
    """A step of `model` as P processes would compute it, whose losses and gradients are averaged.

    streams: the `RandomStreams` of these P processes.
    """

    def __init__(self, model: ContrastiveModel, streams: RandomStreams):
        super().__init__()
        self.model, self.streams, self.processes = model, streams, len(streams.states)

    def forward(self, im_q: Tensor, im_k: Tensor, sal_q: Tensor, sal_k: Tensor,
                object_pixels: Sequence[int] | None = None) -> dict[str, Tensor]:
        """As `ContrastiveModel.forward`; B is the images of all P processes, and a ValueError says so where P doesn't divide
        it."""
        model, count = self.model, self.processes
        if len(im_q) % count:
            raise ValueError(f'{len(im_q)} images cannot be divided over {count} simulated processes')
        model.check_batch(len(im_q))
        queries = self._grids(model.model_q, im_q)                      # P times (B/P x D x h x w, B/P x h x w)
        model.check_masks(im_q, queries[0][0], sal_q, sal_k)
        with torch.no_grad():
            model.update_key_network()
            k = on_shuffled_batch(im_k, lambda images: torch.cat([grid for grid, _ in self._grids(model.model_k, images)]))
        prototypes = model.prototypes(k, sal_k)                         # B x D
        size = len(im_q) // count
        pixels = [object_pixels and object_pixels[first:first + size] for first in range(0, len(im_q), size)]
        shares = zip(queries, sal_q.chunk(count), prototypes.chunk(count), pixels, strict=True)
        outputs = [model.step_losses(q, saliency, mask, own, counts) for (q, saliency), mask, own, counts in shares]
        model.enqueue(prototypes)
        return {name: torch.stack([output[name] for output in outputs]).mean() for name in outputs[0]}

    def _grids(self, network: PretrainingNetwork, images: Tensor):
        """Outputs for each process's share of `images`. Only the first one's batch-norm statistics are kept."""
        outputs = []
        for number, share in enumerate(images.chunk(self.processes)):
            self.streams.use(number)
            torch.clear_autocast_cache()  # through weights that are cast once for all, gradients would add up in half precision
            with _statistics_left_alone(network) if number else contextlib.nullcontext():
                outputs.append(network.grid(share))
        self.streams.use(0)
        return outputs


@contextlib.contextmanager
def _statistics_left_alone(network: nn.Module) -> Iterator[None]:
    """Batch norms in train mode use their batch's statistics, and don't add them to the running ones."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
