"""Networks as ONNX files, and whether these compute what the networks do."""
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from models.networks import LinearNetwork, PretrainingNetwork
from utils.cli.packages import require

OPSET = 18
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def require_packages() -> None:
    """Raise a `UserError` if a package is missing that the other functions need."""
    for package in PACKAGES:
        require(package, 'export.py')


def export_onnx(network: LinearNetwork | PretrainingNetwork, size: Sequence[int]) -> tuple[bytes, list[str]]:
    """A `LinearNetwork` or `PretrainingNetwork` in eval mode as the bytes of an ONNX file, for batches of any length, and the
    names of its outputs. size: (height, width) of the images, which is fixed."""
    outputs = ['logits'] if isinstance(network, LinearNetwork) else ['embeddings', 'saliency']
    if outputs[1:] and network.classification_head is None:
        outputs.pop()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of PyTorch about its own parts
        program = torch.onnx.export(network, (torch.zeros(2, 3, *size),), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=['images'], output_names=outputs,
                                    dynamic_shapes=({0: torch.export.Dim('batch')},))
    assert program is not None  # dynamo=True
    return program.model_proto.SerializeToString(), outputs


def onnx_difference(network: LinearNetwork | PretrainingNetwork, content: bytes, size: Sequence[int]) -> float:
    """The largest difference between what the bytes of an ONNX file give and what the network does, as a share of the largest
    value, on three random images; NaN where one of them gives no finite values."""
    session = require('onnxruntime', 'export.py').InferenceSession(content, providers=['CPUExecutionProvider'])
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(images)
    wanted = [tensor.numpy() for tensor in (wanted if isinstance(wanted, tuple) else (wanted,)) if tensor is not None]
    given = session.run(None, {'images': images.numpy()})
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(given, wanted, strict=True)]))
