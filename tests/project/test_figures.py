"""The scripts in images/, on small runs: pictures of the right parts, and mistakes."""
import json

import cv2
import numpy as np
import pytest
import torch
import yaml

import curves
import examples
import learning_curves
import teaser
from contrastive.builder import ContrastiveModel
from data.synthetic_shapes import draw_shapes
from utils.config import create_config
from utils.config.keys import PRETRAIN


def refusal(main, user_error, *arguments):
    return user_error(lambda: main(list(map(str, arguments))))


@pytest.mark.slow
def test_curves_show_what_the_run_measured(tmp_path, user_error):
    rows = [{'epoch': epoch, 'lr': 0.1, 'loss': loss, 'mIoU': 7.0} for epoch, loss in ((1, 4.0), (2, 3.0))]
    (tmp_path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    panels = {axes.get_title(): axes.lines for axes in curves.curves(rows).axes}
    assert list(panels) == ['loss', 'online mIoU (%)', 'learning rate']
    assert panels['loss'][0].get_xydata().tolist() == [[1, 4], [2, 3]]
    curves.main([str(tmp_path)])
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None
    assert 'nothing/metrics.jsonl could not be read' in refusal(curves.main, user_error, tmp_path / 'nothing')
    (tmp_path / 'metrics.jsonl').write_text(f'{json.dumps(rows[0])}\n{json.dumps(rows[1])[:20]}')  # a kill cut it off
    assert curves.read_metrics(tmp_path / 'metrics.jsonl') == rows[:1]
    (tmp_path / 'metrics.jsonl').write_text('no json}\n')
    assert 'metrics.jsonl could not be read' in refusal(curves.main, user_error, tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('')
    assert 'metrics.jsonl is empty' in refusal(curves.main, user_error, tmp_path)


def test_learning_curves_are_means_over_runs(tmp_path, user_error):
    for run, gain in (('a', 1.0), ('b', 3.0)):
        points = [{'steps': steps, 'scores': {part: dict.fromkeys(learning_curves.PANELS, 30 + gain * steps)
                                              for part in ('network', 'backbone')}} for steps in (0, 5, 7)]
        (tmp_path / run / 'curve').mkdir(parents=True)
        (tmp_path / run / 'curve' / 'curve.json').write_text(json.dumps({
            'points': points[:2] if run == 'b' else points, 'start': dict.fromkeys(learning_curves.PANELS, 30.0)}))
    curves_of = [learning_curves.read_curve(tmp_path / run) for run in 'ab']
    assert list(learning_curves.over_runs(curves_of, 'backbone', 'kmeans')) == [(0, 30, 30, 30), (5, 40, 35, 45)]
    figure = learning_curves.learning_curves({'two': curves_of, 'one': curves_of[:1]})
    assert [len(axes.lines) for axes in figure.axes] == [3] * 2 * len(learning_curves.PANELS)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 30], [5, 40]]
    learning_curves.main(['--runs', 'one', str(tmp_path / 'a'), '--out', str(tmp_path / 'curves.png')])
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None
    wrong = refusal(learning_curves.main, user_error, '--runs', 'one', tmp_path / 'c', '--out', tmp_path / 'x.png')
    assert 'c/curve/curve.json could not be read' in wrong and not (tmp_path / 'x.png').exists()
    assert 'at least one folder' in refusal(learning_curves.main, user_error, '--runs', 'one', '--out', tmp_path / 'x.png')


def test_examples_are_spread_over_all(tmp_path, user_error):
    assert examples.spread(range(80), 4) == [0, 20, 40, 60] and examples.spread(range(3), 12) == [0, 1, 2]
    (tmp_path / 'visualization').mkdir()
    for number in range(6):
        cv2.imwrite(str(tmp_path / 'visualization' / f'{number}.png'), np.full((100, 300, 3), 40 * number, np.uint8))
    examples.main([str(tmp_path), '--out', str(tmp_path / 'sheet.jpg'), '--number', '3', '--columns', '1'])
    sheet = cv2.imread(str(tmp_path / 'sheet.jpg'))
    centres = [int(row[:, sheet.shape[1] // 2].mean()) for row in np.split(sheet, 3)]
    assert all(abs(got - want) < 12 for got, want in zip(centres, (8, 85, 162), strict=True)), centres
    assert 'at least 1' in refusal(examples.main, user_error, tmp_path, '--out', tmp_path / 'x.jpg', '--columns', 0)
    assert 'has no visualization' in refusal(examples.main, user_error, tmp_path / 'nothing', '--out', tmp_path / 'x.jpg')


@pytest.mark.slow
def test_teaser(tmp_path, user_error):
    exp = yaml.safe_load((teaser.ROOT / 'pretrain' / 'configs' / 'demo.yml').read_text())
    (tmp_path / 'small.yml').write_text(yaml.safe_dump(exp))
    (tmp_path / 'env.yml').write_text(yaml.safe_dump({'root_dir': str(tmp_path), 'db_root': str(tmp_path / 'data')}))
    draw_shapes(tmp_path / 'data' / 'Shapes', train=6, val=1, size=64)
    arguments = ['--config_env', tmp_path / 'env.yml', '--config_exp', tmp_path / 'small.yml', '--out', tmp_path / 'teaser.png']
    assert 'this checkpoint file does not exist' in refusal(teaser.main, user_error, *arguments)
    p = create_config(tmp_path / 'env.yml', tmp_path / 'small.yml', PRETRAIN)
    (tmp_path / 'small').mkdir()
    state = ContrastiveModel(p).state_dict()
    torch.save({'model': {f'module.{key}': value for key, value in state.items()}}, tmp_path / 'small' / 'checkpoint.pth.tar')
    assert '--image must be from 0 to 5, not 6' in refusal(teaser.main, user_error, *arguments, '--image', 6)
    pictures = []
    for number in (0, 1):
        teaser.main([*map(str, arguments), '--image', str(number)])
        pictures.append(cv2.imread(str(tmp_path / 'teaser.png')).astype(int))
    changed = (np.abs(pictures[0] - pictures[1]) > 30).any(2)
    columns = np.flatnonzero(changed.any(0)) / changed.shape[1]
    assert columns.min() < 0.15 and columns.max() > 0.68  # the image at the left, and its embeddings at the right
    assert not changed[:, int(0.38 * changed.shape[1]):int(0.62 * changed.shape[1])].any()  # but not what is written
