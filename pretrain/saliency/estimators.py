"""The saliency models by name. An estimator takes an image, H x W x 3 uint8 RGB, and returns H x W float32 in [0, 1], the
probability that a pixel belongs to a salient object."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saliency.onnx_formats import OnnxFormat
from utils.errors import UserError, nearest_name

if TYPE_CHECKING:
    import torch

Estimator = Callable[[np.ndarray], np.ndarray]
# An image and its mask, or None to make it -> H x W int32, 0 background, 1 to n the objects
ObjectFinder = Callable[[np.ndarray, np.ndarray | None], np.ndarray]

ROBUST_BACKGROUND, FEATURE_CUES, TOKENCUT = 'robust_background', 'feature_cues', 'tokencut'
REMBG = ('u2net', 'isnet-general-use', 'birefnet-general')
MODELS = (ROBUST_BACKGROUND, FEATURE_CUES, TOKENCUT, *REMBG)
PARTS, CUTS = 'parts', 'cuts'  # ways to single objects, see `saliency.objects`
WAYS = (PARTS, CUTS)
VIT = 'vit_small_patch16_224.dino'  # default of TokenCut
BACKBONE = 'resnet18'  # default of the feature cues


def get_estimator(model: str, onnx: str | Path | None = None, form: OnnxFormat | None = None, vit: str = VIT,
                  weights: str | Path | None = None, device: torch.device | str = 'cpu',
                  backbone: str = BACKBONE) -> Estimator:
    """The estimator called `model`, loaded; with `onnx`, a path, that network, whatever it is called.

    form: of the ONNX network's input and output. vit: of TokenCut. backbone: of the feature cues. weights: of either.
    device: of networks. Raises `UserError` for an unknown name, a missing package, and unavailable weights.
    """
    # Here, because each brings packages along that the others don't need.
    if onnx is not None:
        from saliency.onnx_network import OnnxSaliency
        return OnnxSaliency(onnx, form or OnnxFormat(), device)
    if model == FEATURE_CUES:
        from saliency.feature_cues import FeatureCues
        return FeatureCues(backbone, weights, device)
    if model == ROBUST_BACKGROUND:
        from saliency.robust_background import robust_background
        return robust_background
    if model == TOKENCUT:
        from saliency.grabcut import Refined
        from saliency.tokencut import TokenCut
        return Refined(TokenCut(vit, weights, device), threshold=0.5)
    if model in REMBG:
        from saliency.rembg_models import RembgSaliency
        return RembgSaliency(model)
    near = nearest_name(model, MODELS, cutoff=0)
    raise UserError(f"--model {model}: unknown saliency model (nearest: '{near}'; one of {', '.join(MODELS)}, or any "
                    'name with --onnx)')


def check_way(way: str | None, model: str) -> None:
    """Raise a `UserError` if a saliency model has no features that could be cut into objects."""
    if way == CUTS and model not in (FEATURE_CUES, TOKENCUT):
        raise UserError(f'--objects {CUTS} cuts the features of a backbone, and --model {model} has none: give --model '
                        f'{FEATURE_CUES} or {TOKENCUT}, or --objects {PARTS}')
