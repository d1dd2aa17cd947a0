"""NumPy's numbers and arrays in checkpoints of other code: `best_iou` of the published linear_finetune.py is a numpy.float64.

They are data. torch.load(weights_only=True) accepts them only through the stand-ins defined here: NumPy's own code builds them
from bytes, and only plain numbers, truth values and texts come out of it.
"""
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

PLAIN = 'biufcSU'  # kinds of numpy.dtype


class _Dtype:
    """Stands for a numpy.dtype."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code) if isinstance(code, str) else np.dtype(object)
        if self.dtype.kind not in PLAIN:
            raise pickle.UnpicklingError(f'an array of {self.dtype} is not plain data')

    def __setstate__(self, state: tuple[Any, ...]):
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """A numpy.ndarray whose content comes as bytes."""

    def __setstate__(self, state: tuple[Any, ...]):  # type: ignore[override]
        version, shape, dtype, by_column, content = state
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError('an array of objects is not plain data')
        super().__setstate__((version, shape, dtype.dtype, by_column, content))


def _array(*_: Any):
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _no_bytes():
    """What pickles of torch.save have for the content of an empty array."""
    return b''


def _scalar(dtype: _Dtype, content: bytes):
    """A number, truth value or text of Python."""
    return np.frombuffer(content, dtype.dtype, count=1)[0].item()


# NumPy 1 and 2 have their functions in different modules.
STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (_Dtype, 'numpy.dtype'), (_Array, 'numpy.ndarray'), (_no_bytes, 'builtins.bytes'), (_no_bytes, '__builtin__.bytes'),
    *((stand_in, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core')
      for stand_in, name in ((_scalar, 'scalar'), (_array, '_reconstruct')))]
