"""Worker processes and threads: how many there are, and how workers end, at the latest with the main process."""
import math
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from multiprocessing import connection
from pathlib import Path
from types import TracebackType

CGROUPS, OWN_GROUPS = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')


def cores() -> int:
    """How many cores this process may use: those of its affinity, and no more than its control group's quota, which
    `docker run --cpus` sets, is worth."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(here, math.ceil(min(_quotas(), default=here))))


def _quotas(root: Path = CGROUPS, groups: Path = OWN_GROUPS) -> Iterator[float]:
    """The quotas, in cores, of this process's control groups and those above (cgroup v2, and the cpu controller of v1)."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if controllers and 'cpu' not in controllers.split(','):
            continue
        for mount in (root / 'cpu', root / 'cpu,cpuacct') if controllers else (root, root / 'unified'):
            folder = mount / path.lstrip('/')
            for group in (folder, *folder.parents):
                yield from _quota(group)
                if group == mount:
                    break


def _quota(group: Path):
    for names in (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us')):
        try:
            quota, period = ' '.join((group / name).read_text() for name in names).split()
            if quota != 'max' and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def prepare_threads() -> None:
    """Set what OpenMP, which PyTorch computes with, reads when it is loaded; what the user has set stays.

    As many threads as `cores`. They sleep soon when they wait, where by default they spin: beside another busy process a step
    takes 5 times as long as on a quiet machine by default, and 1.8 times like this (benchmarks/busy_machine.py).
    """
    os.environ.setdefault('OMP_NUM_THREADS', str(cores()))
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '1000')


def end_on_lost_batch() -> None:
    """End this worker process if it can't pass on a batch, usually for lack of shared memory. By default Python only prints the
    reason, and the main process waits for the batch forever."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined, method-assign]


def hide_lost_connections() -> None:
    """Print nothing when the main process breaks off a connection to this worker process, as it does when it ends with an error
    line of its own: multiprocessing's thread that passes batches on would show the traceback."""
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None):
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, traceback)
    sys.excepthook = hook


def _end(error: BaseException, _: object):
    print(f'a worker could not pass on a batch: {error}', file=sys.stderr, flush=True)
    os._exit(1)


def end_with_parent() -> None:
    """End this worker process when the one that started it is gone. A killed main process can't do it, and the workers would
    wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # as in every process that multiprocessing has started
    sentinel = parent.sentinel

    def wait():
        connection.wait([sentinel])
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def obey_only_parent(signals: Collection[signal.Signals]) -> None:
    """Ignore `signals` in this worker process, and in threads that it starts from now on, unless its parent sends them:
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
