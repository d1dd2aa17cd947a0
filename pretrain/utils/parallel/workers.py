"""Worker processes: how many, and that they don't outlive the main one."""
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection
from multiprocessing import connection


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this worker process when the one that started it is gone. A main process that was killed can't do it, and the
    workers would wait for work for ever, or for somebody to read theirs."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # as in every process that multiprocessing has started
    sentinel = parent.sentinel

    def wait():
        connection.wait([sentinel])
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def obey_only_parent(signals: Collection[signal.Signals]) -> None:
    """Ignore `signals` in this worker process, and in threads that it starts from here on, unless its parent sends them:
    clusters send them to all processes of a run, of which the main one still needs its workers."""
    if not hasattr(signal, 'sigwaitinfo'):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = os.getppid()

    def wait():
        while signal.sigwaitinfo(signals).si_pid != parent:
            pass
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()
