"""Workers of a main process that was killed end, whatever they wait for; a reader of the output who leaves stops nothing; a
process that ends says why once, and is not disturbed.
"""
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import warm
from helpers.experiments import KMEANS
from helpers.processes import wait_for
from torch.distributed import HashStore

from utils.cli.command import command
from utils.errors import UserError
from utils.parallel import preemption
from utils.parallel.watchdog import Watchdog
from utils.parallel.workers import hide_lost_connections

ROOT = Path(__file__).resolve().parents[2]
CRF = '''
import sys, time, torch
from data.dataset import SegmentationDataset
from evaluation.crf import CrfPool
if __name__ == '__main__':
    pool = CrfPool(SegmentationDataset(sys.argv[1], 'val'), 2)
    for job in [pool.submit(0, torch.zeros(3, 4, 4), (32, 32)) for _ in range(4)]:
        pool.result(job)
    print(*pool.pool._processes, flush=True)
    time.sleep(600)
'''
LOADER = '''
import sys, time, numpy, torch
from data.loaders import make_loader
class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return {'id': str(index), 'labels': numpy.zeros(2 ** 20, numpy.uint8)}  # more than a pipe holds
if __name__ == '__main__':
    batches = iter(make_loader(Large(), 2, torch.device('cpu'), batch_size=2))
    next(batches)
    print(*[worker.pid for worker in batches._workers], flush=True)
    time.sleep(600)
'''


@pytest.mark.slow
@pytest.mark.parametrize('script', [CRF, LOADER], ids=['CRF', 'DataLoader'])
def test_workers_end_with_a_killed_main_process(shapes_root, tmp_path, script):
    path = tmp_path / 'hanging.py'
    path.write_text(script)
    process = warm.start(path, shapes_root / 'Shapes', out=tmp_path / 'out', PYTHONPATH=str(ROOT / 'segmentation'))
    try:
        wait_for(lambda: process.printed().endswith('\n'))
        workers = [int(word) for word in process.printed().split()]
        time.sleep(1)  # their queue is full
    finally:
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, 'orphans'
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet doesn't."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.slow
def test_the_reader_of_the_output_goes_away(experiment, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    process = warm.start(ROOT / 'segmentation' / 'kmeans.py', *experiment(base=KMEANS), out=tmp_path / 'pipe',
                         err=tmp_path / 'err')
    assert select.select([reader], [], [], 120)[0] and os.read(reader, 1 << 16)
    os.close(reader)  # as `| head -1` does
    assert process.wait() == 0 and 'Traceback' not in process.errors() and 'BrokenPipe' not in process.errors()
    folder = tmp_path / 'output' / 'small'
    assert (folder / 'results.json').is_file() and 'Average mIoU is' in (folder / 'log_file.txt').read_text()


@pytest.mark.parametrize('end, code', [(UserError('no such file'), 2), (preemption.Preempted('SIGTERM'), 75),
                                       (preemption.Preempted('SIGTERM', agreed=True), 75)])
def test_a_signal_that_comes_again_does_not_disturb_the_end(end, code, capsys):
    """As torchrun sends it to those that still run, and a cluster to torchrun and to them."""
    class Again(logging.Handler):
        def emit(self, _):
            os.kill(os.getpid(), signal.SIGTERM)

    @command
    def main(_):
        raise end

    log, again = logging.getLogger('maskcontrast'), Again()
    log.addHandler(again)
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        log.removeHandler(again)
    assert stop.value.code == code and ''.join(capsys.readouterr()).count('\n') == 1


def test_why_a_run_ends_is_said_once(caplog):
    """Though a process has its own reason while it ends for another's."""
    peers = Watchdog(HashStore(), 0, 1, patience=300)
    assert [peers.fail(line, code) for line, code in (('the first', 2), ('the second', 1))] == [2, 2]
    peers.close()
    assert [record.message for record in caplog.records] == ['error: the first']


def test_lost_connections_are_hidden(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    hide_lost_connections()
    sys.excepthook(ConnectionResetError, ConnectionResetError('by peer'), None)
    assert not capsys.readouterr().err
    sys.excepthook(ValueError, ValueError('wrong'), None)
    assert 'ValueError: wrong' in capsys.readouterr().err
