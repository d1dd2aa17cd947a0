"""Each script tree works when it is copied out alone, in a process of its own."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.experiments import KMEANS

ROOT = Path(__file__).resolve().parents[2]
READ_CONFIGS = '''
import json, sys
from utils.config import create_config
print(json.dumps({path: create_config('configs/env.yml', path) for path in sys.argv[1:]}))
'''


@pytest.fixture
def tree(tmp_path):
    """A copy of one script tree, away from the repository."""
    def copy(name):
        return shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


def run(folder, *words):
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kmeans_of_a_tree_copied_out_alone(tree, experiment, tmp_path):
    printed = run(tree('segmentation'), 'kmeans.py', *experiment(base=KMEANS), '--num_seeds', '2')
    assert printed.splitlines()[-1].startswith('Average mIoU is ')
    results = json.loads((tmp_path / 'output' / 'small' / 'results.json').read_text())
    assert len(results['mIoU_per_seed']) == 2 and len(results['IoU']) == 9


@pytest.mark.slow
def test_main_of_a_tree_copied_out_alone(tree):
    assert '--config_exp' in run(tree('pretrain'), 'main.py', '--help')


@pytest.mark.parametrize('name', ['pretrain', 'segmentation'])
def test_every_shipped_configuration_is_valid(tree, name):
    folder = tree(name)
    paths = [str(path.relative_to(folder)) for path in folder.glob('configs/**/*.yml') if path.name != 'env.yml']
    configs = json.loads(run(folder, '-c', READ_CONFIGS, *paths))
    assert len(configs) == len(paths) >= 2
    for path, p in configs.items():
        assert p['root_dir'] == str(folder.parent / 'output') and p['db_root'] == str(folder.parent / 'datasets'), path


def test_evaluations_read_the_checkpoint_that_pretraining_leaves():
    for kind in ('supervised', 'unsupervised'):
        file = ROOT / 'segmentation' / 'configs' / 'kmeans' / f'kmeans_VOCSegmentation_{kind}_saliency.yml'
        name = f'VOCSegmentation_{kind}_saliency_model'
        assert (ROOT / 'pretrain' / 'configs' / f'{name}.yml').is_file()
        assert yaml.safe_load(file.read_text())['pretraining'] == f'../output/{name}/checkpoint.pth.tar'
