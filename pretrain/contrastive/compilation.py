"""Functions that `torch.compile` turns into fewer kernels, if it can."""
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger('maskcontrast')


class Compiled:
    """`function`, compiled by `torch.compile` on the first call. If that fails, for example without a compiler, `function`
    itself is used from then on, and the log has one line about it.

    function: of tensors, without side effects. what: its name in the log. options: of `torch.compile`.
    """

    def __init__(self, function: Callable[..., Any], what: str, **options: Any):
        self.function, self.what, self.options = function, what, {'dynamic': False, **options}
        self._way: Callable[..., Any] | None = None

    @property
    def compiled(self) -> bool:
        """Whether it has been compiled."""
        return self._way not in (None, self.function)

    def __call__(self, *arguments: Any) -> Any:
        if self._way is None:  # here, as its import takes seconds
            self._way = torch.compile(self.function, **self.options)
        if self._way is self.function:
            return self.function(*arguments)
        try:
            return self._way(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = ' '.join(str(error).splitlines()[:2])  # the first says who failed, the second why
            log.warning('torch.compile could not compile %s, so they run uncompiled (%s: %s)', self.what,
                        type(error).__name__, reason)
            self._way = self.function
            return self.function(*arguments)
