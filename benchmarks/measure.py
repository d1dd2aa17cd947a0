"""What the benchmarks share: ways to the same numbers timed in turns, and peak memory."""
import contextlib
import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(way):
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def take_turns(rounds, *ways):
    """Call functions in turns, `rounds` times each after one call to warm up. Returns a list of seconds for each."""
    for way in ways:
        way()
    return list(zip(*([seconds(way) for way in ways] for _ in range(rounds)), strict=True))


@contextlib.contextmanager
def elsewhere(make):
    """A function that has a process of its own call the function that `make()` returned there, and waits for it."""
    context = multiprocessing.get_context('spawn')
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()

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


def ratio(slow, fast):
    """Median of the ratios of neighbouring times, which a machine that is busy for a while changes least."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_resident(reset=False):
    """The highest resident set in bytes so far; `reset` makes it the present one first (Linux)."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def in_fresh_process(script, *flags):
    """Run a benchmark once more, with `flags` added to this run's, and return the number that it prints."""
    command = [sys.executable, script, *sys.argv[1:], *map(str, flags)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
