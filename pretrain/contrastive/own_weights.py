"""The initial weights for a folder of photographs: those requested, or the best available."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.backbones import TORCHVISION, find_backbone, matching_backbones
from utils.config import path_text
from utils.errors import UserError
from utils.model_zoo.zoo import is_zoo, local_file

AUTO, NONE, IMAGENET = 'auto', 'none', 'imagenet_classification'
BACKBONES = ('resnet18', 'resnet50')  # whose weights `auto` takes: the first on disk, otherwise the first to be fetched
RANDOM = 'resnet18'  # the backbone where there are no weights
PACKAGED, PACKAGED_BACKBONE = 'zoo://efficientnet_lite0', 'timm/tf_efficientnet_lite0'  # from the Python package index
TIMM = 'timm://'  # timm://<model name>: the backbone timm/<model name> with the weights that timm has of it


@dataclass(frozen=True)
class Weights:
    """backbone: its name. source: what the key `pretraining` takes with `head: none`, a file or the name of published weights;
    None for random ones. why: a line about the choice. moco: whether the file is a MoCo v2 checkpoint."""
    backbone: str
    source: str | None
    why: str
    moco: bool = False

    def initial(self) -> dict[str, Any]:
        """These weights as `backbone_kwargs` of a pre-training. Raises `UserError` for published ones that no key names."""
        if self.source and self.source.startswith(TIMM):
            return {'pretraining': None, 'state_dict': self.source}
        if self.source is None:
            return {'pretraining': None}
        if self.source == find_backbone(self.backbone).imagenet:
            return {'pretraining': IMAGENET}
        if '://' in self.source:
            raise UserError(f'--weights {self.source}: a training can start from {find_backbone(self.backbone).imagenet}, from '
                            f'{TIMM}... or from a file')
        return {'pretraining': 'imagenet_moco', 'moco_state_dict': path_text(self.source)} if self.moco else {
            'pretraining': None, 'state_dict': path_text(self.source)}


def choose_weights(asked: str, root_dir: str | Path, backbones: Sequence[str] = BACKBONES) -> Weights:
    """asked: 'auto' (see `BACKBONES`; random ones where there are none), 'none', 'imagenet_classification' (as 'auto', but
    there must be some), the name of published weights (`timm://...`, `torchvision://...`, `zoo://...`), or a file with a state
    dict or a MoCo v2 checkpoint. root_dir: for the zoo. backbones: which ones 'auto' may take, in order.

    The weights are read, and downloaded if needed. Raises `UserError` if the requested weights are not available.
    """
    if asked == NONE:
        return Weights(backbones[0] if len(backbones) == 1 else RANDOM, None, 'weights: random, as requested')
    if asked in (AUTO, IMAGENET):
        found = _at_hand(backbones) or (_packaged(root_dir) if asked == AUTO and backbones == BACKBONES else None)
        if found is None and asked == IMAGENET:
            raise UserError(f'--weights {IMAGENET}: those of {" and ".join(backbones)} are neither on disk nor available for '
                            'download: give a file')
        return found or Weights(backbones[0] if len(backbones) == 1 else RANDOM, None,
                                f'weights: random, which find less, since those of ImageNet ({" or ".join(backbones)}) are '
                                'neither on disk nor available for download; give others as --weights (make: WEIGHTS=)')
    if '://' in asked and not is_zoo(asked):
        return _published(asked)
    if asked == PACKAGED:
        return Weights(PACKAGED_BACKBONE, local_file(asked, root_dir), f'weights: {asked}, as requested')
    return _from_file(local_file(asked, root_dir), asked)


def _at_hand(backbones: Sequence[str]):
    """ImageNet weights of the first of `backbones` that has them on disk, or else of the first that gets them; or None."""
    for name in backbones:
        if _on_disk(name) and _can_have(name):
            return Weights(name, find_backbone(name).imagenet, f'weights: {name} of ImageNet, found on disk')
    for name in backbones:
        if find_backbone(name).imagenet and _can_have(name):
            return Weights(name, find_backbone(name).imagenet, f'weights: {name} of ImageNet, downloaded now')
    return None


def _packaged(root_dir: str | Path):
    """ImageNet weights in a Python package, or None if it isn't installed."""
    try:
        path = local_file(PACKAGED, root_dir)
    except UserError:
        return None
    return Weights(PACKAGED_BACKBONE, path, f'weights: {PACKAGED}, since those of {" and ".join(BACKBONES)} are neither on '
                                            'disk nor available for download')


def _on_disk(backbone: str):
    """Whether torchvision's weights are in PyTorch's cache."""
    import torch
    from torchvision.models import get_model_weights
    source = find_backbone(backbone).imagenet or ''
    if not source.startswith(TORCHVISION):
        return False
    url = get_model_weights(backbone)[source.rpartition('-')[2]].url
    return (Path(torch.hub.get_dir()) / 'checkpoints' / url.rpartition('/')[2]).is_file()


def _can_have(backbone: str):
    """Whether ImageNet weights can be read, and downloaded if needed, which is then done."""
    source = find_backbone(backbone).imagenet
    assert source is not None  # the callers ask for backbones that have some
    try:
        _read(source, backbone)
    except UserError:
        return False
    return True


def _read(source: str, backbone: str):
    from models.backbone_weights import weights_at_hand  # here, as it loads torchvision
    return weights_at_hand(source, backbone)


def _published(source: str):
    """Weights by the name that a backbone's entry has for them."""
    rest = source.partition('://')[2]
    if source.startswith(TORCHVISION) and '-' not in rest:
        raise UserError(f'--weights {source}: name the backbone and its weights, as in {TORCHVISION}resnet50-IMAGENET1K_V1')
    backbone = f'timm/{rest}' if source.startswith(TIMM) else rest.rpartition('-')[0]
    try:
        _read(source, backbone)
    except UserError as error:
        raise UserError(f'--weights {source}: {error}') from error
    return Weights(backbone, source, f'weights: {source}, as requested')


def _from_file(path: str, asked: str):
    """Weights in a file, whose backbone is detected from names and shapes."""
    import torch

    from utils.checkpoint import load_file
    if not Path(path).expanduser().is_file():
        raise UserError(f"--weights {asked} is neither a file nor one of '{AUTO}', '{NONE}', '{IMAGENET}', timm://<name>, "
                        f'{TORCHVISION}<name>-<weights>, zoo://<name>')
    path = str(Path(path).expanduser().resolve())
    state = _read(path, RANDOM)
    names = matching_backbones({key: tuple(value.shape) for key, value in state.items() if torch.is_tensor(value)})
    if not names:
        raise UserError(f'--weights {asked}: the names and shapes in this file match neither resnet18 nor resnet50; for other '
                        'backbones give published weights, timm://<name>')
    content = load_file(path)
    moco = isinstance(content.get('state_dict'), dict)
    return Weights(names[0], path, f'weights: {names[0]} from {path}, as requested', moco)
