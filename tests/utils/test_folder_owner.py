"""Two scripts whose experiment files have one name want the same folder: it stays that of the first."""
import itertools
import json

import pytest
import yaml
from helpers.checks import refusal
from helpers.experiments import KMEANS, LINEAR, PRETRAINING, TOYS_RETRIEVAL
from helpers.photographs import contents

import eval as evaluation_script
import kmeans
import linear_finetune
import main as pretraining
import own_clusters
import own_images
import retrieval
from utils.config.keys import SCRIPTS
from utils.config.snapshot import folder_owner, require_own_folder

MAINS = {'main.py': (pretraining.main, PRETRAINING), 'linear_finetune.py': (linear_finetune.main, LINEAR),
         'eval.py': (evaluation_script.main, LINEAR), 'kmeans.py': (kmeans.main, KMEANS),
         'retrieval.py': (retrieval.main, TOYS_RETRIEVAL)}


@pytest.mark.parametrize('owner, script', list(itertools.product(SCRIPTS, SCRIPTS)))
def test_all_pairs(tmp_path, owner, script):
    folder = tmp_path / 'output' / 'small'
    folder.mkdir(parents=True)
    (folder / 'config.yml').write_text(yaml.safe_dump({'name': 'small', 'script': owner}))
    trained = {'linear_finetune.py', 'finetune.py'}
    if owner == script or 'eval.py' in (owner, script) and trained & {owner, script}:  # eval.py writes below that folder
        require_own_folder(folder, script, 'small.yml')
    else:
        line = refusal(require_own_folder, folder, script, 'small.yml')
        assert line.startswith(f'{folder}: this folder belongs to {owner}, and small.yml is for {script}: ')


def test_how_an_owner_is_known(tmp_path):
    assert folder_owner(tmp_path / 'none') is None and folder_owner(tmp_path) is None
    (tmp_path / 'eval' / 'best_model.pth.tar').mkdir(parents=True)
    assert folder_owner(tmp_path) == 'eval.py'
    (tmp_path / 'results.json').write_text(json.dumps({'script': 'kmeans.py'}))
    assert folder_owner(tmp_path) == 'kmeans.py'
    for other in ('', '- a', 'script: 3', 'a: [', 'name: x'):  # not what write_config leaves
        (tmp_path / 'config.yml').write_text(other)
        assert folder_owner(tmp_path) == 'kmeans.py'
    (tmp_path / 'config.yml').write_text('script: retrieval.py')
    assert folder_owner(tmp_path) == 'retrieval.py'


@pytest.mark.slow
@pytest.mark.parametrize('owner', ['main.py', 'kmeans.py'])
def test_nothing_is_moved_or_replaced(experiment, pretrained, user_error, tmp_path, owner):
    run, base = MAINS[owner]
    run(experiment({'epochs': 1} if owner == 'main.py' else {}, base=base))
    folder = tmp_path / 'output' / 'small'
    assert folder_owner(folder) == owner
    before = contents(tmp_path / 'output')
    for script, (other, base) in MAINS.items():
        flags = ['--state-dict', str(pretrained)] if script == 'eval.py' else []
        for more in ([], ['--fresh']) if script in ('main.py', 'linear_finetune.py') else ([],):
            if script != owner:
                changes = {} if script == 'main.py' else {'pretraining': str(folder / 'checkpoint.pth.tar')}
                arguments = experiment(changes, base=base)
                line = user_error(lambda call=other, words=[*arguments, *flags, *more]: call(words))
                assert f'{folder}: this folder belongs to {owner}' in line and 'rename the file' in line
    assert contents(tmp_path / 'output') == before


def test_folders_of_the_scripts_that_make_their_own_experiments(experiment, shapes_root, user_error, tmp_path):
    env = experiment()[:2]
    for name, script in (('mine', 'kmeans.py'), ('theirs_clusters', 'main.py')):
        folder = tmp_path / 'output' / name
        folder.mkdir(parents=True)
        (folder / 'config.yml').write_text(f'script: {script}\n')
    (tmp_path / 'output' / 'theirs').mkdir()
    (tmp_path / 'output' / 'theirs' / 'config.yml').write_text(yaml.safe_dump(
        {**PRETRAINING, 'script': 'main.py', 'num_workers': 0}))
    before = contents(tmp_path / 'output')
    images = ['--images', str(shapes_root / 'Shapes' / 'images')]
    assert 'this folder belongs to kmeans.py' in user_error(lambda: own_images.main([*env, *images, '--name', 'mine']))
    assert 'this folder belongs to main.py' in user_error(lambda: own_clusters.main([*env, '--name', 'theirs']))
    assert contents(tmp_path / 'output') == before
