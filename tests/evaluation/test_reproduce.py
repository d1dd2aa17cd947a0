"""`make reproduce`: which rows run, with which weights, and what the others say is missing."""
import functools
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import warm
from helpers.experiments import LINEAR, SMALL, TOYS_RETRIEVAL

import reproduce
from evaluation.published_rows import ROWS, SUPERVISED_MOCO, UNPUBLISHED, Row
from models.factory import get_model
from utils.model_zoo.zoo import ZOO


@pytest.fixture
def env(tmp_path):
    path = tmp_path / 'env.yml'
    path.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'db')}))
    return ['--config_env', str(path)]


def test_rows_are_those_of_the_published_tables():
    published = [63.9, 65.5, 58.4, 59.5, 62.2, 61.0, 44.2, 57.0, 35.0, 38.9, 41.6, 62.3, 49.6, 53.4, 43.3, 48.0, 39.0,
                 43.4, 55.2, 78.0, 50.5, 57.2, 78.4, 51.5, 59.6, 78.6]
    assert [row.published for row in ROWS.values()] == published
    for row in ROWS.values():
        content = yaml.safe_load((reproduce.TREE / 'configs' / row.config).read_text())
        assert content['val_db_name'] == 'VOCSegmentation' and row.weights in (*ZOO, *UNPUBLISHED, None)
        if row.script == 'retrieval.py':
            assert len(content['retrieval_kwargs']['ignore_classes']) == (0 if '21_classes' in row.config else 13)


def test_what_is_missing_is_said(env, tmp_path, capsys):
    reproduce.main(env)
    assert capsys.readouterr().out.count(f'the data set {tmp_path / "db" / "VOCSegmentation"}') == len(ROWS)
    (tmp_path / 'db' / 'VOCSegmentation').mkdir(parents=True)
    reproduce.main([*env, '--rows', *[name for name, row in ROWS.items() if row.weights]])
    results = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())
    assert 'zoo://voc_supervised_linear: give --fetch' in results['linear_supervised_crf']['missing']
    assert f'--weights {SUPERVISED_MOCO}=PATH' in results['retrieval_supervised_7']['missing']
    assert not any('measured' in found for found in results.values())


def start_warm(out, words, stderr, env, check):
    """What `subprocess.run` does for reproduce.py, in less time."""
    assert words[0] == sys.executable and not check
    return warm.run(*words[1:], out=out, err=stderr.name, **env)


@pytest.mark.slow
def test_rows_run_with_files_of_ones_own(env, toys, toy_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / 'db').mkdir()
    shutil.copytree(toys / 'Toys', tmp_path / 'db' / 'VOCSegmentation')
    voc = {'train_db_name': 'VOCSegmentation', 'val_db_name': 'VOCSegmentation', 'pretraining': '/nowhere'}
    for name, base in (('linear', LINEAR), ('retrieval', TOYS_RETRIEVAL)):
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump({**base, **voc}))
    (tmp_path / 'wrong.yml').write_text(yaml.safe_dump({**TOYS_RETRIEVAL, 'resolutions': 3}))
    torch.save(get_model({**SMALL, 'num_classes': 9}).state_dict(), tmp_path / 'linear.pth')
    monkeypatch.setattr(reproduce, 'ROWS', {
        'linear_supervised_crf': Row('eval.py', str(tmp_path / 'linear.yml'), 'voc_supervised_linear', 65.5, crf=True),
        'retrieval_supervised_7': Row('retrieval.py', str(tmp_path / 'retrieval.yml'), SUPERVISED_MOCO, 62.3),
        'finetune_imagenet_1': Row('finetune.py', str(tmp_path / 'finetune.yml'), None, 43.4),
        'kmeans_supervised': Row('kmeans.py', str(tmp_path / 'wrong.yml'), 'voc_supervised_linear', 44.2)})
    finetune = {key: value for key, value in LINEAR.items() if key != 'freeze_batchnorm'}
    (tmp_path / 'finetune.yml').write_text(yaml.safe_dump({**finetune, **voc, 'pretraining': None, 'epochs': 1}))
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'linear.pth')
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*env, '--weights', f'voc_supervised_linear={tmp_path / "link.pth"}',
                        f'{SUPERVISED_MOCO}={toy_checkpoint}', '--rows', 'linear_supervised_crf', 'kmeans_supervised'])
    assert stop.value.code == 2  # one failed
    reproduce.main([*env, '--weights', f'{SUPERVISED_MOCO}={toy_checkpoint}', '--rows', 'retrieval_supervised_7'])
    monkeypatch.setattr(reproduce, 'subprocess', SimpleNamespace(run=functools.partial(start_warm, tmp_path / 'out')))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('linear_', 'retrieval_', 'kmeans_'))]
    results = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())
    for name, folder in (('linear_supervised_crf', 'eval/linear.pth_crf'), ('retrieval_supervised_7', '')):
        own = json.loads((tmp_path / 'output' / f'reproduce_{name}' / folder / 'results.json').read_text())
        assert results[name]['measured'] == own['mIoU'] and results[name]['published'] == reproduce.ROWS[name].published
        assert any(line.split()[:3] == [name, str(reproduce.ROWS[name].published), f'{own["mIoU"]:.2f}'] for line in printed)
    assert "unknown key 'resolutions'" in results['kmeans_supervised']['error']
    assert results['retrieval_supervised_7']['spread'] is None and (tmp_path / 'output' / 'reproduce' / 'table.png').exists()
    for seeds in (['--seeds', '2'], ['--seeds', '2']):  # the second time nothing runs
        reproduce.main([*env, '--rows', 'finetune_imagenet_1', *seeds])
        printed = capsys.readouterr().out
    folders = [tmp_path / 'output' / f'reproduce_finetune_imagenet_1_seed_{seed}' for seed in (0, 1)]
    scores = [json.loads((folder / 'results.json').read_text())['mIoU'] for folder in folders]
    found = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())['finetune_imagenet_1']
    assert found['measured'] == pytest.approx(np.mean(scores)) and found['spread'] == pytest.approx(np.std(scores, ddof=1))
    assert f'{found["measured"]:.2f} +- {found["spread"]:.2f}' in printed
    assert all((folder / 'log_file.txt').read_text().count('This run has finished') == 0 for folder in folders)
    weights = [torch.load(folder / 'checkpoint.pth.tar', weights_only=True) for folder in folders]
    assert [state['seed'] for state in weights] == [0, 1]
    reproduce.main([*env, '--rows', 'retrieval_supervised_7'])  # without its weights: what was measured stays
    again = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())
    assert again['retrieval_supervised_7']['earlier'] == results['retrieval_supervised_7']
    assert 'measured' not in again['retrieval_supervised_7'] and 'missing' in again['retrieval_supervised_7']
    assert again['kmeans_supervised'] == results['kmeans_supervised']
    assert f'measured earlier: {results["retrieval_supervised_7"]["measured"]:.2f}; missing:' in capsys.readouterr().out


def test_mistakes(env, tmp_path, user_error):
    assert '--rows: there is no row linear' in user_error(lambda: reproduce.main([*env, '--rows', 'linear']))
    pair = f'voc_supervised_linear={tmp_path / "none"}'
    assert user_error(lambda: reproduce.main([*env, '--weights', pair])).endswith(f'there is no file {tmp_path / "none"}')
    for pair in ('voc_supervised_linear', f'other={tmp_path / "env.yml"}'):
        assert f'--weights {pair}: must be NAME=PATH' in user_error(lambda pair=pair: reproduce.main([*env, '--weights', pair]))
