"""GPUs that look there and aren't: what torch.cuda answers on such machines is put in the place of this machine's answers."""
import os
from types import SimpleNamespace

import pytest
import torch
from helpers.checks import refusal
from helpers.processes import MAIN, Ranks

from main import main
from utils.training import gpus
from utils.training.device import be_deterministic, choose_device, time_convolutions
from utils.training.gpus import shared_gpus
from utils.training.precision import choose_precision

WHEEL = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120', 'compute_120']  # of PyTorch for CUDA 13


@pytest.fixture
def machine(monkeypatch):
    """machine(count, available, capability) answers as a machine with `count` GPUs."""
    def answer(count, available, capability=(8, 0)):
        for name, value in (('device_count', count), ('is_available', available), ('get_device_capability', capability),
                            ('get_arch_list', WHEEL), ('get_device_name', 'Tesla')):
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        monkeypatch.setattr(torch.version, 'cuda', '13.0')
    return answer


@pytest.mark.parametrize('device', ['auto', 'cuda'])
def test_a_driver_that_is_too_old(machine, monkeypatch, tmp_path, device):
    """NVML counts the GPUs, and nothing can be computed on them: no silent training on the CPU."""
    machine(4, available=False)
    driver = tmp_path / 'version'
    driver.write_text('NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\n')
    monkeypatch.setattr(gpus, 'DRIVER_FILE', driver)
    line = refusal(choose_device, device)
    assert '4 GPUs' in line and 'driver is 470.82.01' in line and '580.65.06 or newer' in line and '--device cpu' in line
    driver.unlink()
    monkeypatch.setattr(torch._C, '_cuda_getDriverVersion', lambda: 11040, raising=False)
    assert 'one for CUDA 11.4' in refusal(choose_device, device)
    assert choose_device('cpu').type == 'cpu'


def test_main_starts_no_processes_for_gpus_that_can_not_be_used(machine, experiment, user_error, monkeypatch):
    machine(2, available=False)
    arguments = experiment()
    arguments[-1] = 'auto'
    for name in ('LOCAL_RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert '2 GPUs that PyTorch' in user_error(lambda: main(arguments))


@pytest.mark.parametrize('capability, words', [
    ((7, 0), 'whl/cu126'), ((6, 1), 'whl/cu126'), ((6, 0), 'capability 6.0'), ((8, 0), None), ((8, 9), None), ((7, 5), None),
    ((12, 1), None), ((13, 0), None)])
def test_gpus_without_kernels(machine, capability, words):
    """sm_86 runs on 8.9, and compute_120 is compiled for what comes after; V100, P100 and GTX 10 have nothing."""
    machine(1, available=True, capability=capability)
    if words is None:
        assert choose_device('auto').type == 'cuda'
    else:
        line = refusal(choose_device, 'auto')
        assert words in line and 'Tesla' in line and '--device cpu' in line


def test_a_machine_without_gpus(machine):
    machine(0, available=False)
    assert choose_device('auto').type == 'cpu'
    assert 'does not find this device' in refusal(choose_device, 'cuda')


def test_two_processes_on_one_gpu_by_hand():
    assert shared_gpus([('a', 'x'), ('a', 'y'), ('b', 'x')]) == {}
    assert shared_gpus([('a', 'x'), ('b', 'x'), ('a', 'x'), ('b', None), ('b', None)]) == {('a', 'x'): [0, 2]}


# Two processes that each see one GPU, the same or another one, and compute on it as far as the start goes
JOIN = f'''
import argparse, os, sys
from types import SimpleNamespace
sys.path.insert(0, {str(MAIN.parent)!r})
import torch
uuids = sys.argv[1].split(',')
torch.cuda.device_count = lambda: 1
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (8, 0)
torch.cuda.get_arch_list = lambda: ['sm_80']
torch.cuda.set_device = lambda device: print('device', device, flush=True)
torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=uuids[int(os.environ['RANK'])])
from utils.cli.command import parallel_command
from utils.training.device import join_processes

@parallel_command
def main(argv=None):
    join_processes(argparse.Namespace(device='auto', deterministic=False, dist_timeout=60, share_gpus='share' in sys.argv),
                   backend='gloo')
main()
'''


@pytest.mark.slow
@pytest.mark.parametrize('uuids, more, code', [('x,x', [], 2), ('x,y', [], 0), ('x,x', ['share'], 0)])
def test_processes_that_see_one_gpu_each(tmp_path, uuids, more, code):
    """As SLURM gives each task its own: that is fine where they are different ones, or where sharing is asked for."""
    script = tmp_path / 'join.py'
    script.write_text(JOIN)
    ranks = Ranks(script, [uuids, *more], tmp_path / 'logs', LOCAL_RANK=None, LOCAL_WORLD_SIZE=None)
    assert ranks.wait() == [code, code], ranks.printed()
    text = ranks.printed()
    assert text.count('device cuda:0') == 2
    assert text.count('ranks 0, 1 are on one GPU') == (code == 2)


def test_float32_is_float32(monkeypatch):
    """Neither convolutions nor matrix products round to TF32, whatever the environment or other code has asked for."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision('medium')
    for amp in ('none', 'bf16'):
        choose_precision(amp, torch.device('cpu'))
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == 'highest'


def test_convolutions_are_timed_on_gpus_unless_runs_must_repeat(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    time_convolutions(torch.device('cpu'))
    assert not torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    try:
        time_convolutions(torch.device('cuda'))
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
    time_convolutions(torch.device('cuda'))
    assert torch.backends.cudnn.benchmark


def test_deterministic_algorithms(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    try:
        be_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    finally:
        torch.use_deterministic_algorithms(False)


def test_uuids_that_pytorch_does_not_tell(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: SimpleNamespace())
    assert gpus.gpu_uuid(torch.device('cuda', 0)) is None
