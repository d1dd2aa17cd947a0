"""The demo's table and picture, from real evaluations of a small data set."""
import json
import shutil

import cv2
import pytest
from helpers.experiments import KMEANS, LINEAR

import demo
import eval as evaluation_script
import kmeans
import linear_finetune
import retrieval


@pytest.mark.slow
def test_table_and_picture(experiment, pretrained, tmp_path, capsys, user_error):
    arguments = experiment(base=KMEANS)
    env, output = arguments[:2], tmp_path / 'output'
    assert 'make demo' in user_error(lambda: demo.main(env))
    for seed, run in enumerate(('demo_kmeans_untrained', 'demo_kmeans_given_masks', 'demo_kmeans')):
        kmeans.main([*experiment(base=KMEANS, name=run), '--num_seeds', '2', '--seed', str(seed)])
    for run in ('demo_retrieval_untrained', 'demo_retrieval'):
        retrieval.main(experiment({'retrieval_kwargs': {'saliency': 'supervised_model'}}, run, base=KMEANS))
    for run, weights in (('demo_linear_untrained', None), ('demo_linear', str(pretrained))):
        settings = experiment({'epochs': 1, 'pretraining': weights}, run, base=LINEAR)
        linear_finetune.main(settings)
    assert 'demo_linear/eval' in user_error(lambda: demo.main(env))
    evaluation_script.main([*settings, '--state-dict', str(output / 'demo_linear' / 'best_model.pth.tar'), '--crf-postprocess'])
    capsys.readouterr()
    demo.main(env)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('untrained', 'trained'))]
    for row, (network, evaluation, _, run) in zip(rows, demo.RUNS, strict=True):
        results = json.loads((output / run / 'results.json').read_text())
        seeds = results.get('mIoU_per_seed')
        spread = f' ({min(seeds):.1f} to {max(seeds):.1f})' if seeds else ''
        assert row.split('  ')[-1].strip() == f'{results["mIoU"]:.1f}{spread}'
        assert row.startswith(network) and evaluation in row
    picture = cv2.imread(str(output / 'demo' / 'segmentations.png'))
    assert picture.shape[1] == demo.COLUMNS * demo.CELL[1] and picture.shape[0] <= 2 * demo.CELL[0]  # six images
    assert picture.std() > 10
    shutil.copy(output / 'demo_retrieval' / 'results.json', output / 'demo_kmeans' / 'results.json')
    assert 'demo_kmeans/results.json was not written by kmeans.py' in user_error(lambda: demo.main(env))
