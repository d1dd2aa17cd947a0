"""TokenCut: the salient object as a normalised cut of a self-supervised ViT's patches, without training.

Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", CVPR 2022,
arXiv 2202.11539; for saliency also arXiv 2209.00383.

N patches of an image, C channels of their keys (all heads), h w patches in height and width.
"""
import difflib
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from scipy.special import expit
from torch import nn

from saliency.resizing import resize_probability
from utils.checkpoint import load_exactly, load_file
from utils.cli.packages import require
from utils.errors import UserError, one_line

LONGER_SIDE = 480  # pixels, about: 900 patches of 16 x 16 at most. The time of the cut grows with their number cubed.
TAU, EPSILON = 0.2, 1e-5  # patches are alike above this cosine; weight of an edge between others
STEEPNESS = 4  # of the soft map: its value is 0.02 and 0.98 one standard deviation of the eigenvector from the border
MODULE = 'vision_transformer'  # timm's plain ViTs
UNUSED = ('head.', 'head_dist.', 'pre_logits.', 'norm.', 'fc_norm.')  # behind the last attention: a ViT may lack them


class TokenCut:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], the probability that a pixel is salient.

    vit: timm's name of a plain ViT, whose patch size divides the sides to which images are resized. weights: a file with its
    state dict, of torch.save (as DINO's dino_deitsmall16_pretrain.pth) or safetensors; None fetches timm's own.
    Raises `UserError` for an unknown name, weights that can't be fetched, and a file that can't be read or has other keys.
    """

    def __init__(self, vit: str = 'vit_small_patch16_224.dino', weights: str | Path | None = None,
                 device: torch.device | str = 'cpu'):
        model = _load(require('timm', 'this saliency network'), vit, weights)
        self._source = weights or vit
        self._model = model.to(device).eval().requires_grad_(False)
        self._patch = model.patch_embed.patch_size
        self._mean, self._std = (torch.tensor(model.pretrained_cfg[key], device=device).view(1, 3, 1, 1)
                                 for key in ('mean', 'std'))
        model.blocks[-1].attn.qkv.register_forward_hook(self._keep)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return resize_probability(self.grid(image), *image.shape[:2])

    def grid(self, image: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 RGB -> h x w, the probability of each patch: above 0.5 on the foreground's side of the cut."""
        height, width = image.shape[:2]
        scale = LONGER_SIDE / max(height, width)
        rows, columns = (max(1, round(size * scale / patch)) for size, patch in zip((height, width), self._patch, strict=True))
        size = columns * self._patch[1], rows * self._patch[0]
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))  # antialiased
        batch = torch.from_numpy(resized).to(self._mean.device).permute(2, 0, 1)[None].float().div_(255)
        with torch.inference_mode():
            self._model.forward_features((batch - self._mean) / self._std)
            keys = self._qkv[0, self._model.num_prefix_tokens:].chunk(3, dim=1)[1]  # N x C
            if not keys.isfinite().all():
                raise UserError(f'{self._source}: the features of this ViT are not finite: its weights are damaged')
            return cut(keys).reshape(rows, columns)

    def _keep(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
        self._qkv = output  # 1 x (prefix + N) x 3C


def cut(keys: torch.Tensor) -> np.ndarray:
    """Keys, N x C, N > 1 -> N float64 in (0, 1): a soft cut of the patches, above 0.5 where they are foreground.

    The second smallest eigenvector of (D - W) x = lambda D x, split at its mean; the foreground is the
    side of the largest absolute entry. The map is a sigmoid of the eigenvector's standard score. Where every patch is like
    every other one, or none is like another, all cuts are equal, and the answer is 0: no object.
    """
    keys = torch.nn.functional.normalize(keys.float(), dim=1)
    alike = (keys @ keys.T > TAU).cpu().numpy()
    if alike.all() or not (alike & ~np.eye(len(alike), dtype=bool)).any():
        return np.zeros(len(alike))
    graph = np.where(alike, 1, EPSILON)
    root = np.sqrt(graph.sum(axis=1))
    # With y = sqrt(D) x this is an ordinary problem, D^-1/2 (D - W) D^-1/2 y = lambda y, which is faster.
    graph /= -root
    graph /= root[:, None]
    graph.flat[::len(graph) + 1] += 1
    eigenvector = scipy.linalg.eigh(graph, subset_by_index=[1, 1], overwrite_a=True, check_finite=False)[1][:, 0] / root
    score = (eigenvector - eigenvector.mean()) / eigenvector.std()
    return expit(STEEPNESS * score * np.sign(score[np.abs(eigenvector).argmax()]))


def _load(timm: ModuleType, vit: str, weights: str | Path | None):
    names = timm.list_models(module=MODULE) + timm.list_models(module=MODULE, include_tags=True)
    if vit not in names:
        near = difflib.get_close_matches(vit, names) or ['vit_small_patch16_224.dino']
        raise UserError(f'{vit}: timm has no plain ViT of this name; near it are {", ".join(near)}')
    with torch.device('meta'):  # before anything is fetched
        last = timm.create_model(vit).blocks[-1]
    if not hasattr(getattr(last, 'attn', None), 'qkv'):
        raise UserError(f'{vit}: its last block has no layer attn.qkv, where TokenCut reads the keys: '
                        'name another ViT, vit_small_patch16_224.dino, say')
    if weights is not None:
        model = timm.create_model(vit, dynamic_img_size=True, num_classes=0)
        _load_weights(model, weights)
        return model
    try:
        return timm.create_model(vit, pretrained=True, dynamic_img_size=True, num_classes=0)
    except Exception as error:  # the hub's client, its HTTP library and timm have a family of exceptions each
        hub = getattr(timm.get_pretrained_cfg(vit), 'hf_hub_id', None)
        file = f'model.safetensors of https://huggingface.co/{hub}' if hub else 'its state dict'
        raise UserError(f'{vit}: its weights could not be fetched ({one_line(error)}): run again, or fetch {file} by hand and '
                        'add --weights PATH') from error


def _load_weights(model: nn.Module, path: str | Path):
    state = _read(path)
    if not isinstance(state, dict):
        raise UserError(f'{path}: expected the state dict of a ViT (names and tensors), found {type(state).__name__}')
    own = model.state_dict()
    load_exactly(model, {key: value for key, value in state.items()
                         if key in own or not str(key).startswith(UNUSED)}, path)


def _read(path: str | Path):
    if Path(path).suffix != '.safetensors' or not Path(path).is_file():
        return load_file(path)
    from safetensors.torch import load_file as load_safetensors  # timm's own; most of its files on the hub are such
    try:
        return load_safetensors(path)
    except Exception as error:  # damaged bytes: its exceptions have no base of their own
        raise UserError(f'{path}: damaged, or not a safetensors file ({one_line(error)}): fetch it again') from error
