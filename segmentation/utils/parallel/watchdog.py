"""Heartbeats between the processes of a run, so that none waits for a process that has died or is stuck."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

TIMEOUT = 300       # seconds without progress before a process counts as hanging
EXIT_LOST = 3       # another process died or hangs
HEARTBEAT = 0.5     # seconds between two of them
SILENCE = 40        # heartbeats missed before a process counts as dead
SHORT_SILENCE = 10  # the same, once a collective has failed
NOTICE = 10         # seconds that an ending process waits for others to have noticed

log = logging.getLogger('maskcontrast')

current: Watchdog | None = None  # the one of this process's group, set by utils/parallel/distributed.py


class Watchdog:
    """Exchanges heartbeats with the other processes of a group, in a thread, through the store that they met at.

    When another one has failed, died, or keeps all others waiting for `patience` seconds inside `watched`, this process ends:
    its main thread may be inside a collective that will never return. `place` and `passed` are for others to set:
    the current work of the process, in words, and the number of points that it has passed which all processes pass, mainly
    collectives.
    """

    def __init__(self, store: Store, rank: int, world_size: int, patience: float):
        self.store, self.rank, self.world_size, self.patience = store, rank, world_size, patience
        self.place, self.passed = 'at the start', 0
        self.watching, self.trouble, self.failed = False, threading.Event(), False
        self.closed, self.once = threading.Event(), threading.Lock()
        self.beat = 0
        self.lost: set[int] = set()
        self._sign()
        self.store.wait([self._key(other) for other in range(world_size)])
        self.rounds = self.still = 0  # beats, and those of them since anybody's last progress
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._watch_store)]
        for thread in self.threads:
            thread.start()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The block makes progress all the time: it takes part in collectives or sets `place`."""
        before, self.watching, self.still = self.watching, True, 0
        try:
            yield
        finally:
            self.watching = before

    def close(self) -> None:
        """Stop the heartbeats. All processes must be past their last collective."""
        self.closed.set()
        for thread in self.threads:
            thread.join()
        with contextlib.suppress(RuntimeError):
            self.store.add('closed', 1)
            if self.rank == 0:  # the store may be in this process
                self._until(lambda: self.store.add('closed', 0) == self.world_size)

    def fail(self, line: str, code: int) -> int:
        """Tell the others that this process ends with exit code `code`, and the reason. Returns the code with which to end.

        Rank 0 says it, as its log is the run's; if it does not answer, this process does.
        """
        self.failed, rank, own = True, self.rank, line
        with contextlib.suppress(RuntimeError):
            rank, line, code = json.loads(self.store.compare_set('failure', '', json.dumps([self.rank, line, code])))
        self._report(self.rank if line == own else rank, line, of_mine=rank == self.rank)
        self._go()
        return code

    def wait_for_cause(self) -> None:
        """Give the watch time to find out why a collective failed, which ends this process. Returns when it has not."""
        self.trouble.set()
        time.sleep(SHORT_SILENCE * HEARTBEAT + NOTICE)

    def _report(self, rank: int, line: str, of_mine: bool):
        """Say once, for all processes, what happened to `rank`: rank 0 does, otherwise the one that found out (`of_mine`)."""
        if self.rank and (not of_mine or self._said()) or not self.once.acquire(blocking=False):
            return  # the main thread and the watch may both end this process
        log.error('error: %s%s', f'rank {rank}: ' if rank else '', line)
        with contextlib.suppress(RuntimeError):
            self.store.set('said', '1')

    def _said(self):
        """Whether rank 0 says it."""
        try:
            return 0 not in self.lost and self._until(lambda: self.store.check(['said']))
        except RuntimeError:
            return False

    def _go(self):
        """Let the others know that this process ends. Rank 0 is the last, as the store may be in it."""
        with contextlib.suppress(RuntimeError):
            if self.rank == 0:
                self._until(lambda: self.store.add('gone', 0) >= self.world_size - 1 - len(self.lost))
            self.store.add('gone', 1)

    def _until(self, condition: Callable[[], bool]):
        end = time.monotonic() + NOTICE
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False

    @staticmethod
    def _key(rank: int) -> str:
        return f'rank {rank}'

    def _sign(self):
        self.beat += 1
        self.store.set(self._key(self.rank), json.dumps([self.beat, self.passed, self.place]))

    def _watch(self):
        seen = [None] * self.world_size   # what each process's last sign was
        silent = [0] * self.world_size    # beats since then: counted, as the clock runs on while a machine sleeps
        progress = None                   # all that they say but that they live
        while not self.closed.wait(HEARTBEAT):
            if self.failed:
                continue  # this process is ending by itself
            try:
                self._sign()
                signs = [json.loads(sign) for sign in self.store.multi_get([self._key(r) for r in range(self.world_size)])]
                if self.store.check(['failure']):
                    self._end(*json.loads(self.store.get('failure')))
            except RuntimeError:  # the store is gone, and it lived in rank 0 or in what had started this process
                if not self.closed.is_set() and not self.failed:
                    self.lost.add(0)
                    self._end(self.rank, f'rank 0, or the process that started it, has died ({self.place})', EXIT_LOST)
                continue
            self.rounds += 1
            for rank, sign in enumerate(signs):
                silent[rank] = 0 if sign[0] != seen[rank] else silent[rank] + 1
                seen[rank] = sign[0]
            self.still = 0 if progress != [sign[1:] for sign in signs] else self.still + 1
            progress = [sign[1:] for sign in signs]
            self._judge(signs, silent)

    def _watch_store(self):
        """End this process when the store does not answer: then the other thread waits forever."""
        before, silent = self.rounds, 0
        while not self.closed.wait(HEARTBEAT):
            before, silent = self.rounds, 0 if self.rounds != before or self.failed else silent + 1
            if silent > 2 * SILENCE:  # the other thread, which knows more, comes first where it can
                log.error('error: rank 0, or the process that started it, does not answer (%s)', self.place)
                os._exit(EXIT_LOST)

    def _judge(self, signs: list[list[Any]], silent: list[int]):
        """End this process if another has been silent for too long, or all have stood still."""
        limit = SHORT_SILENCE if self.trouble.is_set() else SILENCE
        self.lost = {rank for rank, beats in enumerate(silent) if beats > limit}
        if self.lost:
            places = '; '.join(f'rank {rank} has died or hangs ({signs[rank][2]})' for rank in sorted(self.lost))
            self._end_together(f'{places}: no heartbeat for {limit * HEARTBEAT:.0f} s')
        elif self.watching and self.still * HEARTBEAT > self.patience:
            fewest = min(sign[1] for sign in signs)
            late = [f'rank {rank} hangs ({sign[2]})' for rank, sign in enumerate(signs) if sign[1] == fewest]
            behind = '; '.join(late) if len(late) < self.world_size else f'all ranks hang ({signs[self.rank][2]})'
            self._end_together(f'{behind}: no progress for {self.patience:.0f} s')

    def _end_together(self, line: str):
        line = f'{line}; start the run again to resume from its last checkpoint'
        own = json.dumps([self.rank, line, EXIT_LOST])
        failure: str | bytes = own
        with contextlib.suppress(RuntimeError):
            failure = self.store.compare_set('failure', '', own)
        self._end(*json.loads(failure))

    def _end(self, rank: int, line: str, code: int):
        """End this process from the watching thread. What it has not written to disk is lost."""
        self.failed = True
        self._report(0 if code == EXIT_LOST else rank, line, of_mine=rank == self.rank)
        self._go()
        for handler in log.handlers:
            handler.flush()
        os._exit(code)
