"""Real runs of main.py, each of whose lives ends in a kill: how to start them, wait, kill, and look at what they left.

A run's processes are found by a mark in their environment, which workers and torchrun's children inherit. Every wait has a
deadline.
"""
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers.checks import assert_same
from helpers.processes import MAIN, ONE_THREAD

from utils.checkpoint import load_file, previous_checkpoint

MARK = 'SOAK_RUN'
PATIENCE = 180  # seconds until a run has done what is waited for


class Run:
    """process: main.py, or torchrun. said: the file that takes its output."""

    def __init__(self, process, mark, said):
        self.process, self.mark, self.said = process, f'{MARK}={mark}'.encode(), said

    def output(self):
        self.said.seek(0)
        return self.said.read().decode(errors='replace')

    def pids(self):
        """Of all its processes that live."""
        return [int(folder.name) for folder in Path('/proc').glob('[0-9]*') if self.mark in self._environment(folder.name)
                and self._status(folder.name) not in 'ZX']

    @staticmethod
    def _environment(pid):
        try:
            return Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        except OSError:
            return []

    @staticmethod
    def _status(pid):
        """A letter; Z is one that nobody has waited for yet, X that there is none."""
        try:
            return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            return 'X'


@contextlib.contextmanager
def start(arguments, processes=1):
    """A `Run` of main.py with these arguments, under torchrun for several processes. What lives at the end of the block is
    killed."""
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder, open(f'{folder}/said', 'w+b') as said:
        torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', f'--log-dir={folder}']
        process = subprocess.Popen([sys.executable, *(torchrun if processes > 1 else []), MAIN, *arguments], stdout=said,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**ONE_THREAD, MARK: mark})
        run = Run(process, mark, said)
        try:
            yield run
        finally:
            end = time.monotonic() + 60
            while (left := run.pids()) and time.monotonic() < end:
                kill(*left)
                time.sleep(0.05)
            process.wait(60)


def kill(*pids):
    """SIGKILL, at once for all."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait(run, condition, what, pause=0.002):
    """The value of `condition()`, once it is true. Fails when the run ends before, or the time is over."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert run.process.poll() is None, f'the run ended before {what}:\n{run.output()}'
        assert time.monotonic() < end, f'not {what} after {PATIENCE} s:\n{run.output()}'
        time.sleep(pause)
    return value


def wait_until_gone(run, seconds):
    """Until none of the run's processes is left. Returns how many seconds that took."""
    begun = time.monotonic()
    while run.process.poll() is None or run.pids():
        assert time.monotonic() - begun < seconds, f'{len(run.pids())} processes live after {seconds} s:\n{run.output()}'
        time.sleep(0.02)
    return time.monotonic() - begun


def finish(arguments, processes=1):
    """Run to the end, which must be a good one."""
    with start(arguments, processes) as run:
        wait_until_gone(run, 4 * PATIENCE)
        assert run.process.returncode == 0, run.output()


class Checkpoints:
    """What a run with a checkpoint after every step leaves in `folder`, seen from outside. steps: of an epoch.

    position: steps that were safe before this life. saves: checkpoints that it has written. startup, pace: seconds from the
    start of the last life that got there to its first checkpoint, and the least seen from one to the next.
    """

    def __init__(self, folder, steps):
        self.folder, self.path, self.steps = folder, folder / 'checkpoint.pth.tar', steps
        self.position, self.startup, self.pace = 0, 5.0, 0.5
        self.begin()

    def begin(self):
        """A life begins."""
        self.saves, self.file, self.since = 0, self._file(), time.monotonic()

    def look(self):
        """Returns how many checkpoints this life has written. To be called more often than it does that."""
        file, now = self._file(), time.monotonic()
        if file != self.file:
            if self.saves:
                self.pace = min(self.pace, now - self.since)
            else:
                self.startup = now - self.since
            self.saves, self.file, self.since = self.saves + 1, file, now
        return self.saves

    def being_written(self):
        """Bytes of the checkpoint that is being written now, or None. Those that killed runs had left don't count once a life
        has begun to train: it removes them."""
        self.look()
        sizes = [size for name, size in self.temporaries() if '.previous.' not in name]
        return max(sizes, default=None)

    def temporaries(self):
        """Names and bytes of the temporary files, which only a writing or a killed run leaves."""
        found = []
        for path in self.folder.glob('.checkpoint.pth.tar.*.tmp'):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.name, path.stat().st_size))
        return found

    def check(self):
        """After the end of a life: what it left is whole, and nothing that was safe is lost. Returns the new position."""
        reached = self.position + self.look()
        if not self.path.exists():
            assert reached == 0 and not previous_checkpoint(self.path).exists()
            return 0
        position, epoch = self._position(self.path)
        assert position >= reached, f'{position} steps are safe, but {reached} were before'
        previous = previous_checkpoint(self.path)
        if position > 1 and not previous.samefile(self.path):
            assert self._position(previous)[0] == position - 1
        self._check_records(epoch)
        self.position = position
        return position

    def _check_records(self, epoch):
        """An epoch's numbers are written before its checkpoint, and its line in the log after that."""
        metrics, log = self.folder / 'metrics.jsonl', (self.folder / 'log_file.txt').read_text()
        rows = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        assert epoch <= rows <= epoch + 1
        assert max(map(int, re.findall(r' Epoch (\d+)/', log)), default=0) <= epoch
        went_on = re.findall(r'Resuming from .*, after (\d+) epochs and (\d+) steps', log)
        if self.saves and self.position:
            assert int(went_on[-1][0]) * self.steps + int(went_on[-1][1]) == self.position

    def _position(self, path):
        state = load_file(path, check=True)
        return state['epoch'] * self.steps + state['step'], state['epoch']

    def _file(self):
        try:
            status = self.path.stat()
            return status.st_ino, status.st_mtime_ns
        except FileNotFoundError:
            return None


def assert_undisturbed(folder, undisturbed):
    """Two finished runs left the same weights, queue, optimiser, random generators and numbers, bit for bit, and no litter."""
    ends = [torch.load(path / 'checkpoint.pth.tar', weights_only=True) for path in (folder, undisturbed)]
    for key in ('model', 'optimizer', 'random', 'epoch', 'step', 'totals', 'skipped'):
        assert_same(ends[0][key], ends[1][key], key)
    rows = metrics(folder)
    assert rows == metrics(undisturbed) and [row['epoch'] for row in rows] == list(range(1, ends[0]['epoch'] + 1))
    assert sorted(path.name for path in folder.iterdir()) == [
        'checkpoint.pth.tar', 'checkpoint.pth.tar.previous', 'config.yml', 'log_file.txt', 'metrics.jsonl', 'tensorboard']


def metrics(folder):
    """The rows of metrics.jsonl, without what the clock says."""
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != 'images_per_second'} for row in rows]
