"""A linear classifier of pixels, fitted in seconds to features that were computed once.

`linear_finetune.py` is the published measure, which trains on new views in each epoch, for hours. This one sees each image
once, unchanged, and only some cells of its grid, but reaches the optimum of its convex loss, so that checkpoints can be
compared.

Axes: N cells of the grids of all training images, F channels, C classes, B batch, h w the grid.
"""
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.label_space import VOID

CELLS = 40_000       # of all images together
STEPS = 60           # of L-BFGS, at most
WEIGHT_DECAY = 1e-4  # keeps the optimum finite where classes can be told apart without an error


class CellSample:
    """Gathers the features and labels of some cells of each image's grid, the same ones for every network.

    images: how many there will be. seed: of the choice of cells.
    """

    def __init__(self, images: int, seed: int):
        self.share, self.rng = max(1, CELLS // images), np.random.default_rng(seed)
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, features: Tensor, labels: list[np.ndarray]) -> None:
        """features: B x F x h x w. labels: of each image, H x W uint8 at any size; a cell's is that of the pixel at its
        centre, and void ones are left out."""
        for grid, label in zip(features, labels, strict=True):
            rows, columns = (_centres(many, few) for many, few in zip(label.shape, grid.shape[-2:], strict=True))
            small = label[np.ix_(rows, columns)].ravel()
            known = np.flatnonzero(small != VOID)
            if len(known) > self.share:
                known = np.sort(self.rng.choice(known, self.share, replace=False))
            cells = torch.from_numpy(known).to(grid.device)
            self.features.append(grid.flatten(1)[:, cells].t().float())
            self.labels.append(torch.from_numpy(small[known]).to(grid.device).long())

    def fit(self, classes: int) -> nn.Conv2d:
        """The classifier, a 1x1 convolution from F to C channels: softmax regression, on channels of unit variance."""
        return fit_classifier(torch.cat(self.features), torch.cat(self.labels), classes)


def _centres(pixels: int, cells: int):
    """The pixel at the centre of each cell."""
    return ((np.arange(cells) + 0.5) * pixels / cells).astype(int)


def fit_classifier(features: Tensor, labels: Tensor, classes: int) -> nn.Conv2d:
    """features: N x F float32. labels: N int64. Returns the 1x1 convolution of least mean cross-entropy, weights decayed."""
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    scaled = (features - mean) / deviation                                              # N x F
    weight = scaled.new_zeros(classes, scaled.shape[1], requires_grad=True)
    bias = scaled.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn='strong_wolfe', tolerance_change=1e-6)

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(scaled @ weight.t() + bias, labels) + WEIGHT_DECAY / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  # PyTorch wants a float where its own documentation gives a tensor
    classifier = nn.Conv2d(features.shape[1], classes, 1).to(features.device).requires_grad_(False)
    classifier.weight.copy_((weight.detach() / deviation)[:, :, None, None])
    assert classifier.bias is not None
    classifier.bias.copy_(bias.detach() - weight.detach() @ (mean / deviation))
    return classifier
