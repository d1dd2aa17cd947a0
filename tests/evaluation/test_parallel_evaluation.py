"""The evaluation scripts as two real processes of torchrun: they leave what a single process leaves, and end together."""
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.checks import assert_same
from helpers.experiments import LINEAR, TOYS_KMEANS, TOYS_RETRIEVAL
from helpers.processes import Ranks, torchrun
from threadpoolctl import threadpool_limits

import eval as evaluation_script
import kmeans
import knn
import linear_finetune
import retrieval
from evaluation.model_loading import CLASSIFIER

SCRIPTS = Path(linear_finetune.__file__).parent
PROGRESS = re.compile(r': \d+/\d+, .* left')  # of what takes long, on a busy machine
# Rank 1 is asked to stop in the first step of its second epoch.
STOPPED = f'''
import os, signal, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import linear_finetune
from evaluation import linear_training
from utils.parallel import ranks

class Trainer(linear_training.LinearTrainer):
    def train_step(self, batch):
        if ranks.rank() == 1 and (self.epoch, self.step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_step(batch)

linear_training.LinearTrainer = Trainer
linear_finetune.main()
'''
# Rank 1 finds no room for the features of its validation images.
NO_ROOM = f'''
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import linear_finetune
from evaluation import feature_cache
if __name__ == '__main__':
    if os.environ['RANK'] == '1':
        feature_cache.MOST = 0
    linear_finetune.main()
'''


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """As torchrun's processes have: the order of additions depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """place(settings, db_root) makes a folder with the files of an experiment `small`, and if needed its own data sets."""
    def make(settings, db_root, own=False):
        root = tmp_path_factory.mktemp('place')
        db_root = shutil.copytree(db_root, root / 'datasets') if own else db_root
        (root / 'env.yml').write_text(yaml.safe_dump({'root_dir': str(root / 'output'), 'db_root': str(db_root)}))
        (root / 'small.yml').write_text(yaml.safe_dump(settings))
        return root
    return make


def arguments(root):
    return ['--config_env', str(root / 'env.yml'), '--config_exp', str(root / 'small.yml'), '--device', 'cpu']


def results(root):
    return root / 'output' / 'small'


def start(script, root, *flags):
    """Start two processes of a script."""
    return Ranks(script, [*arguments(root), *flags], root / 'logs')


def run_both(script, single, several, *flags):
    """Run a script in this process and, meanwhile, as two processes. Returns what the two print."""
    ranks = start(script.__file__, several, *flags)
    try:
        script.main([*arguments(single), *flags])
    finally:
        codes = ranks.wait()
    assert codes == [0, 0], ranks.printed()
    return [line for line in ranks.printed().splitlines() if not PROGRESS.search(line)]


def content(root, folder='.'):
    """What an evaluation left, by path, where `root` counts as empty: bytes, but of the log its lines without the time, and of
    the configuration no command and revision."""
    folder = results(root) / folder
    found = {str(path.relative_to(folder)): path.read_bytes().replace(str(root).encode(), b'')
             for path in folder.rglob('*') if path.is_file()}
    found['log_file.txt'] = [line[20:] for line in found['log_file.txt'].decode().splitlines() if not PROGRESS.search(line)]
    found['config.yml'] = yaml.safe_load(found['config.yml']) | {'command': None, 'git_revision': None}
    return found


def assert_same_content(single, several, count, **named):
    """count: of its files."""
    want, found = content(single, **named), content(several, **named)
    assert found.keys() == want.keys() and len(want) == count
    for path, value in want.items():
        assert found[path] == value, path


# Equal evaluations


@pytest.mark.slow
def test_clusters(place, toys, toy_checkpoint):
    """18 images in 3 batches, of which the processes have one and two."""
    settings = {**TOYS_KMEANS, 'pretraining': str(toy_checkpoint), 'val_db_kwargs': {'batch_size': 7}, 'num_workers': 2}
    single, several = (place(settings, toys) for _ in range(2))
    lines = run_both(kmeans, single, several, '--num_seeds', '2', '--metrics', '--num_visualizations', '9')
    assert_same_content(single, several, 18 + 9 + 5)
    assert [line.replace(str(several), '') for line in lines] == content(single)['log_file.txt']


@pytest.mark.slow
def test_neighbours(place, toys):
    """A database in one batch, of which rank 0 has nothing; 17 queries and 1; random weights."""
    saliency = {'saliency': 'supervised_model'}
    settings = {**TOYS_RETRIEVAL, 'pretraining': None, 'val_db_kwargs': {'batch_size': 17, **saliency},
                'retrieval_kwargs': {'train_split': 'trainaug', **saliency}}
    single, several = (place(settings, toys) for _ in range(2))
    lines = run_both(retrieval, single, several, '--num_visualizations', '3')
    assert_same_content(single, several, 3 + 4)
    assert [line.replace(str(several), '') for line in lines] == content(single)['log_file.txt']


@pytest.mark.slow
def test_patches(place, toys):
    """A memory in one batch, of which rank 0 has nothing; a part of each image's patches; random weights."""
    settings = {**TOYS_KMEANS, 'train_db_name': 'Toys', 'pretraining': None, 'val_db_kwargs': {'batch_size': 17},
                'knn_kwargs': {'memory_size': 96, 'k': 5, 'block': 20}}
    single, several = (place(settings, toys) for _ in range(2))
    lines = run_both(knn, single, several, '--num_visualizations', '3')
    assert_same_content(single, several, 18 + 3 + 4)
    assert [line.replace(str(several), '') for line in lines] == content(single)['log_file.txt']


# Training


@pytest.fixture(scope='module')
def settings(pretrained):
    """Of a training whose validation images are one batch, so that rank 0 has none."""
    named = {key: value for key, value in LINEAR.items() if key != 'scheduler_kwargs'}
    return {**named, 'pretraining': str(pretrained), 'epochs': 3, 'checkpoint_every': 2, 'scheduler': 'constant',
            'optimizer_kwargs': {**LINEAR['optimizer_kwargs'], 'lr': 1.0}, 'val_db_kwargs': {'batch_size': 6}}


@pytest.fixture(scope='module')
def trained(place, settings, shapes_root):
    """The folders of the training in a single process and in two of torchrun."""
    single, several = (place(settings, shapes_root) for _ in range(2))
    process = torchrun(linear_finetune.__file__, arguments(several), several / 'log')
    try:
        linear_finetune.main(arguments(single))
    finally:
        status = process.wait(180)
    assert status == 0, (several / 'log').read_text()
    return single, several


def load(root, name='checkpoint.pth.tar'):
    return torch.load(results(root) / name, weights_only=True)


def rows(root):
    lines = [json.loads(line) for line in (results(root) / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != 'images_per_second'} for row in lines]


def final(root, folder='.'):
    """Results but for paths and the names of scripts, and the predictions, of an evaluation."""
    found = content(root, folder)
    numbers = {key: value for key, value in json.loads(found['results.json']).items() if key in ('crf', 'mIoU', 'IoU')}
    return numbers, {Path(path).name: value for path, value in found.items() if path.startswith('predictions')}


@pytest.mark.slow
def test_training(trained, pretrained):
    """Gradients are sums of two parts instead of one: the weights differ by some 1e-6 of theirs, and by chance no pixel."""
    single, several = trained
    want, found, before = load(single), load(several), torch.load(pretrained, weights_only=True)['model']
    assert found['model'].keys() == want['model'].keys() and found['config'] == want['config'] | {
        key: value.replace(str(single), str(several)) for key, value in want['config'].items() if str(single) in str(value)}
    for name, tensor in found['model'].items():
        if name in CLASSIFIER['deeplab']:
            assert torch.allclose(tensor, want['model'][name], rtol=0, atol=1e-5) and tensor.abs().max() > 0.1
        else:
            assert torch.equal(tensor, before[f'module.model_q.{name}']), name
    assert len(rows(several)) == 3
    for row, other in zip(rows(several), rows(single), strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=0) and row['mIoU'] > 1
    lines, other = ([re.sub(r'[0-9.]+', 'N', line) for line in content(root)['log_file.txt']] for root in (several, single))
    assert [line.replace(': N on each of N processes', '') for line in lines] == other
    assert yaml.safe_load((results(several) / 'config.yml').read_text())['resolved']['processes'] == 2
    assert final(several)[0]['mIoU'] == pytest.approx(final(single)[0]['mIoU'], rel=1e-6) and final(single)[0]['mIoU'] > 9


# Evaluations of what was trained


@pytest.fixture(scope='module')
def evaluated(place, settings, shapes_root, trained):
    """A folder with a data set of its own, where a single process has evaluated what two have trained; and eval.py's flags."""
    root, flags = place(settings, shapes_root, own=True), ['--state-dict', str(results(trained[1]) / 'best_model.pth.tar')]
    evaluation_script.main([*arguments(root), *flags])
    return root, flags


@pytest.mark.slow
def test_evaluation(place, settings, shapes_root, trained, evaluated):
    """With CRF, of 4 images and 2; without, and with nothing for rank 0, it is the final evaluation of the training."""
    single, several = (place({**settings, 'val_db_kwargs': {'batch_size': 4}}, shapes_root) for _ in range(2))
    lines = run_both(evaluation_script, single, several, *evaluated[1], '--crf-postprocess')
    assert_same_content(single, several, 6 + 6 + 4, folder='eval/best_model.pth.tar_crf')
    assert [line.replace(str(several), '') for line in lines] == content(single, 'eval/best_model.pth.tar_crf')['log_file.txt']
    assert final(trained[1]) == final(evaluated[0], 'eval/best_model.pth.tar')


@pytest.mark.slow
def test_stopped_and_gone_on_it_ends_in_the_same_weights(place, settings, shapes_root, trained):
    """Rank 1 is asked to stop in a step; when the run goes on, it has no room for the features."""
    root = place(settings, shapes_root)
    (root / 'stopped.py').write_text(STOPPED)
    ranks = start(root / 'stopped.py', root)
    assert ranks.wait() == [75, 75] and ranks.printed().count('stopped by') == 1, ranks.printed()
    assert 0 < load(root)['epoch'] < 3 and not (results(root) / 'results.json').exists()
    (root / 'no_room.py').write_text(NO_ROOM)
    ranks = start(root / 'no_room.py', root)
    assert ranks.wait() == [0, 0] and ranks.printed().count('No room') == ranks.printed().count('Resuming from') == 1
    assert_same({**load(root), 'config': None}, {**load(trained[1]), 'config': None})
    assert_same(load(root, 'best_model.pth.tar'), load(trained[1], 'best_model.pth.tar'))
    assert rows(root) == rows(trained[1])
    assert final(root) == final(trained[1])


# Errors


@pytest.mark.slow
def test_a_damaged_image_in_the_part_of_one(evaluated, settings):
    """What rank 0 had written of its part is out of sight, and goes with the next evaluation."""
    root, flags = evaluated
    (root / 'small.yml').write_text(yaml.safe_dump({**settings, 'val_db_kwargs': {'batch_size': 2}}))
    before, image = content(root, 'eval/best_model.pth.tar'), root / 'datasets' / 'Shapes' / 'images' / 'val_0005.jpg'
    whole = image.read_bytes()
    image.write_bytes(whole[:1000])
    ranks = start(evaluation_script.__file__, root, *flags)
    assert ranks.wait(60) == [2, 2]
    line, = ranks.errors()
    assert f'error: rank 1: {image} is not a complete image' in line
    after = {path: value for path, value in content(root, 'eval/best_model.pth.tar').items() if not path.startswith('.')}
    added = after['log_file.txt'][len(before['log_file.txt']):]
    assert len(added) == 2 and added[1] == line.replace(str(root), '')
    assert after == before | {'log_file.txt': before['log_file.txt'] + added}
    image.write_bytes(whole)
    evaluation_script.main([*arguments(root), *flags])
    assert content(root, 'eval/best_model.pth.tar').keys() == before.keys()


@pytest.mark.slow
def test_a_batch_that_can_not_be_divided(place, settings, shapes_root):
    root = place({**settings, 'train_db_kwargs': {'split': 'trainaug', 'batch_size': 3}}, shapes_root)
    ranks = start(linear_finetune.__file__, root)
    assert ranks.wait(60) == [2, 2]
    line, = ranks.errors()
    assert line.removeprefix('error: ').removeprefix('rank 1: ').startswith(
        f'{root / "small.yml"}: train_db_kwargs.batch_size is 3, which cannot be divided over 2 processes')
    assert not (results(root) / 'checkpoint.pth.tar').exists()
