"""Files that are written by a thread during the training."""
import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch


def snapshot(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are in host memory and don't change any more.

    Memory formats and dtypes stay. On a GPU the copy is in line with the kernels: it has what they have computed before.
    """
    if torch.is_tensor(state):
        return state.detach().to('cpu', copy=True)
    if isinstance(state, Mapping):
        copied: Any = copy.copy(state)  # with the `_metadata` that a module's state dict carries
        for key, value in state.items():
            copied[key] = snapshot(value)
        return copied
    return type(state)(map(snapshot, state)) if isinstance(state, (list, tuple)) else state


class BackgroundWriter:
    """Runs one write at a time in its own thread. A context manager; all is written at its end.

    An error of a write is raised in the thread that started it: in its next call of `start`, `check` or `finish`, or at the end
    of the context unless another error ends it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._then: Callable[[], object] | None = None

    def start(self, write: Callable[[], object], then: Callable[[], object] | None = None) -> None:
        """Have `write()` run, after the write before has ended. then: what the thread that started it calls when it is done."""
        self.finish()
        self._then = then
        # A daemon, so that a process whose disk hangs can be ended; the end of the context waits for every write.
        self._thread = threading.Thread(target=self._run, args=(write,), name='checkpoint', daemon=True)
        self._thread.start()

    def check(self) -> None:
        """If a write has ended, raise its error or call its `then`."""
        if self._thread and not self._thread.is_alive():
            self.finish()

    def wait(self) -> None:
        """Wait for the end of the write, if there is one, and leave its error for later."""
        if self._thread:
            self._thread.join()

    def finish(self) -> None:
        """Wait for the end of the write, if there is one, and deal with it as `check` does."""
        self.wait()
        self._thread, error, self._error, then, self._then = None, self._error, None, self._then, None
        if error:
            raise error
        if then:
            then()

    def __enter__(self) -> 'BackgroundWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.wait()
        if kind is None or not self._error:
            self.finish()

    def _run(self, write: Callable[[], object]):
        try:
            write()
        except BaseException as error:
            self._error = error
