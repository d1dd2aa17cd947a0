"""How far long work is, as lines in a file."""
from types import SimpleNamespace

from utils.cli import progress


def test_lines_say_how_long_it_still_takes(monkeypatch):
    monkeypatch.setattr(progress, 'EVERY', 0)
    clock = iter([0, *range(10, 200, 10)])
    monkeypatch.setattr(progress, 'time', SimpleNamespace(monotonic=lambda: next(clock)))  # of this module alone
    said = []
    monkeypatch.setattr(progress.log, 'info', lambda text, *values: said.append(text % values))
    assert list(progress.progress('abcd', 'Work')) == list('abcd')
    assert said == [
        'Work: 1/4, 00:30 left', 'Work: 2/4, 00:20 left', 'Work: 3/4, 00:10 left', 'Work: 4/4, 00:00 left']
