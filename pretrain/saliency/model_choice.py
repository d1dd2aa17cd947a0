"""The default saliency model: the best one available."""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from saliency.estimators import BACKBONE, FEATURE_CUES, ROBUST_BACKGROUND
from utils.errors import UserError

AUTO = 'auto'
SUPERVISED = ('birefnet-general', 'isnet-general-use', 'u2net')  # of rembg, the newest first
FETCHED = 'isnet-general-use'  # where none is on disk: 180 MB, where BiRefNet is 970 and takes many times as long
PACKAGES = 'rembg', 'onnxruntime'


def choose_model(backbone: str = BACKBONE, weights: str | Path | None = None) -> tuple[str, str]:
    """The name of a saliency model, and a line with the reason.

    A network of rembg, where that package is installed and the network is on disk or can be fetched, which is then done;
    otherwise the feature cues, where there are weights of `backbone` (weights: a file or published ones; None for ImageNet's,
    on disk or to be fetched); or else robust background detection, which needs none.
    Raises `UserError` for an unknown backbone, and for weights that were named and can't be had.
    """
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        without = f'{missing[0]} is not installed'
    else:
        for name in SUPERVISED:
            path = rembg_file(name)
            if path:
                return name, f'masks: {name}, a supervised network, found on disk ({path})'
        if _fetched():
            return FETCHED, f'masks: {FETCHED}, a supervised network, downloaded now'
        without = f'{FETCHED} is neither on disk nor available for download'
    source = _weights(backbone, weights)
    if source:
        return FEATURE_CUES, f'masks: {FEATURE_CUES} of {backbone}, {source} (no supervised network: {without})'
    return ROBUST_BACKGROUND, (f'masks: {ROBUST_BACKGROUND}, which finds less (no supervised network: {without}; no ImageNet '
                               f'weights of {backbone}: neither on disk nor available for download)')


def rembg_file(name: str) -> Path | None:
    """The path of the network called `name` of rembg on disk, or None; without importing rembg, which takes seconds."""
    own, shared = os.environ.get('U2NET_HOME'), os.environ.get('XDG_DATA_HOME')
    home = own or os.environ.get('REMBG_HOME') or (f'{shared}/rembg' if shared else '~/.rembg')
    old = own or f'{shared or "~"}/.u2net'
    places = Path(home, 'models', name, f'{name}.onnx'), Path(old, f'{name}.onnx')
    return next((path for path in (place.expanduser() for place in places) if path.is_file()), None)


def _fetched():
    from saliency.rembg_models import RembgSaliency  # here, as it loads PyTorch
    try:
        RembgSaliency(FETCHED)
    except UserError:
        return False
    return True


def _weights(backbone: str, weights: str | Path | None):
    """The available weights, or None."""
    from models.backbone_weights import weights_at_hand
    from models.backbones import find_backbone
    source = weights or find_backbone(backbone).imagenet
    if source is None:
        return None
    try:
        weights_at_hand(source, backbone)
    except UserError:
        if weights:
            raise
        return None
    return str(source)
