"""`make reproduce`: which rows run, with which weights, and what the others say is missing."""
import json
import shutil

import pytest
import torch
import yaml
from helpers.experiments import LINEAR, TOYS_RETRIEVAL

import reproduce
from models.factory import get_model
from reproduce import MOCO_INITIALISED, ROWS, Row
from utils.model_zoo.zoo import ZOO


@pytest.fixture
def env(tmp_path):
    path = tmp_path / 'env.yml'
    path.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'db')}))
    return ['--config_env', str(path)]


def test_rows_are_those_of_the_published_tables():
    published = [63.9, 65.5, 58.4, 59.5, 44.2, 35.0, 62.3, 49.6, 53.4, 43.3, 48.0, 39.0]
    assert [row.published for row in ROWS.values()] == published
    for row in ROWS.values():
        content = yaml.safe_load((reproduce.TREE / 'configs' / row.config).read_text())
        assert content['val_db_name'] == 'VOCSegmentation' and row.weights in (*ZOO, MOCO_INITIALISED)
        if row.script == 'retrieval.py':
            assert len(content['retrieval_kwargs']['ignore_classes']) == (0 if '21_classes' in row.config else 13)


def test_what_is_missing_is_said(env, tmp_path, capsys):
    reproduce.main(env)
    assert capsys.readouterr().out.count(f'the data set {tmp_path / "db" / "VOCSegmentation"}') == len(ROWS)
    (tmp_path / 'db' / 'VOCSegmentation').mkdir(parents=True)
    reproduce.main(env)
    results = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())
    assert 'zoo://voc_supervised_linear: give --fetch' in results['linear_supervised_crf']['missing']
    assert f'--weights {MOCO_INITIALISED}=PATH' in results['retrieval_supervised_7']['missing']
    assert not any('measured' in found for found in results.values())


@pytest.mark.slow
def test_rows_run_with_files_of_ones_own(env, toys, toy_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / 'db').mkdir()
    shutil.copytree(toys / 'Toys', tmp_path / 'db' / 'VOCSegmentation')
    voc = {'train_db_name': 'VOCSegmentation', 'val_db_name': 'VOCSegmentation', 'pretraining': '/nowhere'}
    for name, base in (('linear', LINEAR), ('retrieval', TOYS_RETRIEVAL)):
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump({**base, **voc}))
    torch.save(get_model({'backbone': 'resnet18', 'num_classes': 9}).state_dict(), tmp_path / 'linear.pth')
    monkeypatch.setattr(reproduce, 'ROWS', {
        'linear_supervised_crf': Row('eval.py', str(tmp_path / 'linear.yml'), 'voc_supervised_linear', 65.5, crf=True),
        'retrieval_supervised_7': Row('retrieval.py', str(tmp_path / 'retrieval.yml'), MOCO_INITIALISED, 62.3),
        'kmeans_supervised': Row('kmeans.py', str(tmp_path / 'retrieval.yml'), 'voc_supervised_linear', 44.2)})
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'linear.pth')
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*env, '--weights', f'voc_supervised_linear={tmp_path / "link.pth"}',
                        f'{MOCO_INITIALISED}={toy_checkpoint}', '--rows', 'linear_supervised_crf', 'kmeans_supervised'])
    assert stop.value.code == 2  # one failed
    reproduce.main([*env, '--weights', f'{MOCO_INITIALISED}={toy_checkpoint}', '--rows', 'retrieval_supervised_7'])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('linear_', 'retrieval_', 'kmeans_'))]
    results = json.loads((tmp_path / 'output' / 'reproduce' / 'results.json').read_text())
    for name, folder in (('linear_supervised_crf', 'eval/linear.pth_crf'), ('retrieval_supervised_7', '')):
        own = json.loads((tmp_path / 'output' / f'reproduce_{name}' / folder / 'results.json').read_text())
        assert results[name]['measured'] == own['mIoU'] and results[name]['published'] == reproduce.ROWS[name].published
        assert any(line.split()[:3] == [name, str(reproduce.ROWS[name].published), f'{own["mIoU"]:.2f}'] for line in printed)
    assert 'not a pre-training checkpoint' in results['kmeans_supervised']['error']
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
