"""`keep_every`: numbered checkpoints of the query network, complete or absent, which change nothing else."""
import json

import pytest
import torch
from helpers.checks import assert_same, refusal
from helpers.experiments import PRETRAINING
from helpers.processes import largest_file

from contrastive.builder import ContrastiveModel
from contrastive.keeping import Keeper, in_half_precision
from evaluation.model_loading import query_weights
from main import main
from utils.checkpoint.kept import kept_checkpoints, kept_path


def load(path):
    return torch.load(path, weights_only=True)


def halves(state):
    """What is kept of a checkpoint's state dict."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()
            if key.startswith('module.model_q.')}


@pytest.mark.slow
def test_what_is_kept(experiment, tmp_path):
    main([*experiment({'epochs': 3, 'keep_every': 2}), '--amp', 'none'])
    main([*experiment({'epochs': 1}, name='without'), '--amp', 'none'])
    folder, without = (tmp_path / 'output' / name for name in ('small', 'without'))
    first = [json.loads((one / 'metrics.jsonl').read_text().splitlines()[0]) for one in (folder, without)]
    assert all(numbers.pop('images_per_second') for numbers in first) and first[0] == first[1]
    final = load(folder / 'checkpoint.pth.tar')
    assert final['config']['keep_every'] == 2 and not (without / 'checkpoints').exists()

    kept = kept_checkpoints(folder)
    assert [(epoch, path.name) for epoch, path in kept.items()] == [
        (0, 'epoch_0000.pth.tar'), (2, 'epoch_0002.pth.tar'), (3, 'epoch_0003.pth.tar')]
    for epoch, path in kept.items():
        state = load(path)
        assert (state['epoch'], state['steps'], state['seed']) == (epoch, 3 * epoch, 3)
        assert state['config']['backbone'] == PRETRAINING['backbone']
    assert_same(load(kept[3])['model'], halves(final['model']))
    torch.manual_seed(PRETRAINING['seed'])
    start = {f'module.{key}': value for key, value in ContrastiveModel(PRETRAINING).state_dict().items()}
    assert_same(load(kept[0])['model'], halves(start))
    floats = sum(value.numel() for value in halves(final['model']).values())
    assert kept[3].stat().st_size < 2.1 * floats  # two bytes each

    loaded = query_weights(kept[3])
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.values())
    for key, value in loaded.items():
        want = final['model'][f'module.model_q.{key}']
        assert torch.allclose(value.double(), want.double(), rtol=1e-3, atol=1e-7), key


@pytest.mark.slow
def test_what_a_kill_came_before_is_kept_by_the_next_start(experiment, tmp_path, monkeypatch):
    keep = Keeper.keep

    def killed(self, epoch, again=True):
        if epoch == 2:
            raise KeyboardInterrupt  # after the checkpoint of that epoch was written
        keep(self, epoch, again)

    arguments = [*experiment({'epochs': 3, 'keep_every': 1}), '--amp', 'none']
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, 'keep', killed)
        with pytest.raises(SystemExit):
            main(arguments)
    folder = tmp_path / 'output' / 'small'
    assert list(kept_checkpoints(folder)) == [0, 1]
    state = load(folder / 'checkpoint.pth.tar')
    assert state['epoch'] == 2
    before = {path: path.stat().st_mtime_ns for path in kept_checkpoints(folder).values()}
    (folder / 'checkpoints' / '.epoch_0002.pth.tar.1-1.tmp').write_text('what a kill inside a write leaves')
    main([*experiment({'epochs': 3, 'keep_every': 2}), '--amp', 'none'])  # it may change: no number depends on it
    assert [path.name for path in sorted((folder / 'checkpoints').iterdir())] == [
        f'epoch_000{epoch}.pth.tar' for epoch in range(4)]
    assert_same(load(kept_path(folder, 2))['model'], halves(state['model']))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_halves_hold_what_float16_can_hold():
    large = torch.tensor([1.0, 7e4])
    assert torch.equal(in_half_precision(large), large) and in_half_precision(large).dtype == torch.float32
    assert in_half_precision(large[:1]).dtype == torch.float16
    assert torch.equal(in_half_precision(torch.tensor(3)), torch.tensor(3))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    keeper = Keeper(torch.nn.Linear(200, 200), tmp_path, every=1, epochs=2, steps=3, extra={})
    keeper.keep(0)
    with largest_file(20_000):
        assert 'epoch_0001.pth.tar could not be written' in refusal(keeper.keep, 1)
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['epoch_0000.pth.tar']
    keeper.keep(1)
    assert list(kept_checkpoints(tmp_path)) == [0, 1]
    (tmp_path / 'checkpoints' / 'notes.txt').write_text('not a checkpoint')
    assert list(kept_checkpoints(tmp_path)) == [0, 1] and kept_checkpoints(tmp_path / 'nothing') == {}
