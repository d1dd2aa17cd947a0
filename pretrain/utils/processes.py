"""Worker processes: how many, and that they don't outlive the main one."""
import multiprocessing
import os
import threading
from multiprocessing import connection


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def end_with_parent():
    """End this worker process when the one that started it is gone. A main process that was killed can't do it, and the
    workers would wait for work for ever, or for somebody to read theirs."""
    sentinel = multiprocessing.parent_process().sentinel

    def wait():
        connection.wait([sentinel])
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()
