"""Two checkpoints are kept: when the newest is damaged, a run resumes from the one before, and ends in the same weights."""
import random
import shutil

import pytest
import torch
from helpers.checks import assert_same
from helpers.experiments import write_experiment
from helpers.processes import largest_file

from main import main
from utils.checkpoint import load_file, previous_checkpoint, save_checkpoint
from utils.errors import UserError

EPOCHS = 2  # of 3 steps, with a checkpoint after each


@pytest.fixture(scope='module')
def finished(shapes_root, tmp_path_factory):
    """The folder of a small training. Not to be written to."""
    root = tmp_path_factory.mktemp('finished')
    main([*write_experiment(root, {'checkpoint_every': 1, 'epochs': EPOCHS}, shapes_root), '--amp', 'none'])
    return root / 'output' / 'small'


@pytest.fixture
def run(experiment, tmp_path):
    """run() goes on with the training in tmp_path, and returns the checkpoint's path."""
    def call(*flags, epochs=EPOCHS):
        main([*experiment({'checkpoint_every': 1, 'epochs': epochs}), '--amp', 'none', *flags])
        return tmp_path / 'output' / 'small' / 'checkpoint.pth.tar'
    return call


@pytest.fixture
def path(finished, tmp_path):
    """The checkpoint in a copy of the folder, in the place of `run`."""
    return shutil.copytree(finished, tmp_path / 'output' / 'small') / 'checkpoint.pth.tar'


def flip_a_bit(path, seed):
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 1 << seed % 8
    path.write_bytes(data)


def test_the_one_before_is_kept(tmp_path):
    path = tmp_path / 'checkpoint.pth.tar'
    for number in range(4):
        save_checkpoint({'number': number}, path)
        assert load_file(path) == {'number': number}
        assert previous_checkpoint(path).exists() == (number > 0)
    assert load_file(previous_checkpoint(path)) == {'number': 2}
    assert {file.name for file in tmp_path.iterdir()} == {path.name, previous_checkpoint(path).name}  # no temporary ones
    assert path.stat().st_ino != previous_checkpoint(path).stat().st_ino


def test_a_flipped_bit_is_seen(tmp_path):
    path = tmp_path / 'checkpoint.pth.tar'
    torch.manual_seed(0)
    state = {'model': {f'w{index}': torch.randn(40, 40) for index in range(9)}, 'epoch': 3}
    save_checkpoint(state, path)
    whole, seen = path.read_bytes(), 0
    for seed in range(200):
        path.write_bytes(whole)
        flip_a_bit(path, seed)
        try:
            assert_same(load_file(path, check=True), state)  # between the members there are bytes that mean nothing
        except UserError as error:
            assert str(error).startswith(f'{path}: ')
            seen += 1
    assert seen > 150


def overwrite(path, place):
    with open(path, 'r+b') as file:
        file.seek(place)
        file.write(b'some other bytes')


@pytest.mark.slow
@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(path.read_bytes()[:-1000]), lambda path: path.write_bytes(b''),
    lambda path: torch.save({'model': 3}, path), lambda path: overwrite(path, 200000), lambda path: path.unlink()],
    ids=['truncated', 'empty', 'of something else', 'overwritten', 'missing'])
def test_a_damaged_checkpoint_is_set_aside(run, path, tmp_path, capsys, damage):
    want = load_file(path)
    before = load_file(previous_checkpoint(path))
    assert (before['epoch'], before['step']) == (1, 2) and (want['epoch'], want['step']) == (2, 0)
    damage(path)
    gone = not path.exists()
    capsys.readouterr()
    assert run() == path
    said = capsys.readouterr().out
    assert str(path) in said and 'resuming from the previous checkpoint, checkpoint.pth.tar.previous' in said
    assert f'Resuming from {path}, after 1 epochs and 2 steps' in said
    assert (tmp_path / 'output' / 'small' / 'checkpoint.pth.tar.old-1').exists() != gone
    assert_same({**load_file(path), 'config': None}, {**want, 'config': None})  # which names the folder


@pytest.mark.slow
def test_without_a_whole_checkpoint_there_is_an_error(run, path, tmp_path, user_error):
    shutil.copy(path, tmp_path / 'whole')
    for file in (path, previous_checkpoint(path)):
        file.write_bytes(file.read_bytes()[:5000])
    line = user_error(run)
    assert f'{path}: damaged' in line and f'{previous_checkpoint(path)}: damaged' in line
    assert path.stat().st_size == previous_checkpoint(path).stat().st_size == 5000  # nothing was begun anew


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints_whole(run, path, user_error):
    before = {file: file.read_bytes() for file in (path, previous_checkpoint(path))}

    def with_a_full_disk():
        with largest_file(1 << 20):
            run('--override', epochs=3)
    line = user_error(with_a_full_disk)
    assert f'{path} could not be written (' in line and 'the earlier file is unchanged' in line
    assert {file: file.read_bytes() for file in before} == before
    assert not list(path.parent.glob('.*.tmp'))
    run('--override', epochs=3)
    assert load_file(path)['epoch'] == 3


def test_a_folder_in_the_place_of_the_checkpoint(run, tmp_path, user_error):
    path = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar'
    path.mkdir(parents=True)
    line = user_error(run)
    assert str(path) in line and path.is_dir()
