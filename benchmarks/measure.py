"""Shared parts of the benchmarks: timing alternatives in turns, separate processes, and peak memory."""
import contextlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path


def take_turns(rounds, *ways):
    """Call functions in turns, `rounds` times each after one call to warm up. Returns a list of seconds for each."""
    for way in ways:
        way()
    return list(zip(*([_seconds(way) for way in ways] for _ in range(rounds)), strict=True))


def _seconds(way):
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def ratio(slow, fast):
    """Median of the ratios of neighbouring times, which is robust to a machine that is busy for a while."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@contextlib.contextmanager
def in_own_process(make):
    """Yield a function that calls, in a process of its own, the function that `make()` returned there, and waits until it is
    done. Raises EOFError when that process has failed."""
    context = multiprocessing.get_context('spawn')
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()  # or the end of that process would not be noticed

    def way():
        connection.send(None)
        connection.recv()
    try:
        yield way
    finally:
        process.terminate()


def _serve(make, connection):
    way = make()
    while True:
        connection.recv()
        way()
        connection.send(None)


def peak_resident(reset=False):
    """The highest resident set in bytes so far; `reset` first sets it to the current one (Linux)."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def json_of(script, *flags):
    """What a script, run in a fresh process, prints as JSON."""
    command = [sys.executable, str(script), *map(str, flags)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
