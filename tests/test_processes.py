"""Workers of a main process that was killed end, whatever they wait for; a reader of the output who leaves stops nothing."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import KMEANS
from test_main import MAIN

ROOT = Path(__file__).resolve().parents[1]
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
from data.batches import make_loader
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


@pytest.mark.parametrize('script', [CRF, LOADER], ids=['CRF', 'DataLoader'])
def test_workers_end_with_a_killed_main_process(shapes_root, tmp_path, script):
    path = tmp_path / 'hanging.py'
    path.write_text(script)
    process = subprocess.Popen([sys.executable, path, shapes_root / 'Shapes'], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'PYTHONPATH': str(ROOT / 'segmentation')})
    try:
        workers = [int(word) for word in process.stdout.readline().split()]
        time.sleep(1)  # their queue is full
    finally:
        process.kill()
        process.wait()
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


def test_the_reader_of_the_output_goes_away(experiment, tmp_path):
    process = subprocess.Popen([sys.executable, MAIN.parents[1] / 'segmentation' / 'kmeans.py', *experiment(base=KMEANS)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 0 and 'Traceback' not in errors and 'BrokenPipe' not in errors
    folder = tmp_path / 'output' / 'small'
    assert (folder / 'results.json').is_file() and 'Average mIoU is' in (folder / 'log_file.txt').read_text()
