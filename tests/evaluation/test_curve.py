"""`curve.py` on real pre-trainings: its scores are those of the scripts that it stands for, and it follows and goes on."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import warm
from helpers.experiments import PRETRAINING, TOYS_KMEANS, TOYS_RETRIEVAL
from helpers.processes import MAIN, wait_for
from sklearn.linear_model import LogisticRegression

import curve
import kmeans
import retrieval
from contrastive.keeping import in_half_precision
from data.label_space import LabelSpace
from evaluation.learning_curve.quick_linear import WEIGHT_DECAY, CellSample, fit_classifier
from evaluation.learning_curve.scoring import Segments, neighbours_of_same_class
from evaluation.visualization.curve import curve_figure
from main import main
from utils.checkpoint.kept import kept_checkpoints, kept_path
from utils.storage.run_folder import hold_folder, is_held, release_folders

CURVE = Path(curve.__file__)
SMALL = ['--device', 'cpu', '--num_workers', '0', '--resolution', '48', '40']
FEW = {'train_db_name': 'Toys', 'num_workers': 0, 'epochs': 2, 'keep_every': 1}


@pytest.fixture(scope='module')
def trained(toys, tmp_path_factory):
    """The folder of a real pre-training that kept three checkpoints. Not to be written to."""
    root = tmp_path_factory.mktemp('trained')
    (root / 'env.yml').write_text(json.dumps({'root_dir': str(root / 'output'), 'db_root': str(toys)}))
    (root / 'run.yml').write_text(json.dumps(PRETRAINING | FEW))
    main(['--config_env', str(root / 'env.yml'), '--config_exp', str(root / 'run.yml'), '--device', 'cpu', '--amp', 'none'])
    return root / 'output' / 'run'


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, where the environment of `score` has its results."""
    return shutil.copytree(trained, tmp_path / 'output' / 'run')


@pytest.fixture
def score(experiment, toys):
    """score(*flags, name='run') runs curve.py, and returns the content of curve.json and its folder's path."""
    def call(*flags, name='run'):
        environment = experiment(db_root=toys)[:2]
        curve.main([*environment, '--run', str(name), *SMALL, *flags])
    return call


def points_of(run):
    return {point['epoch']: point for point in json.loads((run / 'curve' / 'curve.json').read_text())['points']}


@pytest.mark.slow
def test_scores_are_those_of_the_scripts(run, score, experiment, toys, toy_network, tmp_path):
    state = torch.load(kept_path(run, 2), weights_only=True)  # weights whose masks are neither all nor nothing
    state['model'] = {f'module.model_q.{key}': in_half_precision(value) for key, value in toy_network.state_dict().items()}
    torch.save(state, kept_path(run, 2))
    score('--saliency', 'supervised_model', '--num_seeds', '2', '--database', 'train')
    found = points_of(run)
    assert [(point['epoch'], point['steps']) for point in found.values()] == [(0, 0), (1, 4), (2, 8)]
    given = {'pretraining': str(kept_path(run, 2)), 'val_db_kwargs': {'saliency': 'supervised_model', 'batch_size': 10}}
    database = {'retrieval_kwargs': {'train_split': 'train', 'saliency': 'supervised_model'}}
    backbone = {key.removeprefix('module.model_q.backbone.model.'): value for key, value in
                torch.load(kept_path(run, 2), weights_only=True)['model'].items() if '.backbone.' in key}
    torch.save(backbone, tmp_path / 'backbone.pth')
    alone = {**given, 'head': 'none', 'pretraining': str(tmp_path / 'backbone.pth')}
    own = {'pretraining': str(kept_path(run, 2)), 'val_db_kwargs': {'batch_size': 10}}
    train = {'retrieval_kwargs': {'train_split': 'train'}}
    for features, key, script, base, changes in (
            ('network', 'kmeans', kmeans, TOYS_KMEANS, given), ('backbone', 'kmeans', kmeans, TOYS_KMEANS, alone),
            ('network', 'kmeans_own_masks', kmeans, TOYS_KMEANS, own),
            ('network', 'retrieval', retrieval, TOYS_RETRIEVAL, given | database),
            ('backbone', 'retrieval', retrieval, TOYS_RETRIEVAL, alone | database),
            ('network', 'retrieval_own_masks', retrieval, TOYS_RETRIEVAL, own | train)):
        flags = ['--num_seeds', '2'] if script is kmeans else []
        script.main([*experiment(changes, script.__name__, toys, base), '--num_visualizations', '0', *flags])
        want = json.loads((tmp_path / 'output' / script.__name__ / 'results.json').read_text())['mIoU']
        assert found[2]['scores'][features][key] == pytest.approx(want, abs=1e-9), (features, key)
    assert found[2]['scores']['network']['kmeans_own_masks'] > 15
    content = json.loads((run / 'curve' / 'curve.json').read_text())
    assert content['start'] == found[0]['scores']['backbone']
    assert cv2.imread(str(run / 'curve' / 'curve.png')) is not None
    assert 'Epoch 2, 8 steps: kmeans' in (run / 'curve' / 'log_file.txt').read_text()


@pytest.mark.slow
def test_goes_on_where_it_stopped(run, score, user_error):
    """What is scored stays; what is new, or has another content, is scored; other settings begin anew."""
    last = kept_path(run, 2).rename(run / 'later')
    score('--num_seeds', '2')
    before = points_of(run)
    assert list(before) == [0, 1]
    path = run / 'curve' / 'curve.json'
    content = json.loads(path.read_text())
    content['points'][0]['scores']['network']['kmeans'] = 77.7  # a mark: it would go if the score were computed again
    path.write_text(json.dumps(content))
    last.rename(kept_path(run, 2))
    shutil.copy(kept_path(run, 0), kept_path(run, 1))  # for example, the run was started over
    score('--num_seeds', '2', '--follow')  # nothing runs there, so it ends
    after = points_of(run)
    assert list(after) == [0, 1, 2] and after[0]['scores']['network']['kmeans'] == 77.7
    assert after[1]['sha256'] == before[0]['sha256'] and after[1]['scores'] == before[0]['scores']
    score('--num_seeds', '2', name=run)  # its path will do as well as its name; nothing is left to do
    assert points_of(run) == after
    score('--num_seeds', '1')
    assert json.loads((run / 'curve' / 'curve.json.old-1').read_text())['points'] == list(after.values())
    assert points_of(run)[0]['scores']['network']['kmeans'] != 77.7
    path.write_text('{}')
    assert 'curve.json was not written by curve.py' in user_error(score)


@pytest.mark.slow
def test_follows_a_run_until_its_end(experiment, toys, tmp_path):
    """Two real processes, the second of which starts while there is little to score."""
    arguments = [*experiment(FEW | {'epochs': 4, 'keep_every': 3}, 'run', toys), '--amp', 'none']
    folder = tmp_path / 'output' / 'run'
    training = warm.start(MAIN, *arguments, out=tmp_path / 'training')
    try:
        wait_for(lambda: is_held(folder) or kept_checkpoints(folder))
        following = warm.start(CURVE, *arguments[:2], '--run', folder, '--follow', *SMALL, out=tmp_path / 'following')
        assert following.wait(240) == training.wait(60) == 0, following.printed()
    finally:
        training.kill()
    assert '3 checkpoints scored' in following.printed()
    assert list(points_of(folder)) == list(kept_checkpoints(folder)) == [0, 3, 4]


@pytest.mark.slow
def test_mistakes(score, user_error, tmp_path, trained):
    assert '--run nowhere: this folder exists neither' in user_error(lambda: score(name='nowhere'))
    (tmp_path / 'output' / 'empty').mkdir(parents=True)
    for flags in ([], ['--follow']):
        line = user_error(lambda: score(*flags, name='empty'))  # noqa: B023
        assert 'there is no checkpoint to score' in line and 'keep_every' in line
    copy = shutil.copytree(trained, tmp_path / 'output' / 'broken')
    kept_path(copy, 0).write_bytes(kept_path(copy, 0).read_bytes()[:10 ** 6])
    assert 'epoch_0000.pth.tar: damaged' in user_error(lambda: score(name='broken'))
    assert 'nothing.txt could not be read' in user_error(lambda: score('--database', 'nothing', name=trained))
    assert 'at least 1, not 0' in user_error(lambda: score('--num_seeds', '0', name=trained))


def test_a_folder_is_held_by_another_process(tmp_path):
    assert not is_held(tmp_path)
    code = ('import sys, time; sys.path.insert(0, sys.argv[1]); from utils.storage.run_folder import hold_folder\n'
            'hold_folder(sys.argv[2]); print("held", flush=True); time.sleep(60)')
    holder = subprocess.Popen([sys.executable, '-c', code, str(CURVE.parent), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == 'held\n' and is_held(tmp_path)
    finally:
        holder.kill()
    holder.wait()
    assert (tmp_path / '.lock').exists() and not is_held(tmp_path)  # a lock of a process that is gone does not count
    hold_folder(tmp_path)
    release_folders()


def test_the_quick_classifier_is_the_optimum():
    """Against scikit-learn's softmax regression with the same penalty, on channels of unit variance."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    features = rng.normal(size=(600, 5)) * [1, 2, 30, 0.1, 1] + labels[:, None] * [1, 0, 30, 0, -1] + 5
    classifier = fit_classifier(torch.tensor(features).float(), torch.tensor(labels), 3)
    scaled = (features - features.mean(0)) / features.std(0)
    plain = LogisticRegression(C=1 / (600 * WEIGHT_DECAY), tol=1e-8, max_iter=1000).fit(scaled, labels)
    logits = classifier(torch.tensor(features).float()[:, :, None, None])[:, :, 0, 0]
    assert np.allclose(torch.softmax(logits, 1).numpy(), plain.predict_proba(scaled), atol=0.01)
    assert (plain.predict(scaled) == labels).mean() < 0.95  # no easy case


def test_cells_have_the_label_at_their_centre():
    labels = np.full((40, 60), 255, np.uint8)
    labels[10, 15], labels[30, 45] = 1, 2  # the centres of two of 2 x 2 cells of 20 x 30 pixels
    grid = torch.arange(8).view(1, 2, 2, 2)
    sample = CellSample(images=1, seed=0)
    sample.add(grid, [labels])
    assert torch.cat(sample.labels).tolist() == [1, 2]
    assert torch.cat(sample.features).tolist() == [[0, 4], [3, 7]]
    few = CellSample(images=20_000, seed=0)  # two cells an image
    few.add(torch.zeros(1, 3, 8, 8), [np.zeros((8, 8), np.uint8)])
    assert len(torch.cat(few.labels)) == 2


def test_neighbours_of_the_same_class():
    space = LabelSpace(('background', 'disc', 'ring'))
    angles = np.radians([0, 10, 25, 90, 0])  # neighbours: 1, 0, 1, 2; the last image has no labelled object
    histograms = np.zeros((5, 2, 3), np.int64)
    histograms[:, 0, 0] = 9
    for image, label in enumerate([1, 1, 2, 2]):
        histograms[image, 1, label] = 4
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    segments = Segments({'network': vectors}, histograms, histograms)
    assert neighbours_of_same_class(segments, 'network', space) == 75
    lonely = Segments({'network': vectors[3:]}, histograms[3:], histograms[3:])
    assert neighbours_of_same_class(lonely, 'network', space) is None


@pytest.mark.slow
def test_too_few_images_for_kmeans_have_all_other_scores(experiment, trained, tmp_path, toys, capsys):
    root = shutil.copytree(toys, tmp_path / 'few')
    split = root / 'Toys' / 'sets' / 'val.txt'
    split.write_text('\n'.join(split.read_text().split()[:8]))
    run = shutil.copytree(trained, tmp_path / 'output' / 'run')
    for path in list(kept_checkpoints(run).values())[:2]:
        path.unlink()
    curve.main([*experiment(db_root=root)[:2], '--run', str(run), *SMALL])
    scores = points_of(run)[2]['scores']
    assert scores['network']['kmeans'] is scores['backbone']['kmeans'] is None
    assert 0 < scores['backbone']['retrieval'] <= 100 and 0 < scores['network']['linear'] <= 100
    assert '8 images are too few for 9 clusters' in capsys.readouterr().out
    assert json.loads((run / 'curve' / 'curve.json').read_text())['start'] is None  # its first checkpoint is not there


def test_the_figure_shows_each_score_and_the_start():
    points = [{'epoch': epoch, 'scores': {'network': {'kmeans': 10.0 + epoch, 'kmeans_own_masks': None if epoch == 0 else 5.0},
                                          'backbone': {'kmeans': 30.0}}} for epoch in (0, 5)]
    axes = curve_figure(points, {'kmeans': 30.0}, 'run').axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines['network'] == [[0, 10], [5, 15]] and lines['network, its own masks'] == [[5, 5]]
    assert [y for _, y in lines['start: initial backbone alone']] == [30, 30]
    assert len(axes) == 4 and not axes[1].lines
