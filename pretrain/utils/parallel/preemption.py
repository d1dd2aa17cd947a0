"""Requests to stop, SIGTERM and SIGUSR1, which clusters send before they take a machine away."""
import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start again

PATIENCE = 60  # seconds for which a request waits for somebody to look at it: until the end of a step
ECHO = 5  # seconds in which a second signal is the same request: clusters send it, and so does the launcher

_state: dict[str, Any] = {'deferred': False, 'requested': None, 'since': None}


class Preempted(BaseException):
    """The run was asked to stop. Like KeyboardInterrupt it may be raised anywhere, and error handlers should not catch it.

    agreed: whether all processes stop here.
    """

    def __init__(self, name: str, agreed: bool = False):
        super().__init__(name)
        self.agreed = agreed


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, a request raises `Preempted`, at once or where `deferred` says. Only the main thread can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.update(deferred=False, requested=None, since=None)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, a request waits until `requested` is called, but at most for PATIENCE or until the next signal. Without such a
    call, it raises `Preempted` at the end."""
    before, _state['deferred'] = _state['deferred'], 'until looked at'
    try:
        yield
    finally:
        _state['deferred'] = before
    check()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside, also within `deferred`, a request raises `Preempted`: nothing would be lost."""
    before, _state['deferred'] = _state['deferred'], False
    try:
        check()
        yield
    finally:
        _state['deferred'] = before


def ignore() -> None:
    """From now on, requests change nothing, as the run is ending anyway; but if it has not ended after PATIENCE, or at the next
    signal after ECHO, the process ends on the spot."""
    _state['deferred'] = 'for good'


def requested() -> str | None:
    """The name of the signal that asked this process to stop, or None."""
    return _state['requested']


def check() -> None:
    """Raise `Preempted` if this process was asked to stop and may do so at once."""
    if _state['requested'] and not _state['deferred']:
        raise Preempted(_state['requested'])


def _handle(number: int, _: FrameType | None):
    name, now = signal.Signals(number).name, time.monotonic()
    if _state['requested'] is None:  # nobody may ever look, where the main thread waits for what never comes
        _state['since'] = now
        threading.Thread(target=_repeat, args=(number, PATIENCE, now), daemon=True).start()
    _state['requested'] = name
    check()
    if now - _state['since'] > ECHO:
        if _state['deferred'] == 'for good':  # the end itself waits, for example for a stuck worker
            os._exit(EXIT_PREEMPTED)
        raise Preempted(name)


def _repeat(number: int, seconds: float, since: float):
    time.sleep(seconds)
    if _state['since'] == since:  # still in there
        _state['since'] = -math.inf  # a signal from now on is not an echo
        os.kill(os.getpid(), number)
