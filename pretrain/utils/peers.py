"""Signs of life between the processes of a run, so that none waits for one that has died or hangs."""
import contextlib
import json
import logging
import os
import threading
import time

EXIT_LOST = 3       # another process died or hangs
BEAT = 0.5          # seconds between signs of life
SILENCE = 40        # beats without one before a process counts as dead
SHORT_SILENCE = 10  # the same, once a collective has failed
NOTICE = 10         # seconds that an ending process waits for others to have noticed

log = logging.getLogger('maskcontrast')


class Peers:
    """Exchanges signs of life with the other processes of a group, in a thread, through the store that they met at.

    When another one has failed, died, or keeps all others waiting for `patience` seconds inside `watched`, this process ends:
    its main thread may be inside a collective that will never return. `place` and `collectives` are for others to set:
    what the process is doing, in words, and in how many collectives it has taken part.
    """

    def __init__(self, store, rank, world_size, patience):
        self.store, self.rank, self.world_size, self.patience = store, rank, world_size, patience
        self.place, self.collectives, self.steps = 'at the start', 0, 0
        self.watching, self.trouble, self.failed = False, threading.Event(), False
        self.closed = threading.Event()
        self.beat, self.lost = 0, set()
        self._sign()
        self.store.wait([self._key(other) for other in range(world_size)])
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    @contextlib.contextmanager
    def watched(self):
        """The block makes progress all the time: it takes part in collectives or sets `place`."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def close(self):
        """Stop the signs of life. All processes must be past their last collective."""
        self.closed.set()
        self.thread.join()

    def fail(self, line, code):
        """Tell the others that this process ends with exit code `code`, and why. Returns the code with which to end.

        Rank 0 says it, as its log is the run's; if it does not answer, this process does.
        """
        self.failed = True
        with contextlib.suppress(RuntimeError):
            first = json.loads(self.store.compare_set('failure', '', json.dumps([self.rank, line, code])))
            if self.rank == 0:
                self._say(*first)
                self._until(self._others_gone)  # the store may be in this process
            elif not self._until(lambda: self.store.check(['said'])):
                self._say(*first)
            self.store.add('gone', 1)
            return first[2]
        self._say(self.rank, line, code)
        return code

    def explain(self, error):
        """Wait until the watch has found out why a collective failed, which ends this process. Returns when it has not."""
        self.trouble.set()
        self._until(lambda: False, SHORT_SILENCE * BEAT + NOTICE)
        log.error('error: rank %d, %s: %s', self.rank, self.place, str(error).splitlines()[0])

    def _say(self, rank, line, _):
        log.error('error: %s%s', f'rank {rank}: ' if rank else '', line)
        if self.rank == 0:
            with contextlib.suppress(RuntimeError):
                self.store.set('said', '1')

    def _others_gone(self):
        return self.store.add('gone', 0) >= self.world_size - 1 - len(self.lost)

    def _until(self, condition, seconds=NOTICE):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False

    @staticmethod
    def _key(rank):
        return f'rank {rank}'

    def _sign(self):
        self.beat += 1
        self.store.set(self._key(self.rank), json.dumps([self.beat, self.collectives, self.place]))

    def _watch(self):
        seen = [None] * self.world_size   # what each process's last sign was
        silent = [0] * self.world_size    # beats since then: counted, as the clock runs on while a machine sleeps
        progress, still = None, 0         # the same of all that they say but that they live
        while not self.closed.wait(BEAT):
            if self.failed:
                continue  # this process is ending by itself
            try:
                self._sign()
                signs = [json.loads(sign) for sign in self.store.multi_get([self._key(r) for r in range(self.world_size)])]
                if self.store.check(['failure']):
                    self._end(*json.loads(self.store.get('failure')))
            except RuntimeError:  # the store is gone, and it lived in rank 0 or in what had started this process
                if not self.closed.is_set() and not self.failed:
                    self._end(self.rank, f'rank 0, or what had started it, has died ({self.place})', EXIT_LOST)
                continue
            for rank, sign in enumerate(signs):
                silent[rank] = 0 if sign[0] != seen[rank] else silent[rank] + 1
                seen[rank] = sign[0]
            still = 0 if progress != [sign[1:] for sign in signs] else still + 1
            progress = [sign[1:] for sign in signs]
            self._judge(signs, silent, still)

    def _judge(self, signs, silent, still):
        """End this process if another has been silent for too long, or all have stood still."""
        limit = SHORT_SILENCE if self.trouble.is_set() else SILENCE
        self.lost = {rank for rank, beats in enumerate(silent) if beats > limit}
        if self.lost:
            places = '; '.join(f'rank {rank} has died or hangs ({signs[rank][2]})' for rank in sorted(self.lost))
            self._end_together(f'{places}: no sign of life for {limit * BEAT:.0f} s')
        elif self.watching and still * BEAT > self.patience:
            fewest = min(sign[1] for sign in signs)
            late = [f'rank {rank} hangs ({sign[2]})' for rank, sign in enumerate(signs) if sign[1] == fewest]
            behind = '; '.join(late) if len(late) < self.world_size else f'all ranks hang ({signs[self.rank][2]})'
            self._end_together(f'{behind}: no progress for {self.patience:.0f} s')

    def _end_together(self, line):
        line = f'{line}; the run goes on from its last checkpoint when it is started again'
        self._end(*json.loads(self.store.compare_set('failure', '', json.dumps([self.rank, line, EXIT_LOST]))))

    def _end(self, rank, line, code):
        """End this process from the watching thread. What it has not written to disk is lost."""
        self.failed = True
        if self.rank in (0, rank):
            self._say(0 if code == EXIT_LOST else rank, line, code)
        with contextlib.suppress(RuntimeError):
            if self.rank == 0:
                self._until(self._others_gone)
            self.store.add('gone', 1)
        for handler in log.handlers:
            handler.flush()
        os._exit(code)
