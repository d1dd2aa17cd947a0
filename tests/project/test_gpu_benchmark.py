"""`make gpu` on a machine without a GPU: what runs, what is left out, and that no section ends another."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu import __main__ as command
from gpu import golden
from gpu.sections import SECTIONS, Section

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
# Runs the sections that it is given where only the packages that they may need can be imported.
FEW_PACKAGES = """
import runpy, sys
from importlib.machinery import PathFinder
class Few:
    @staticmethod
    def find_spec(name, path=None, target=None):
        absent = 'tqdm easydict termcolor tensorboard scipy sklearn skimage matplotlib pydensecrf gdown requests'.split()
        return None if name.partition('.')[0] in absent else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Few
sys.path.insert(0, '')
for name in sys.argv[1:]:
    sys.argv = ['gpu.section', name, '--device', 'cpu', '--small']
    runpy.run_module('gpu.section', run_name='__main__', alter_sys=True)
"""


def test_every_section_is_a_module():
    for section in SECTIONS:
        assert 'def run(settings)' in (BENCHMARKS / 'gpu' / f'{section.name}.py').read_text()
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


@pytest.mark.slow
def test_no_section_ends_another(tmp_path, capfd, monkeypatch):
    """One that fails, one that takes too long, one for a GPU, and one that runs; the table and the JSON have them all."""
    monkeypatch.setattr(command, 'SECTIONS', (
        Section('no_such_section', 'one that fails', 60), Section('evaluations', 'one that takes long', 1.5),
        Section('memory', 'one for a GPU', 60), Section('environment', 'the machine', 60)))
    code = command.main(['--device', 'cpu', '--output', str(tmp_path)])
    assert code == 1
    results = json.loads((tmp_path / 'results.json').read_text())
    rows = {row['what']: row for row in results['rows']}
    assert rows['one that fails']['ok'] is False and 'invalid choice' in rows['one that fails']['detail']
    assert rows['one that takes long'] == {'section': 'evaluations', 'what': 'one that takes long', 'ok': False,
                                           'detail': 'cut off after 2 s'}
    assert 'needs a GPU' in rows['a step at several batch sizes']['skipped']
    assert rows['PyTorch']['value'] == torch.__version__
    table = (tmp_path / 'table.md').read_text()
    assert len(table.splitlines()) == 2 + len(results['rows'])
    assert '| memory | a step at several batch sizes | skipped |' in table
    assert 'of which 2 failed' in capfd.readouterr().out


@pytest.mark.slow
def test_time_that_is_over(tmp_path):
    assert command.main(['--minutes', '0', '--output', str(tmp_path), '--only', 'golden', 'losses']) == 0
    assert (tmp_path / 'table.md').read_text().count('| skipped | the 0 minutes are over |') == 2


@pytest.mark.slow
def test_sections_in_small_with_few_packages():
    expected = ['gathered losses equal the plain ones', 'gathered losses, not compiled', 'by taps, rate 2', 'fastest form']
    done = subprocess.run([sys.executable, '-c', FEW_PACKAGES, 'losses', 'convolutions'], check=False, capture_output=True,
                          text=True, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    rows = {row['what']: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(expected) <= set(rows) and all(row.get('ok', True) for row in rows.values())
    assert all(row['value'] > 0 for row in rows.values() if row.get('unit') == 'ms')


@pytest.mark.slow
def test_golden_figures(capsys):
    got = golden.figures('resnet18', torch.device('cpu'), 'gathered')
    for name, value in golden.FIGURES['resnet18'].items():
        assert got[name] == pytest.approx(value, rel=1e-3 if name == 'grad_norm' else 1e-5)
