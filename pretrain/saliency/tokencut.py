"""TokenCut: the salient object as a normalised cut of a self-supervised network's patches, without training.

Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", CVPR 2022,
arXiv 2202.11539; for saliency also arXiv 2209.00383.

N patches of an image, C channels of their keys (all heads), h w patches in height and width.
"""
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from scipy.special import expit

from models.backbone_weights import backbone_weights, published_weights
from models.backbones import TIMM, BackboneSpec, backbone_names, build_backbone, find_backbone, is_timm
from saliency.resizing import resize_probability
from utils.checkpoint import load_exactly
from utils.errors import UserError

LONGER_SIDE = 480  # pixels, about: 900 patches of 16 x 16 at most. The time of the cut grows with their number cubed.
STRIDE = 16  # of convolutional networks that have it
KEYS = 'keys'  # of a transformer's last attention
TAU, EPSILON = 0.2, 1e-5  # patches are alike above this cosine; weight of an edge between others
STEEPNESS = 4  # of the soft map: its value is 0.02 and 0.98 one standard deviation of the eigenvector from the border


class TokenCut:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], the probability that a pixel is salient.

    vit: a backbone, by its name in `models.backbones` or timm's name; of a ViT the keys are cut, as published, of others the
    last grid, around its mean. weights: a file or published weights as `backbone_weights` takes them; None for those of the
    backbone's name.
    Raises `UserError` for an unknown name, weights that can't be fetched, and a file that can't be read or has other keys.
    """

    def __init__(self, vit: str, weights: str | Path | None = None, device: torch.device | str = 'cpu'):
        name = vit if vit in backbone_names() or is_timm(vit) else f'{TIMM}{vit}'
        spec = find_backbone(name)
        self._source, self._stage = weights or vit, KEYS if KEYS in spec.others else spec.stages[-1]
        network = build_backbone(name, {'output_stride': _stride(spec)})
        load_exactly(network, backbone_weights(weights, name) if weights else published_weights(name), self._source)
        self._network, self._patch = network.to(device).eval().requires_grad_(False), network.output_stride
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in network.normalization)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return resize_probability(self.grid(image), *image.shape[:2])

    def grid(self, image: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 RGB -> h x w, the probability of each patch: above 0.5 on the foreground's side of the cut."""
        keys, shape = self.keys(image)
        return cut(keys).reshape(shape)

    def keys(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """H x W x 3 uint8 RGB -> the keys of the patches, N x C, and (h, w)."""
        height, width = image.shape[:2]
        scale = LONGER_SIDE / max(height, width)
        rows, columns = (max(1, round(size * scale / self._patch)) for size in (height, width))
        size = columns * self._patch, rows * self._patch
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))  # antialiased
        batch = torch.from_numpy(resized).to(self._mean.device).permute(2, 0, 1)[None].float().div_(255)
        with torch.inference_mode():
            keys = self._network.grid((batch - self._mean) / self._std, self._stage)[0].flatten(1).t()  # N x C
            if self._stage != KEYS:  # outputs of ReLU are alike everywhere, around their mean they are not
                keys = keys - keys.mean(0)
            if not keys.isfinite().all():
                raise UserError(f'{self._source}: the features of this network are not finite: its weights are damaged')
            return keys, (rows, columns)


def _stride(spec: BackboneSpec):
    return STRIDE if STRIDE in spec.output_strides else max(spec.output_strides)


def cut(keys: torch.Tensor) -> np.ndarray:
    """Keys, N x C, N > 1 -> N float64 in (0, 1): a soft cut of the patches, above 0.5 where they are foreground.

    The second smallest eigenvector of (D - W) x = lambda D x, split at its mean; the foreground is the side
    of the largest absolute entry. The map is a sigmoid of the eigenvector's standard score. Where every patch is like every
    other one, or none is like another, all cuts are equal, and the answer is 0: no object.
    """
    alike = alike_patches(keys, TAU)
    if all_cuts_are_equal(alike):
        return np.zeros(len(alike))
    eigenvector = second_eigenvector(alike)
    score = (eigenvector - eigenvector.mean()) / eigenvector.std()
    return expit(STEEPNESS * score * np.sign(score[np.abs(eigenvector).argmax()]))


def alike_patches(keys: torch.Tensor, tau: float) -> np.ndarray:
    """Keys, N x C -> N x N bool: whether the cosine of two is above `tau`."""
    keys = torch.nn.functional.normalize(keys.float(), dim=1)
    return (keys @ keys.T > tau).cpu().numpy()


def all_cuts_are_equal(alike: np.ndarray) -> bool:
    """Whether every patch is like every other one, or none is like another. alike: N x N bool, of `alike_patches`."""
    return bool(alike.all()) or not (alike & ~np.eye(len(alike), dtype=bool)).any()


def second_eigenvector(alike: np.ndarray) -> np.ndarray:
    """N float64, the second smallest eigenvector x of (D - W) x = lambda D x. alike: N x N bool, of which W has an edge of 1 or
    `EPSILON`."""
    graph = np.where(alike, 1, EPSILON)
    root = np.sqrt(graph.sum(axis=1))
    # With y = sqrt(D) x this is an ordinary problem, D^-1/2 (D - W) D^-1/2 y = lambda y, which is faster.
    graph /= -root
    graph /= root[:, None]
    graph.flat[::len(graph) + 1] += 1
    return scipy.linalg.eigh(graph, subset_by_index=[1, 1], overwrite_a=True, check_finite=False)[1][:, 0] / root
