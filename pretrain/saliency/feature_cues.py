"""Salient objects from the features of a backbone that was trained on something else, such as ImageNet.

Several cues vote, each with its standard score: the direction in which the image's cells differ most, whether a cell is more
like the centre than like the border, how active it is, and the colours' contrast with the background
(`saliency.robust_background`). None is good alone, but they fail on different images. Their sum is cut along the image's edges
(`saliency.grabcut`). That a late grid is active on objects is known from retrieval (SCDA, Wei et al., IEEE TIP 2017, arXiv
1604.04994), that its first component separates them from co-localisation (DDT, Wei et al., Pattern Recognition 2019, arXiv
1707.06397).

Axes: C channels, h w the grid of a stage of the backbone, H W space.
"""
from pathlib import Path

import cv2
import numpy as np
import scipy.linalg
import torch
from PIL import Image

from models.backbone_weights import backbone_weights
from models.backbones import build_backbone, find_backbone
from saliency.grabcut import otsu_threshold, refine, whole_objects
from saliency.mask_generation import OBJECT, SMALLEST, object_mask, shrink
from saliency.resizing import resize_probability
from saliency.robust_background import saliency_map
from utils.checkpoint import load_exactly
from utils.errors import UserError

SIDE = 256  # pixels: longer side of the network's input, about
STRIDE = 8  # of its grid, or the nearest that the backbone has
CUT_SIDE, ROUNDS = 200, 1  # pixels, longer side of the image where colours are looked at and the cut is made; rounds of GrabCut
CENTRE = 0.2  # width of the Gaussian around the centre, in sides of the image
COMPONENT, CONTRAST, ACTIVITY, COLOUR = 1.0, 1.0, 0.5, 1.0  # weights of the votes


class FeatureCues:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], above 0.5 on the salient object.

    backbone: its name. weights: a file or published weights, see `models.backbone_weights`; None for the backbone's own of
    ImageNet. Raises `UserError` for an unknown name, and for weights that are unavailable or don't fit.
    """

    def __init__(self, backbone: str, weights: str | Path | None = None, device: torch.device | str = 'cpu'):
        spec = find_backbone(backbone)
        source = weights or spec.imagenet
        if source is None:
            raise UserError(f'--backbone {backbone}: it has no published ImageNet weights: add --weights PATH')
        network = build_backbone(backbone, {'output_stride': min(spec.output_strides, key=lambda stride: abs(stride - STRIDE))})
        load_exactly(network, backbone_weights(source, backbone), source)
        self.source, self.network = source, network.to(device).eval().requires_grad_(False)
        self._mean, self._deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in network.normalization)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        small = shrink(image, CUT_SIDE)
        colour = saliency_map(small)
        if not colour.any():  # a single colour: no object
            return np.zeros((height, width), np.float32)
        grid = votes(*self.features(image), colour)
        threshold = otsu_threshold(grid)
        size = small.shape[1::-1]
        rough = np.clip(cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC), 0, 1)
        inside = refine(small, rough, threshold, ROUNDS) > OBJECT
        if object_mask(inside).mean() < SMALLEST:  # its colours are those of the rest
            inside = rough > threshold
        return resize_probability(whole_objects(inside), height, width)

    def features(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H x W x 3 uint8 RGB -> the grids of the last stage but one and of the last, C x h x w float32 each."""
        with torch.inference_mode():
            grids = self.network.grids(self.batch(image), self.network.stages[-2:])
            finer, last = (grid[0].float().cpu().numpy() for grid in grids)
        if not np.isfinite(last).all():
            raise UserError(f'{self.source}: the features of this network are not finite: its weights are damaged')
        return finer, last

    def batch(self, image: np.ndarray) -> torch.Tensor:
        """H x W x 3 uint8 RGB -> 1 x 3 x h x w, the network's input, normalised; its sides are whole steps of the grid."""
        scale, step = SIDE / max(image.shape[:2]), self.network.output_stride
        height, width = (max(1, round(side * scale / step)) * step for side in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))  # antialiased
        values = torch.from_numpy(resized).to(self._mean.device).permute(2, 0, 1)[None].float() / 255
        return (values - self._mean) / self._deviation


def votes(finer: np.ndarray, last: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """What the cues say together: h x w float32 in [0, 1].

    finer, last: C x h x w, grids of the last two stages; the former, which may be larger, sees smaller things. colour: H x W
    float32, a map of the image. The result has the size of the last grid.
    """
    size = last.shape[:0:-1]
    maps = ((COMPONENT, component(last)), (CONTRAST, cv2.resize(contrast(finer), size, interpolation=cv2.INTER_AREA)),
            (ACTIVITY, np.abs(last).sum(0)), (COLOUR, cv2.resize(colour, size, interpolation=cv2.INTER_AREA)))
    total = sum(weight * _score(values) for weight, values in maps)
    total = total - total.min()
    return (total / max(total.max(), 1e-9)).astype(np.float32)


def component(grid: np.ndarray) -> np.ndarray:
    """Each cell's place along the direction in which cells differ most: h x w, lower at the border. grid: C x h x w."""
    cells = grid.reshape(len(grid), -1).astype(np.float64)               # C x N
    cells -= cells.mean(1, keepdims=True)
    wide = cells.shape[0] > cells.shape[1]                               # the smaller of the two matrices, for speed
    products = cells.T @ cells if wide else cells @ cells.T
    last = len(products) - 1
    vector = scipy.linalg.eigh(products, subset_by_index=[last, last], overwrite_a=True, check_finite=False)[1][:, 0]
    values = (vector if wide else vector @ cells).reshape(grid.shape[1:])
    return values if values[_border(values.shape)].mean() <= values.mean() else -values


def contrast(grid: np.ndarray) -> np.ndarray:
    """How much more similar each cell is to the centre than to the border: h x w. grid: C x h x w."""
    unit = grid / np.maximum(np.linalg.norm(grid, axis=0), 1e-6)
    height, width = grid.shape[1:]
    y, x = np.ogrid[:height, :width]
    near = np.exp(-(((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2) / (2 * CENTRE ** 2))
    centre = (unit * near).sum((1, 2)) / near.sum()
    return np.tensordot(centre - unit[:, _border((height, width))].mean(1), unit, 1)


def _border(shape: tuple[int, ...]):
    """h x w bool, the outermost cells."""
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border


def _score(values: np.ndarray):
    """Standard scores; zeros where all values are the same."""
    return (values - values.mean()) / (values.std() + 1e-9)
