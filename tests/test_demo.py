"""The demo's table and picture, from real evaluations of a small data set."""
import json

import cv2
from test_trees import KMEANS

import demo
import kmeans


def test_table_and_picture(experiment, tmp_path, capsys, user_error):
    arguments = experiment(base=KMEANS)
    env = arguments[:2]
    assert 'make demo' in user_error(lambda: demo.main(env))
    means = []
    for seed, (_, _, run) in enumerate(demo.RUNS):
        kmeans.main([*experiment(base=KMEANS, name=run), '--num_seeds', '2', '--seed', str(seed)])
        means.append(sum(json.loads((tmp_path / 'output' / run / 'results.json').read_text())['mIoU_per_seed']) / 2)
    capsys.readouterr()
    demo.main(env)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('untrained', 'trained'))]
    assert [row.split('  ')[-1].split()[0] for row in rows] == [f'{mean:.1f}' for mean in means]
    assert rows[2].split()[1:3] == ['its', 'own']
    picture = cv2.imread(str(tmp_path / 'output' / 'demo' / 'segmentations.png'))
    assert picture.shape == (2 * demo.CELL[0], demo.COLUMNS * demo.CELL[1], 3)  # six validation images
    assert picture.std() > 10
