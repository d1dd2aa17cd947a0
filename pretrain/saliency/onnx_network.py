"""Any saliency network in an ONNX file."""
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from scipy.special import expit

from saliency.onnx_formats import LOGITS, STRETCHED, OnnxFormat
from saliency.resizing import resize_probability
from utils.cli.packages import require
from utils.errors import UserError, one_line

TOLERANCE = 1e-3  # that a probability may be outside [0, 1]: float16 rounds to 5e-4 below 1
DEFAULT = OnnxFormat()
DTYPES = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}


class OnnxSaliency:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], the probability that a pixel is salient.

    path: a network with one input, 1 x 3 x h x w float32 or float16 (RGB in [0, 1], normalised), whose first output is
    1 x 1 x h' x w', 1 x h' x w' or h' x w'. form: how the input is normalised, its size where the file leaves it open, and
    what the output is. device: where it isn't CUDA, the CPU computes.
    Raises `UserError` for a file that is missing, no ONNX file or another network, and for CUDA that onnxruntime lacks;
    `estimator(image)` does when the network fails or its output is none of the above.
    """

    def __init__(self, path: str | Path, form: OnnxFormat = DEFAULT, device: torch.device | str = 'cpu'):
        onnxruntime = require('onnxruntime', 'this saliency network')
        self.path, self.form = Path(path), form
        if not self.path.is_file():
            raise UserError(f'{path}: this ONNX file does not exist')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions; it would also print them
        providers = _providers(onnxruntime, torch.device(device))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise UserError(f'{path}: onnxruntime could not load it as an ONNX network ({one_line(error)}): '
                            'download or export it again') from error
        if len(providers) > 1 and 'CUDAExecutionProvider' not in self._session.get_providers():
            raise UserError(f'{path}: onnxruntime-gpu could not start CUDA: install the CUDA and cuDNN libraries that it was '
                            'built for, or compute on the CPU (--device cpu)')
        self._input, self._dtype, self._size = self._read_input()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        size = self._size[::-1]  # PIL's order
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)  # antialiased
        values: np.ndarray = np.asarray(resized, np.float32)
        values = (values / 255 - np.array(self.form.mean, np.float32)) / np.array(self.form.deviation, np.float32)
        batch = np.ascontiguousarray(values.transpose(2, 0, 1)[None], self._dtype)
        try:
            output = self._session.run(None, {self._input: batch})[0]
        except Exception as error:
            raise UserError(f'{self.path}: the network failed on an image of {size[0]} x {size[1]} '
                            f'({one_line(error)})') from error
        return resize_probability(self._probability(output), height, width)

    def _read_input(self):
        """The input's name, its numpy dtype and (height, width)."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ', '.join(entry.name for entry in inputs)
            raise UserError(f'{self.path}: it has {len(inputs)} inputs ({names}), not one, the image: name another file')
        name, shape, kind = inputs[0].name, inputs[0].shape, inputs[0].type
        sizes = [size if isinstance(size, int) and size > 0 else None for size in shape]  # None: open
        if len(sizes) != 4 or sizes[0] not in (1, None) or sizes[1] not in (3, None):
            raise UserError(f'{self.path}: its input {name} is {shape}, not 1 x 3 x height x width: '
                            'export it for one RGB image')
        if kind not in DTYPES:
            raise UserError(f'{self.path}: its input {name} is a {kind}, not float32 or float16: export it again')
        return name, DTYPES[kind], (sizes[2] or self.form.size[0], sizes[3] or self.form.size[1])

    def _probability(self, output: np.ndarray):
        """The network's first output -> h' x w' float32."""
        output = np.asarray(output)
        if not 2 <= output.ndim <= 4 or output.size == 0 or any(size != 1 for size in output.shape[:-2]):
            raise UserError(f'{self.path}: its first output is {list(output.shape)}, not one channel '
                            '(1 x 1 x height x width): export it with its saliency map alone or first')
        output = output.reshape(output.shape[-2:]).astype(np.float32)
        if not np.isfinite(output).all():
            raise UserError(f'{self.path}: its output is not finite: try it in float32, or another file')
        if self.form.output == LOGITS:
            return expit(output)
        low, high = output.min(), output.max()
        if self.form.output == STRETCHED:
            return (output - low) / max(high - low, np.finfo(np.float32).tiny)
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise UserError(f'{self.path}: its output is not a probability (it goes from {low:.4g} to {high:.4g}): '
                            'add --onnx_output logits, or stretched')
        return output


def _providers(onnxruntime: ModuleType, device: torch.device):
    if device.type != 'cuda':
        return ['CPUExecutionProvider']
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        raise UserError('this onnxruntime has no CUDA: pip uninstall onnxruntime, then pip install '
                        f'onnxruntime-gpu=={onnxruntime.__version__}, or compute on the CPU (--device cpu)')
    return [('CUDAExecutionProvider', {'device_id': device.index or 0}), 'CPUExecutionProvider']
