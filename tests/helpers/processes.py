"""Real processes for the tests: what torchrun starts, who of them is who, and a disk that is full for this one."""
import contextlib
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

MAIN = Path(__file__).resolve().parents[2] / 'pretrain' / 'main.py'
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}  # two processes with two threads each would fight for two cores


def torchrun(script, arguments, log, count=2):
    """Start `count` processes of a script by torchrun, whose output goes to the file `log`."""
    with open(log, 'w') as file:
        return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}',
                                 script, *arguments], cwd='/', env=ONE_THREAD, stdout=file, stderr=subprocess.STDOUT)


def pid_of(launcher, rank):
    """The process of a rank that `launcher` has started."""
    def found():
        for process in Path('/proc').glob('[0-9]*'):
            try:
                parent = int((process / 'stat').read_text().rpartition(')')[2].split()[1])
                if parent == launcher.pid and f'RANK={rank}'.encode() in (process / 'environ').read_bytes().split(b'\0'):
                    return int(process.name)
            except (OSError, ValueError):
                continue  # it has just ended
        return None
    return wait_for(found)


def wait_for(condition, seconds=120):
    """What `condition()` gives as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def largest_file(size):
    """Within the block no file can grow beyond `size` bytes, which fails as a full disk does: with an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exit_codes(log):
    """By rank, from torchrun's report."""
    text = log.read_text()
    return {int(rank): int(code) for rank, code in re.findall(r'rank +: (\d+).*\n +exitcode +: (-?\d+)', text)}


def errors(log):
    return [line for line in log.read_text().splitlines() if 'error: ' in line and 'torch' not in line]
