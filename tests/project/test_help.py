"""The help of the scripts gives the value of each flag that has one when it is left out."""
import argparse
import importlib
from pathlib import Path

import pytest
from test_structure import SCRIPTS

SEEDS = {'main.py': 'otherwise drawn', 'linear_finetune.py': 'otherwise drawn', 'finetune.py': 'otherwise drawn',
         'kmeans.py': 'otherwise 1234', 'retrieval.py': 'otherwise 0', 'knn.py': 'otherwise 0', 'curve.py': 'default: 1234',
         'own_clusters.py': 'default: 1234'}


def flags_of(script, monkeypatch):
    """The actions of a script's parser, without running the script."""
    found = []

    def parse_args(parser, _):
        found.extend(parser._actions)
        raise InterruptedError
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    with pytest.raises(InterruptedError):
        importlib.import_module(script.stem).parse_arguments([])
    return found


@pytest.mark.parametrize('script', [script for script in SCRIPTS if script.name != 'demo.py'], ids=str)
def test_every_flag_has_its_default_in_the_help(monkeypatch, script: Path):
    flags = {flag.option_strings[0]: flag for flag in flags_of(script, monkeypatch) if not flag.required}
    del flags['-h']
    silent = [name for name, flag in flags.items() if flag.default is not None and 'default' not in (flag.help or '')]
    assert not silent
    assert SEEDS.get(script.name, '') in (flags['--seed'].help if '--seed' in flags else '')
