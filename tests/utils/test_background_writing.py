"""Checkpoints are written while the training goes on: in order, as the state was at the time, and errors are seen."""
import collections
import threading

import pytest
import torch
from helpers.checks import assert_same
from helpers.processes import largest_file

from utils.checkpoint import BackgroundWriter, load_file, save_checkpoint, snapshot
from utils.errors import UserError


def state_of(model, optimizer):
    return {'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'numbers': [1, (2, 'three')], 'nothing': None}


def test_a_snapshot_stays_as_it_was():
    model = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        optimizer.step()
    step()
    state = state_of(model, optimizer)
    kept = snapshot(state)
    assert_same(kept, state)
    assert kept['model'].__class__ is collections.OrderedDict and kept['model']._metadata == model.state_dict()._metadata
    assert kept['model']['weight'].stride() == model.weight.stride()
    before = model.weight.detach().clone()
    step()
    assert torch.equal(kept['model']['weight'], before) and not torch.equal(model.weight, before)
    momentum = optimizer.state_dict()['state'][0]['momentum_buffer']
    assert not torch.equal(kept['optimizer']['state'][0]['momentum_buffer'], momentum)


def test_what_is_written_is_the_moment_of_the_snapshot(tmp_path):
    """Also when the write begins long after the tensors have changed."""
    path, weights, may_write = tmp_path / 'checkpoint', torch.zeros(1000), threading.Event()
    with BackgroundWriter() as writer:
        for number in range(3):
            state = snapshot({'weights': weights, 'number': number})
            may_write.clear()
            writer.start(lambda state=state: may_write.wait(10) and save_checkpoint(state, path))
            weights += 1
            assert not path.exists() or load_file(path)['number'] == number - 1  # the one before is there before this begins
            may_write.set()
    last = load_file(path)
    assert last['number'] == 2 and (last['weights'] == 2).all()


def test_what_is_to_be_done_then_is_done_by_the_one_who_asked(tmp_path):
    path, seen, go_on = tmp_path / 'checkpoint', [], threading.Event()

    def note():
        seen.append((threading.current_thread(), path.exists()))
    with BackgroundWriter() as writer:
        writer.start(lambda: go_on.wait(10) and save_checkpoint({}, path), then=note)
        writer.check()
        assert not seen
        go_on.set()
        writer.wait()
        assert not seen
        writer.check()
        assert seen == [(threading.main_thread(), True)]
        writer.check()
        writer.finish()
    assert len(seen) == 1


def full_disk(path, state):
    with largest_file(1000):
        save_checkpoint(state, path)


@pytest.mark.parametrize('where', ['start', 'check', 'finish', 'end'])
def test_an_error_is_seen_by_the_next_call(tmp_path, where):
    path = tmp_path / 'checkpoint'
    save_checkpoint({'number': 1}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match='could not be written'), BackgroundWriter() as writer:
        writer.start(lambda: full_disk(path, {'weights': torch.zeros(10_000)}), then=pytest.fail)
        writer.wait()
        if where == 'start':
            writer.start(pytest.fail)
        elif where != 'end':
            getattr(writer, where)()
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]
    writer.finish()  # it is told once


@pytest.mark.parametrize('fails', [False, True])
def test_another_error_waits_for_the_write_and_is_the_one_that_is_told(tmp_path, fails):
    path, go_on = tmp_path / 'checkpoint', threading.Event()

    def write():
        go_on.wait(10)
        if fails:
            raise UserError('the disk is full')
        save_checkpoint({'number': 1}, path)
    with pytest.raises(KeyboardInterrupt), BackgroundWriter() as writer:
        writer.start(write)
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt
    assert path.exists() != fails
