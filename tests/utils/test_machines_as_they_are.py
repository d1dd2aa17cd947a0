"""Packages that are missing, terminals that can't show a letter, ports and addresses where no processes meet, and memory that
runs out."""
import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.experiments import KMEANS, LINEAR
from helpers.processes import MAIN, ONE_THREAD

import kmeans
from main import main
from utils.cli import packages
from utils.cli.command import command
from utils.cli.packages import missing_package
from utils.parallel.network import check_url

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / 'pretrain').glob('*.py')), *sorted((ROOT / 'segmentation').glob('*.py')),
           ROOT / 'segmentation' / 'utils' / 'model_zoo' / '__main__.py']

# Packages: Python runs a module of this name first.
BLOCKER = '''
import os, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == os.environ['BLOCKED']:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
'''


# The same where packages are there already
WITHOUT = BLOCKER + '''
import runpy
for name in [name for name in sys.modules if os.environ['BLOCKED'] in name.split('.')]:
    del sys.modules[name]
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
'''


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_every_script_looks_for_packages_first(script):
    first = next(node for node in ast.parse(script.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert ast.unparse(first) == 'import utils.cli.packages'


def test_other_programs_keep_their_hook():
    assert sys.excepthook is not packages._report  # this one has imported the module, and is not a script of the project


@pytest.mark.slow
@pytest.mark.parametrize('package, called, script', [
    ('yaml', 'yaml (pyyaml)', 'main.py'), ('tqdm', 'tqdm', 'main.py'),
    ('cv2', 'cv2 (opencv-python-headless)', 'generate_masks.py'),
    ('numpy', 'numpy', 'convert_voc.py'), ('yaml', 'yaml (pyyaml)', '../segmentation/reproduce.py')])
def test_packages_that_are_missing_at_the_start(tmp_path, package, called, script):
    (tmp_path / 'sitecustomize.py').write_text(BLOCKER)
    done = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True, check=False, cwd=MAIN.parent,
                          env={**ONE_THREAD, 'PYTHONPATH': str(tmp_path), 'BLOCKED': package})
    assert done.returncode == 2, done.stderr
    assert done.stderr == f'error: this script needs the package {called}: pip install -r requirements.txt\n'


@pytest.mark.slow
@pytest.mark.parametrize('package, called, script, base', [
    ('tensorboard', 'tensorboard', 'pretrain/main.py', None), ('torch', 'torch', 'segmentation/kmeans.py', KMEANS),
    ('pydensecrf', 'pydensecrf (pydensecrf2)', 'segmentation/linear_finetune.py', {**LINEAR, 'pretraining': None})])
def test_packages_that_are_missing_later(experiment, tmp_path, package, called, script, base):
    arguments = experiment(**({'base': base} if base else {}))
    (tmp_path / 'without.py').write_text(WITHOUT)
    done = warm.run(tmp_path / 'without.py', ROOT / script, *arguments, out=tmp_path / 'out', BLOCKED=package)
    assert done.returncode == 2, done.printed()
    assert done.printed().splitlines()[-1] == (
        f'error: this script needs the package {called}: pip install -r requirements.txt')
    assert not (tmp_path / 'output').exists()


@pytest.mark.parametrize('error, words', [
    (ModuleNotFoundError(name='google.protobuf'), 'the package google: pip install -r requirements.txt'),
    (ModuleNotFoundError(name='rembg'), 'the package rembg: pip install -r requirements-optional.txt'),
    (ImportError('libGL.so.1: no such file', name='cv2'), 'cannot be imported (libGL.so.1: no such file)'),
    (ModuleNotFoundError(name='utils.nowhere'), None), (ModuleNotFoundError(name='main'), None),
    (ImportError('cannot import name x', name='data'), None), (ModuleNotFoundError(name='_lzma'), None),
    (ImportError('x'), None)])
def test_which_imports_are_of_packages(error, words):
    line = missing_package(error)
    assert line is None if words is None else words in line


# Memory


@pytest.mark.parametrize('error, words', [
    (MemoryError(), 'memory has run out (MemoryError)'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore'), 'memory has run out (CUDA out of memory.'),
    (MemoryError('Caught MemoryError in DataLoader worker process 0.\nTrace\n  x\nMemoryError: 3 TiB'), '(MemoryError: 3 TiB)'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that x'),
     'DataLoader worker (pid 7) is killed by signal: Bus error: memory or the space in /dev/shm has probably run out'),
    (RuntimeError('Too many open files. Communication with the workers'), 'too many open files for the workers')])
def test_memory_that_runs_out(user_error, error, words):
    @command
    def script(_):
        raise error
    assert words in user_error(script)


@pytest.mark.slow
def test_an_allocation_that_is_too_large(user_error):
    @command
    def script(_):
        torch.empty(2 ** 50)
    assert "can't allocate memory" in user_error(script)


# Letters


@pytest.mark.slow
@pytest.mark.parametrize('encoding, shown', [('ascii', r'Stra\xdfe, \u732b'), ('latin-1', 'Straße, \\u732b'),
                                             ('utf-8', 'Straße, 猫')])
def test_letters_that_the_terminal_does_not_have(tmp_path, encoding, shown):
    script = tmp_path / 'script.py'
    script.write_text(f'''
import logging, sys
sys.path.insert(0, {str(MAIN.parent)!r})
from utils.cli.command import command
from utils.errors import UserError

@command
def main(argv=None):
    logging.getLogger('maskcontrast').info('Straße, 猫')
    raise UserError('Straße, 猫')
main()
''', encoding='utf-8')
    done = subprocess.run([sys.executable, script], capture_output=True, check=False,
                          env={**os.environ, 'PYTHONIOENCODING': encoding})
    assert done.returncode == 2 and done.stdout.decode(encoding) == f'{shown}\n'
    assert done.stderr.decode(encoding) == f'error: {shown}\n'


@pytest.mark.slow
def test_class_names_of_all_letters(experiment, shapes_root, tmp_path, monkeypatch):
    root = tmp_path / 'datasets'
    root.mkdir()
    (root / 'Shapes').mkdir()
    for path in (shapes_root / 'Shapes').iterdir():
        (root / 'Shapes' / path.name).symlink_to(path)
    (root / 'Shapes' / 'classes.txt').unlink()
    names = ['background', 'Straße', '猫', *'abcdef']
    (root / 'Shapes' / 'classes.txt').write_text('\n'.join(names), encoding='utf-8')
    stream = open(tmp_path / 'out', 'w', encoding='ascii')  # noqa: SIM115 - closed below
    monkeypatch.setattr(sys, 'stdout', stream)
    kmeans.main([*experiment(base=KMEANS, db_root=root), '--num_seeds', '1', '--num_visualizations', '1'])
    stream.close()
    text = (tmp_path / 'out').read_text('ascii')
    assert r'IoU class Stra\xdfe is ' in text and r'IoU class \u732b is ' in text
    assert 'IoU class 猫 is ' in (tmp_path / 'output' / 'small' / 'log_file.txt').read_text(encoding='utf-8')


# Meeting points


@pytest.mark.parametrize('url', ['tcp://h:1', 'tcp://10.0.0.1:29500', 'tcp://[::1]:65535', 'env://', 'file:///tmp/meeting',
                                 'tcp://node-1.cluster_a.local:29500/'])
def test_meeting_points(url):
    assert check_url(url) == url


@pytest.mark.parametrize('url, form', [
    ('localhost:29501', 'tcp://localhost:29501'), ('node-1', 'tcp://node-1:29500'), ('tcp://h', 'tcp://h:29500'),
    ('http://h:80', 'tcp://h:80'), ('tcp:h:5', 'tcp://h:5'), ('tcp:/h:5', 'tcp://h:5'), ('tcp://h:65536', 'tcp://h:29500'),
    ('tcp://h:0', 'tcp://h:29500'), ('tcp://h:port', 'tcp://h:29500'), ('[::1]:5', 'tcp://[::1]:5'), ('', 'tcp://HOST:29500'),
    ('tcp://', 'tcp://HOST:29500'), ('tcp://:29500', 'tcp://HOST:29500'), ('::1', 'tcp://HOST:29500'),
    ('env', 'env://'), ('file://', 'tcp://HOST:PORT'), ('TCP://h:5', 'tcp://h:5'), ('tcp://a b:5', 'tcp://HOST:29500')])
def test_the_right_form_of_a_meeting_point_is_shown(experiment, user_error, url, form):
    line = user_error(lambda: main([*experiment(), '--world-size', '2', '--rank', '0', f'--dist-url={url}']))
    assert line.startswith('error: argument --dist-url: must be tcp://HOST:PORT') and form in line and f"not '{url}'" in line


@pytest.mark.slow
@pytest.mark.parametrize('by', ['url', 'environment'])
def test_a_port_in_use(experiment, tmp_path, by):
    with socket.socket() as other:
        other.bind(('0.0.0.0', 0))
        other.listen()
        port = other.getsockname()[1]
        flags = ['--dist-url', f'tcp://localhost:{port}'] if by == 'url' else []
        done = warm.run(MAIN, *experiment(), '--world-size', '2', '--rank', '0', *flags, out=tmp_path / 'out',
                        MASTER_ADDR='localhost', MASTER_PORT=str(port))
    lines = [line for line in done.printed().splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and len(lines) == 1, done.printed()
    assert lines[0].startswith(f'error: port {port}, where') and 'is in use' in lines[0] and 'use another port' in lines[0]
