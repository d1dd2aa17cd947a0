"""Export a network to ONNX, for programs without PyTorch.

    python export.py --weights ../output/demo_linear/best_model.pth.tar --out network.onnx --size 96 96

The file takes `images`, B x 3 x height x width float32: RGB in [0, 1], minus the backbone's mean, over its deviation, which
are printed: those of ImageNet for ResNets. That of a linear network gives `logits`, B x classes x height x width; that of a
pre-training checkpoint `embeddings`, B x D x height x width, not normalised, and `saliency` logits, B x height x width. It is
run and compared with the network before it is written. Needs requirements-optional.txt.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
from pathlib import Path

from utils.cli.command import command
from utils.cli.flags import make_env_parser
from utils.config import read_env
from utils.errors import UserError
from utils.model_zoo.zoo import local_file
from utils.storage.atomic import atomic_file

TOLERANCE = 1e-3  # of the file's outputs, as a share of the largest

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__, default='configs/env.yml')
    parser.add_argument('--weights', required=True, metavar='PATH',
                        help='a pre-training checkpoint, a model of linear_finetune.py, or zoo://<name>')
    parser.add_argument('--out', required=True, metavar='PATH', help='ONNX file to write')
    parser.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('HEIGHT', 'WIDTH'),
                        help='size of the images in pixels (default: 512 512)')
    parser.add_argument('--backbone', metavar='NAME',
                        help='backbone of the network (default: from the checkpoint or the config.yml beside it, otherwise '
                             'detected)')
    parser.add_argument('--output-stride', type=int, metavar='PIXELS',
                        help="output stride of the backbone (default: likewise; otherwise the densest)")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if min(args.size) < 1:
        raise UserError(f'--size is {" ".join(map(str, args.size))}, but must be two positive numbers of pixels')
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    from evaluation.model_loading import stored_network
    from evaluation.onnx_export import export_onnx, onnx_difference, require_packages
    from models.backbones import find_backbone

    require_packages()
    weights, out = Path(local_file(args.weights, read_env(args.config_env).root_dir)), Path(args.out)
    if out.is_dir() or out.resolve() == weights.resolve():
        raise UserError(f'--out {out} is {"a folder" if out.is_dir() else "the file of the weights"}: name another file')
    network = stored_network(weights, args.backbone, args.output_stride).eval()
    backbone = network.backbone
    problem = find_backbone(backbone.name).size_error(backbone.output_stride, *args.size)
    if problem:
        raise UserError(f'--size: {" x ".join(map(str, args.size))} pixels {problem}')

    content, outputs = export_onnx(network, args.size)
    difference = onnx_difference(network, content, args.size)
    if not difference <= TOLERANCE:  # nor where it is NaN
        raise UserError(f'{out} is not written: its outputs would differ from those of {weights} by {difference:.1g} of the '
                        'largest: check that the weights are finite, or try another --size')
    with atomic_file(out) as file:
        file.write(content)
    log.info('%s: images B x 3 x %d x %d (mean %s, deviation %s) -> %s; differs from the network by %.1g of the largest value',
             out, *args.size, *backbone.normalization, ', '.join(outputs), difference)


if __name__ == '__main__':
    main()
