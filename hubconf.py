"""MaskContrast networks for other code, through torch.hub (https://pytorch.org/docs/stable/hub.html).

    network = torch.hub.load('/path/to/this/repository', 'maskcontrast', 'best_model.pth.tar', source='local')
    prepare = torch.hub.load('/path/to/this/repository', 'preprocessing', source='local')
"""
import contextlib
import sys
from pathlib import Path

import torch

dependencies = ['torch', 'torchvision', 'cv2', 'easydict', 'gdown', 'numpy', 'PIL', 'requests', 'scipy', 'sklearn', 'termcolor',
                'tqdm', 'yaml']  # as requirements.txt installs them

_TREE = Path(__file__).resolve().parent / 'segmentation'
_PACKAGES = ('data', 'evaluation', 'models', 'utils')


def maskcontrast(weights, output_stride=8):
    """A network in eval mode, with the weights of a file.

    weights: the path of a pre-training checkpoint, or of a linear network of linear_finetune.py; or zoo://<name> of a published
    one (`python -m utils.model_zoo` lists them), which is kept in `maskcontrast/` in torch.hub's folder. output_stride: 8, or
    32 for `backbone_kwargs.dilated: False`; the file does not say which, and the wrong one gives wrong outputs.
    Takes B x 3 x H x W images of `preprocessing`. A pre-training network gives embeddings, B x D x H x W, not normalised, and
    saliency logits, B x H x W (None where it has no such head); a linear network class logits, B x C x H x W.
    Store its `state_dict()`, not itself: its class is known here only. Don't load from several threads at once.
    Raises ValueError, with one line that names the file, for one that is missing, damaged or another network's.
    """
    if output_stride not in (8, 32):
        raise ValueError(f'output_stride must be 8 or 32, not {output_stride}')
    with _own_modules():
        from evaluation.model_loading import stored_network
        from utils.errors import UserError
        from utils.model_zoo.zoo import local_file
        try:
            path = local_file(weights, Path(torch.hub.get_dir()) / 'maskcontrast')
            return stored_network(path, dilated=output_stride == 8).eval()
        except UserError as error:  # a class that callers can't name
            raise ValueError(error.line()) from None


def preprocessing(size=(512, 512)):
    """A function from an image, H x W x 3 uint8 in RGB, to what a network takes: 1 x 3 x height x width float32, resized as in
    the evaluations (OpenCV bicubic, aspect not kept) and normalised. size: (height, width)."""
    with _own_modules():
        from data.normalization import to_images
        from evaluation.dataset import resize_image
    return lambda image: to_images(torch.from_numpy(resize_image(image, tuple(size)))[None], torch.device('cpu'))


@contextlib.contextmanager
def _own_modules():
    """Have `data`, `models`, `utils`, ... mean those of this repository for a while: other code may have modules so named."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in _PACKAGES}
    sys.path.insert(0, str(_TREE))
    try:
        yield
    finally:
        sys.path.remove(str(_TREE))
        for name in [name for name in sys.modules if name.partition('.')[0] in _PACKAGES]:
            del sys.modules[name]
        sys.modules.update(others)
