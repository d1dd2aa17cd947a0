"""Export a network to ONNX, for programs that have no PyTorch.

    python export.py --weights ../output/demo_linear/best_model.pth.tar --out network.onnx --size 96 96

The file takes `images`, B x 3 x height x width float32: RGB in [0, 1], minus (0.485, 0.456, 0.406), over
(0.229, 0.224, 0.225). That of a linear network gives `logits`, B x classes x height x width; that of a pre-training checkpoint
`embeddings`, B x D x height x width, not normalised, and `saliency` logits, B x height x width. It is run and compared with the
network before it is written. Needs requirements-optional.txt.
"""
import logging
import warnings

import numpy as np
import torch

from evaluation.weights import stored_network
from models.networks import LinearNetwork
from utils.command import command, make_env_parser
from utils.config import TREE, read_env
from utils.errors import UserError
from utils.files import atomic_file
from utils.packages import require
from utils.zoo import local_file

TOLERANCE = 1e-3  # of the file's outputs, as a share of the largest
OPSET = 18

log = logging.getLogger('maskcontrast')


def parse_arguments(argv):
    parser = make_env_parser(__doc__, default=str(TREE / 'configs' / 'env.yml'))
    parser.add_argument('--weights', required=True, metavar='PATH',
                        help='a pre-training checkpoint, a model of linear_finetune.py, or zoo://<name>')
    parser.add_argument('--out', required=True, metavar='PATH', help='the ONNX file to write')
    parser.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('HEIGHT', 'WIDTH'),
                        help='of the images, in pixels (default: 512 512)')
    parser.add_argument('--output-stride', type=int, choices=(8, 32), default=8,
                        help='32 for networks with backbone_kwargs.dilated: False (default: 8)')
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_arguments(argv)
    if min(args.size) < 1:
        raise UserError(f'--size is {" ".join(map(str, args.size))}, but must be two positive numbers of pixels')
    weights = local_file(args.weights, read_env(args.config_env).root_dir)
    network = stored_network(weights, dilated=args.output_stride == 8).eval()

    content, outputs = onnx_of(network, args.size)
    difference = difference_of(network, content, args.size)
    if difference > TOLERANCE:
        raise UserError(f'{args.out} is not written: its outputs would differ from those of {args.weights} by {difference:.1g} '
                        'of the largest: try another --size, or the versions of requirements-optional.txt')
    with atomic_file(args.out) as file:
        file.write(content)
    log.info('%s: images B x 3 x %d x %d -> %s; differs from the network by %.1g of the largest value', args.out, *args.size,
             ', '.join(outputs), difference)


def onnx_of(network, size):
    """A network as the bytes of an ONNX file, for batches of any length, and the names of its outputs. size: (height, width) of
    the images, which is fixed."""
    for package in ('onnx', 'onnxscript'):
        require(package, 'export.py')
    outputs = ['logits'] if isinstance(network, LinearNetwork) else ['embeddings', 'saliency']
    if outputs[1:] and network.classification_head is None:
        outputs.pop()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of PyTorch about its own parts
        program = torch.onnx.export(network, (torch.zeros(2, 3, *size),), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=['images'], output_names=outputs,
                                    dynamic_shapes=({0: torch.export.Dim('batch')},))
    return program.model_proto.SerializeToString(), outputs


def difference_of(network, content, size):
    """The largest difference between what the bytes of an ONNX file give and what the network does, as a share of the largest
    value, on three random images."""
    session = require('onnxruntime', 'export.py').InferenceSession(content, providers=['CPUExecutionProvider'])
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(images)
    wanted = [tensor.numpy() for tensor in (wanted if isinstance(wanted, tuple) else (wanted,)) if tensor is not None]
    given = session.run(None, {'images': images.numpy()})
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in zip(given, wanted, strict=True))


if __name__ == '__main__':
    main()
