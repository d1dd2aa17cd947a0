"""The rooms of the script trees: who imports whom, what the twins hold, and what a command loads before it has to."""
import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from helpers.experiments import KMEANS, LINEAR, PRETRAINING, TOYS_KMEANS, TOYS_RETRIEVAL

ROOT = Path(__file__).resolve().parents[2]
TREES = ('pretrain', 'segmentation')
TWINS = ('data', 'models', 'utils')
COMMANDS = ('data.check', 'utils.model_zoo.__main__')  # of both trees, run by `python -m`
UPWARDS = {'utils.config.create': {'data.util.mypath', 'models.backbones'}}
SCRIPTS = sorted(path.relative_to(ROOT) for tree in TREES for path in (ROOT / tree).glob('*.py'))
HEAVY = ('torch', 'torchvision', 'torch._dynamo')  # nobody loads the others without the first, but they are what costs


def modules(tree):
    """Path of each module of a script tree by its name."""
    found = {}
    for path in (ROOT / tree).rglob('*.py'):
        parts = path.relative_to(ROOT / tree).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def imported(path, known, at_top=False):
    """Names of the modules in `known` that a file imports; at_top: leave out imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if at_top:
        inside = {id(node) for function in nodes if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
                  for node in ast.walk(function)}
        nodes = [node for node in nodes if id(node) not in inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                if name in known or node.module in known:
                    yield name if name in known else node.module


def folder_of(name, path):
    return name if path.name == '__init__.py' else name.rpartition('.')[0]


@pytest.mark.parametrize('tree', TREES)
def test_imports_go_one_way(tree):
    known = modules(tree)
    for name, path in known.items():
        room = name.partition('.')[0]
        for other in imported(path, known, at_top=True):
            target = other.partition('.')[0]
            allowed = {'utils': ('utils',), 'models': ('models', 'utils'), 'data': ('data', 'utils')}.get(room)
            assert allowed is None or target in allowed or other == 'data.util.mypath', f'{name} imports {other}'
        if room == 'utils':  # also inside functions, where only the configuration asks the registry of backbones
            above = {other for other in imported(path, known) if other.partition('.')[0] in ('data', 'models')}
            assert above <= UPWARDS.get(name, set()), f'{name} imports {above}'


@pytest.mark.parametrize('tree', TREES)
def test_no_cycle_between_folders(tree):
    known = modules(tree)
    needs = defaultdict(set)
    for name, path in known.items():
        for other in imported(path, known, at_top=True):
            source, target = folder_of(name, path), folder_of(other, known[other])
            if source != target:
                needs[source].add(target)
    done, on_the_way = set(), []

    def visit(folder):
        assert folder not in on_the_way, f'cycle: {" -> ".join([*on_the_way, folder])}'
        if folder not in done:
            on_the_way.append(folder)
            for other in sorted(needs[folder]):
                visit(other)
            done.add(on_the_way.pop())
    for folder in sorted(needs):
        visit(folder)
    assert {'utils.parallel', 'utils.training'} <= done


@pytest.mark.parametrize('tree', TREES)
def test_both_trees_use_every_twin(tree):
    known = modules(tree)
    to_visit = [name for name in known if name.partition('.')[0] not in TWINS] + list(COMMANDS)
    reached = set()
    while to_visit:
        name = to_visit.pop()
        if name not in reached:
            reached.add(name)
            parents = ['.'.join(name.split('.')[:end]) for end in range(1, name.count('.') + 1)]
            to_visit += [*imported(known[name], known), *(parent for parent in parents if parent in known)]
    unused = {name for name in known if name.partition('.')[0] in TWINS} - reached
    assert not unused, f'{unused} are twins, but {tree}/ does not use them: move them to the tree that does'


def test_files_are_short():
    long = {str(path.relative_to(ROOT)): lines for tree in TREES for path in (ROOT / tree).rglob('*.py')
            if (lines := len(path.read_text().splitlines())) > 300}
    assert not long


def loaded_by(script, arguments):
    """Which of HEAVY a command has loaded when it ends, and its exit code."""
    path = Path(*script.parts[1:])
    code = (f'import json, runpy, sys\nsys.argv = {[script.name, *arguments]}\nsys.path.insert(0, ".")\n'
            f'try:\n    runpy.run_path({str(path)!r}, run_name="__main__")\nexcept SystemExit as stop:\n'
            f'    print([[name for name in {HEAVY} if name in sys.modules], stop.code])\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT / script.parts[0], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('script', [*SCRIPTS, Path('pretrain/data/check.py'), Path('segmentation/utils/model_zoo/__main__.py')],
                         ids=str)
def test_help_loads_nothing_heavy(script):
    assert loaded_by(script, ['--help']) == [[], 0]


@pytest.mark.parametrize('changes', [{'bakcbone': 'resnet18'}, {'backbone': 'resnet19'}], ids=['key', 'backbone'])
@pytest.mark.parametrize('script, base', [
    ('pretrain/main.py', PRETRAINING), ('segmentation/kmeans.py', KMEANS), ('segmentation/retrieval.py', TOYS_RETRIEVAL),
    ('segmentation/knn.py', TOYS_KMEANS), ('segmentation/finetune.py', LINEAR),
    ('segmentation/linear_finetune.py', LINEAR), ('segmentation/eval.py', LINEAR)])
def test_a_mistake_loads_nothing_heavy(experiment, script, base, changes):
    more = ['--state-dict', 'none'] if script.endswith('eval.py') else []
    assert loaded_by(Path(script), [*experiment(changes, base=base), *more]) == [[], 2]
