"""The benchmarks run in small. Where both ways give the same numbers, they assert it themselves."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import warm

import checkpoints
import crf
import growth
import kmeans_scoring
import linear_probe
import online_evaluation
import pretrain_loss
import pretrain_step
import pretrain_views
import saliency_masks
import table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_processes(tmp_path, monkeypatch):
    """Those that growth.py and pretrain_loss.py start; test_table has one that starts by itself."""
    def json_of(script, *flags):
        done = warm.run(script, *flags, out=tmp_path / 'out', err=tmp_path / 'err')
        assert done.returncode == 0, done.errors()
        return json.loads(done.printed())
    for module in growth, pretrain_loss:
        monkeypatch.setattr(module, 'json_of', json_of)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_processes')
@pytest.mark.parametrize('module, flags, keys', [
    (pretrain_step, ['--size', '32', '--batch', '4', '--queue', '8', '--steps', '1', '--amp', 'none'],
     ('speed_up', 'whole_over_bare')),
    (pretrain_loss, ['--batch', '8', '--grid', '12', '--size', '96', '--queue', '32', '--rounds', '1'],
     ('speed_up', 'plain_over_peak')),
    (checkpoints, ['--size', '32', '--batch', '4', '--steps', '1', '--rounds', '1', '--amp', 'none'], ('mib', 'held_seconds')),
    (pretrain_views, ['--size', '32', '--images', '2', '--rounds', '1'], ('speed_up', 'cached_speed_up')),
    (kmeans_scoring, ['--images', '3', '--height', '40', '--width', '50', '--rounds', '1'], ('speed_up', 'retrieval_speed_up')),
    (linear_probe, ['--size', '48', '--batch', '4', '--images', '7', '--rounds', '1', '--amp', 'none'], ('speed_up',)),
    (online_evaluation, ['--batch', '2', '--size', '32', '--rounds', '2'], ('counting_speed_up', 'whole_speed_up')),
    (crf, ['--images', '2', '--size', '64'], ('images_per_second_1_process', 'images_per_second_1_a_core', 'speed_up'))])
def test_prints_one_line_of_json(monkeypatch, capsys, module, flags, keys):
    monkeypatch.setattr('sys.argv', [module.__name__, *flags])
    module.main()
    report = json.loads(capsys.readouterr().out)
    assert report['benchmark'] == module.__name__
    assert all(report[key] > 0 for key in keys)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_processes')
def test_growth(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['growth', '--batches', '2', '--sizes', '96', '--splits', '40', '--steps', '1',
                                      '--memory', '2', '4', '--memory-size', '32'])
    growth.main()
    report = json.loads(capsys.readouterr().out)
    step, = report['steps']
    split, = report['splits']
    assert (step['batch'], step['size'], split['images']) == (2, 96, 40)
    assert step['seconds'] > 0 and step['peak_mib'] > 200 and split['kmeans_seconds'] > 0 and split['peak_mib'] > 200
    lines = table.growth_tables(report)
    assert sum(line.startswith('| ') for line in lines) == 10 and any(line.startswith('| 40 |') for line in lines)


@pytest.mark.slow
def test_table(tmp_path, monkeypatch, capsys):
    """The page keeps what stands around the marks, and has a line for each row."""
    empty = f'# Title\n{table.BEGIN}{table.END}## After\n'
    assert table.replace_block(empty, ['a', 'b']) == f'# Title\n{table.BEGIN}\na\nb\n\n{table.END}## After\n'
    row = table.Row('counting {batch}', 'passes', 'counting_speed_up', 'counting_seconds', 'plain_counting_seconds')
    command = 'online_evaluation.py', '--batch', '2', '--size', '32', '--rounds', '2'
    monkeypatch.setattr(table, 'BENCHMARKS', {command: (row,)})
    run = table.run
    monkeypatch.setattr(table, 'run', lambda script, *flags: {'steps': [], 'images': [], 'splits': []} if script == 'growth.py'
                        else run(script, *flags))
    monkeypatch.setattr(table, 'PAGE', tmp_path / 'performance.md')
    table.PAGE.write_text(f'# Title\n{table.BEGIN}old\n{table.END}## After\n')
    table.main([])
    text = table.PAGE.read_text()
    assert text.startswith(f'# Title\n{table.BEGIN}') and text.endswith(f'{table.END}## After\n') and 'old' not in text
    assert '| counting 2 | passes | ' in text and f'torch {torch.__version__.partition("+")[0]}' in text
    assert table.BEGIN in (ROOT / 'docs' / 'performance.md').read_text()


def test_quality_of_masks(shapes_root, capsys):
    saliency_masks.main(['--folder', str(shapes_root / 'Shapes'), '--split', 'val', '--side', '96'])
    report = json.loads(capsys.readouterr().out)
    assert report['images'] == 6 and 0 < report['mean_IoU'] <= 100 and report['images_per_second'] > 0
    saliency_masks.main(['--folder', str(shapes_root / 'Shapes'), '--split', 'val', '--side', '96', '--against',
                         'supervised_model'])
    against = json.loads(capsys.readouterr().out)
    assert against['images'] == 6 and 0 < against['mean_IoU'] <= 100 and against['mean_IoU'] != report['mean_IoU']
    mask, labels = np.array([[1, 1, 0, 0]]), np.array([[3, 255, 5, 0]])
    assert saliency_masks.intersection_over_union(mask, labels) == 0.5  # one of two labelled pixels; void does not count
