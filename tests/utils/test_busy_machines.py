"""Containers and busy machines: little shared memory, quotas, workers that are killed, and what stops in spite of them."""
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from helpers import warm
from helpers.checks import refusal
from helpers.experiments import KMEANS, LINEAR
from helpers.processes import MAIN, ONE_THREAD, wait_for

from data.loaders import _check_shared_memory
from utils.parallel import workers

ROOT = Path(__file__).resolve().parents[2]
CPU_GROUPS = Path('/sys/fs/cgroup/cpu')
# A process that gets a /dev/shm of its own, as in a container
CONTAINER = '''
import ctypes, os, runpy, subprocess, sys
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
subprocess.run(f'mount --make-rprivate / && mount -t tmpfs -o size={sys.argv[1]} tmpfs /dev/shm', shell=True, check=True)
del sys.argv[:2]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
'''
needs_mounts = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which('unshare'), reason='mounting needs root and unshare')


@pytest.fixture
def with_shared_memory(tmp_path):
    """with_shared_memory(size, script, arguments) runs a script where /dev/shm has this size."""
    def run(size, *words):
        (tmp_path / 'container.py').write_text(CONTAINER)
        return warm.run(tmp_path / 'container.py', size, *words, out=tmp_path / 'out', err=tmp_path / 'err')
    return run


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize('script, base, changes, size', [
    ('pretrain/main.py', None, {'num_workers': 4, 'transformation_kwargs.crop_size': 224}, '8m'),
    ('segmentation/linear_finetune.py', LINEAR, {'num_workers': 4, 'pretraining': None,
                                                 'transformation_kwargs': {'resolution': [512, 512]}}, '8m'),
    ('segmentation/kmeans.py', KMEANS, {'num_workers': 2, 'transformation_kwargs': {'resolution': [512, 512]}}, '16m')])
def test_too_little_shared_memory_is_said_before_the_first_batch(with_shared_memory, experiment, tmp_path, script, base,
                                                                 changes, size):
    arguments = experiment(changes, **({'base': base} if base else {}))
    process = with_shared_memory(size, ROOT / script, *arguments)
    line, = [line for line in process.errors().splitlines() if line.startswith('error: ')]
    assert process.returncode == 2 and line.startswith('error: /dev/shm has ')
    assert '--shm-size' in line and 'num_workers' in line
    assert not (tmp_path / 'output' / 'small' / 'checkpoint.pth.tar').exists()


def test_the_need_is_that_of_all_workers_and_processes(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '1')
    free = shutil.disk_usage(tmp_path).free
    _check_shared_memory(free // 9, 3, tmp_path)  # two batches of each are under way, and two more
    line = refusal(_check_shared_memory, free // 7, 3, tmp_path)
    assert line.startswith(f'{tmp_path} has ') and 'num_workers: 3' in line
    _check_shared_memory(free, 0, tmp_path)
    _check_shared_memory(free, 4, tmp_path / 'none')


# Batches that grow: what a check of the first can't foresee. The size of an item is not known.
GROWING = f'''
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
from utils.cli.command import command

@command
def main(argv=None):
    import torch
    from data.loaders import make_loader

    class Items:
        def __len__(self):
            return 40
        def __getitem__(self, index):
            return {{'id': str(index), 'image': torch.ones(2 ** 20 * (1 if index < 4 else 40), dtype=torch.uint8)}}
    for batch in make_loader(Items(), 2, torch.device('cpu'), batch_size=2):
        print(batch['id'], flush=True)
main()
'''
# A worker that the kernel kills, as when memory runs out
KILLED = GROWING.replace('def __getitem__(self, index):', '''def __getitem__(self, index):
            import os, signal
            if index == 6:
                os.kill(os.getpid(), signal.SIGKILL)''').replace('2 ** 20 * (1 if index < 4 else 40)', '10')


def only_line(process):
    """The one line about its error of a process that ended with exit code 2, and without a traceback."""
    lines = [line for line in process.errors().splitlines() if line.startswith('error: ')]
    assert process.returncode == 2 and len(lines) == 1 and 'Traceback' not in process.errors(), process.errors()
    return lines[0]


@pytest.mark.slow
@needs_mounts
def test_a_lost_batch_ends_the_run(with_shared_memory, tmp_path):
    script = tmp_path / 'growing.py'
    script.write_text(GROWING)
    line = only_line(with_shared_memory('16m', script))
    assert 'DataLoader worker' in line and '--shm-size' in line


@pytest.mark.slow
def test_a_killed_worker_is_one_line(tmp_path):
    script = tmp_path / 'killed.py'
    script.write_text(KILLED)
    line = only_line(warm.run(script, out=tmp_path / 'out', err=tmp_path / 'err'))
    assert 'has probably run out' in line and 'num_workers' in line


# A training whose requests to stop wait for a second at most
IMPATIENT = f'''
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
from main import main
from utils.parallel import preemption
if __name__ == '__main__':
    preemption.PATIENCE = 1
    main(sys.argv[1:])
'''


@pytest.mark.slow
def test_sigterm_works_while_a_batch_never_comes(experiment, shapes_root, tmp_path):
    """An image is a pipe that nobody writes to: nobody gets to look at the request."""
    root = shutil.copytree(shapes_root, tmp_path / 'datasets')
    for image in (root / 'Shapes' / 'images').iterdir():
        if image.name.startswith('train'):
            image.unlink()
            os.mkfifo(image)
    script = tmp_path / 'impatient.py'
    script.write_text(IMPATIENT)
    process = warm.start(script, *experiment({'num_workers': 2}, db_root=root), '--amp', 'none', out=tmp_path / 'out')
    log = tmp_path / 'output' / 'small' / 'log_file.txt'
    try:
        wait_for(lambda: log.exists() and 'Training on' in log.read_text())
        time.sleep(1)  # it waits for its first batch
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75 and 'Traceback' not in process.printed()
    finally:
        process.kill()


# A run whose end waits forever, as for a worker that hangs: in its own clean-up, or when all is decided
STUCK = f'''
import sys, threading
sys.path.insert(0, {str(MAIN.parent)!r})
import utils.cli.command
from utils.errors import UserError
from utils.parallel import preemption
preemption.PATIENCE, preemption.ECHO = map(float, sys.argv[1:3])

def wait(*_):
    print('waiting', flush=True)
    threading.Event().wait(600)

@utils.cli.command.command
def main(argv=None):
    if sys.argv[3] == 'decided':
        utils.cli.command.log_error = wait
        raise UserError('a mistake')
    try:
        wait()
    finally:
        wait()
main([])
'''


@pytest.mark.slow
@pytest.mark.parametrize('patience, echo', [(1, 100), (100, 0.2)])
@pytest.mark.parametrize('where, lines', [('clean-up', 2), ('decided', 1)])
def test_sigterm_works_while_the_end_itself_waits(tmp_path, patience, echo, where, lines):
    script = tmp_path / 'stuck.py'
    script.write_text(STUCK)
    process = subprocess.Popen([sys.executable, script, str(patience), str(echo), where], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ONE_THREAD)
    try:
        assert process.stdout.readline() == 'waiting\n'
        process.send_signal(signal.SIGTERM)
        if lines == 2:
            assert process.stdout.readline() == 'waiting\n'
        if echo < 1:
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    finally:
        process.kill()
        process.communicate()


# Threads


ENVIRONMENT = f'''
import os, sys
sys.path.insert(0, {str(MAIN.parent)!r})
from utils.cli.command import command

@command
def main(argv=None):
    assert 'torch' not in sys.modules
    print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('GOMP_SPINCOUNT'), flush=True)
    if 'torch' in sys.argv:
        import torch
        print(torch.get_num_threads())
main()
'''


def threads_of(tmp_path, *words, before=(), **env):
    script = tmp_path / 'threads.py'
    script.write_text(ENVIRONMENT)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('OMP_', 'GOMP_'))}
    return subprocess.run([*before, sys.executable, script, *words], env={**clean, **env}, capture_output=True, text=True,
                          check=True).stdout.split()


def test_waiting_threads_sleep_unless_the_user_said_otherwise(tmp_path):
    cores = str(len(os.sched_getaffinity(0)))
    assert threads_of(tmp_path) == [cores, '1000']
    assert threads_of(tmp_path, GOMP_SPINCOUNT='7', OMP_NUM_THREADS='3') == ['3', '7']
    assert threads_of(tmp_path, OMP_WAIT_POLICY='active') == [cores, 'None']


def test_threads_follow_the_affinity(tmp_path):
    assert threads_of(tmp_path, before=('taskset', '-c', str(min(os.sched_getaffinity(0)))))[0] == '1'


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access(CPU_GROUPS, os.W_OK) or not (CPU_GROUPS / 'cpu.cfs_quota_us').exists() or len(os.sched_getaffinity(0)) < 2,
    reason='needs a control group for CPUs that may be written, and two cores')
def test_threads_follow_the_quota_of_a_control_group(tmp_path):
    """As `docker run --cpus=1` sets it, on a machine with more cores."""
    group = CPU_GROUPS / f'mc_{uuid.uuid4().hex[:8]}'
    group.mkdir()
    try:
        (group / 'cpu.cfs_quota_us').write_text('100000')
        join = ['sh', '-c', f'echo $$ > {group}/cgroup.procs && exec "$@"', 'sh']
        assert threads_of(tmp_path, 'torch', before=join) == ['1', '1000', '1']
    finally:
        group.rmdir()


@pytest.mark.parametrize('files, own, quota', [
    ({'docker/x/cpu.max': '250000 100000', 'cpu.max': 'max 100000'}, '0::/docker/x', 2.5),
    ({'docker/cpu.max': '50000 100000', 'docker/x/cpu.max': 'max 100000'}, '0::/docker/x', 0.5),
    ({'cpu.max': '100000 100000'}, '0::/', 1.0), ({'cpu.max': 'nonsense'}, '0::/', None),
    ({'cpu,cpuacct/x/cpu.cfs_quota_us': '300000', 'cpu,cpuacct/x/cpu.cfs_period_us': '100000'}, '4:cpu,cpuacct:/x', 3.0),
    ({'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, '4:cpu:/', None),
    ({'memory/cpu.max': '1 100000'}, '4:memory:/', None)])
def test_quotas_of_both_kinds_of_control_groups(tmp_path, files, own, quota):
    for name, content in files.items():
        (tmp_path / 'fs' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'fs' / name).write_text(content)
    (tmp_path / 'own').write_text(f'{own}\n')
    found = list(workers._quotas(tmp_path / 'fs', tmp_path / 'own'))
    assert (min(found) if found else None) == quota
