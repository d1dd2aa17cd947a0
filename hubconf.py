"""MaskContrast networks for other code, through torch.hub (https://pytorch.org/docs/stable/hub.html).

    network = torch.hub.load('/path/to/this/repository', 'maskcontrast', 'best_model.pth.tar', source='local')
    prepare = torch.hub.load('/path/to/this/repository', 'preprocessing', source='local')
"""
from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # torch.hub takes every public function and class here for a network
    from collections.abc import Callable, Sequence

    import numpy as np
    from PIL import Image

dependencies = ['torch', 'torchvision', 'cv2', 'easydict', 'gdown', 'numpy', 'PIL', 'requests', 'scipy', 'sklearn', 'termcolor',
                'timm', 'tqdm', 'yaml']  # as requirements.txt installs them

_TREE = Path(__file__).resolve().parent / 'segmentation'
_PACKAGES = ('data', 'evaluation', 'models', 'utils')


def maskcontrast(weights: str | Path, output_stride: int | None = None, backbone: str | None = None) -> torch.nn.Module:
    """A network in eval mode, with the weights of a file.

    weights: the path of a pre-training checkpoint, or of a linear network of linear_finetune.py; or zoo://<name> of a published
    one (`python -m utils.model_zoo` lists them), kept in `maskcontrast/` in the folder of torch.hub. output_stride, backbone:
    None for what the checkpoint's configuration, or the config.yml beside it, says. Without either the backbone is the one that
    fits, and its grid the densest; the stride is not in the weights, and the wrong one gives wrong outputs.
    Takes B x 3 x H x W images of `preprocessing`. A pre-training network gives embeddings, B x D x H x W, not normalised, and
    saliency logits, B x H x W (None where it has no such head); a linear network class logits, B x C x H x W.
    Save its `state_dict()`, not the network itself, whose class exists only here. Don't load from several threads at once.
    Raises ValueError, with one line that names the file, for a file that is missing, damaged or for another network.
    """
    with _own_modules():
        from evaluation.model_loading import stored_network
        from utils.errors import UserError
        from utils.model_zoo.zoo import local_file
        try:
            path = local_file(weights, Path(torch.hub.get_dir()) / 'maskcontrast')
            return stored_network(path, backbone, output_stride).eval()
        except UserError as error:  # a class that callers can't name
            raise ValueError(error.line()) from None


def preprocessing(size: Sequence[int] = (512, 512),
                  network: torch.nn.Module | None = None) -> Callable[[np.ndarray | Image.Image], torch.Tensor]:
    """A function from an image to what a network takes: 1 x 3 x height x width float32, resized as in the evaluations (OpenCV
    bicubic, aspect not kept) and normalised. An image is a PIL image, or a uint8 array: H x W x 3 RGB, H x W x 4 RGBA, whose
    alpha is ignored, H x W or H x W x 1 gray. size: (height, width). network: of `maskcontrast`; its backbone gives mean and
    standard deviation, by default those of ImageNet. Raises ValueError for other images, and for sizes that the backbone can't
    take."""
    with _own_modules():
        from data.normalization import to_images
        from evaluation.evaluation_images import resize_image
        from models.backbones import IMAGENET, find_backbone
        if not hasattr(size, '__len__') or len(size) != 2 or not all(hasattr(side, '__index__') and side > 0 for side in size):
            raise ValueError(f'size must be (height, width), two positive numbers of pixels, not {size!r}')
        problem = find_backbone(network.backbone.name).size_error(network.backbone.output_stride, *size) if network else None
        if problem:
            raise ValueError(f'{" x ".join(map(str, size))} pixels {problem}')
    normalization = network.backbone.normalization if network else IMAGENET

    def prepare(image: np.ndarray | Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(resize_image(_pixels(image), tuple(size)))
        return to_images(pixels[None], torch.device('cpu'), normalization)
    return prepare


def _pixels(image: np.ndarray | Image.Image):
    """H x W x 3 uint8 RGB of an image in one of the forms that `preprocessing` names."""
    import numpy as np
    from PIL import Image
    if isinstance(image, Image.Image):
        if image.mode[:1] in 'IF':  # more than 8 bits
            raise ValueError(f'a PIL image of mode {image.mode} does not have 8-bit colours: scale it to 0..255 and convert it')
        return np.array(image.convert('RGB'))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f'an image must be a uint8 array of values from 0 to 255, or a PIL image, not {array.dtype} of shape '
                         f'{array.shape}')
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ValueError('an image must be H x W x 3 (RGB), H x W x 4 (RGBA) or H x W (gray), one at a time, not of shape '
                         f'{np.shape(image)}')
    return np.ascontiguousarray(array.repeat(3, 2) if array.shape[2] == 1 else array[..., :3])


_modules: dict[str, object] = {}  # this repository's, between two calls


@contextlib.contextmanager
def _own_modules():
    """Have `data`, `models`, `utils`, ... mean those of this repository for a while: other code may use these names."""
    others = _taken_out()
    sys.modules.update(_modules)
    sys.path.insert(0, str(_TREE))
    try:
        yield
    finally:
        sys.path.remove(str(_TREE))
        _modules.update(_taken_out())
        sys.modules.update(others)


def _taken_out():
    """The modules of these names, which are not in sys.modules any more."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in _PACKAGES}
