"""Real processes for the tests: those of torchrun and their ranks, and a disk that is full for this one."""
import contextlib
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist

from helpers import warm

MAIN = Path(__file__).resolve().parents[2] / 'pretrain' / 'main.py'
OF_TESTS = {'PYTHONPATH': os.pathsep.join(map(str, (MAIN.parent, Path(__file__).parents[1])))}  # for a test file as a script
ONE_THREAD = {**os.environ, 'OMP_NUM_THREADS': '1'}  # two processes with two threads each would fight for two cores


def torchrun(script, arguments, log, count=2):
    """Start `count` processes of a script by torchrun, whose output goes to the file `log`."""
    with open(log, 'w') as file:
        return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}',
                                 script, *arguments], cwd='/', env=ONE_THREAD, stdout=file, stderr=subprocess.STDOUT)


class Ranks:
    """Processes of a script that meet as those of torchrun do, without torchrun, which itself takes seconds to start. What they
    print is in files of `folder`."""

    def __init__(self, script, arguments, folder, count=2, **environment):
        self.store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # as torchrun has one
        shared = {'WORLD_SIZE': str(count), 'LOCAL_WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1',
                  'MASTER_PORT': str(self.store.port), 'TORCHELASTIC_USE_AGENT_STORE': 'True', 'TORCHELASTIC_RUN_ID': 'none'}
        folder.mkdir(exist_ok=True)
        self.processes = [warm.start(script, *arguments, out=folder / f'rank{rank}.log', **{
            **shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank), **environment}) for rank in range(count)]

    def wait(self, timeout=120):
        """Wait for their end. Returns the exit codes in rank order; a negative one is that of a signal."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()

    def printed(self):
        return ''.join(process.printed() for process in self.processes)

    def errors(self):
        return [line for line in self.printed().splitlines() if 'error: ' in line]


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


def has_ended(process):
    """Zombies have: they have no command."""
    command = Path(f'/proc/{process}/cmdline')
    return not command.exists() or not command.read_bytes()


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
