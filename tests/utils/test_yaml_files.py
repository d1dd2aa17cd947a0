"""Configuration files: what YAML 1.1 reads in another way than it looks, and paths with variables in them."""
import os
from pathlib import Path

import pytest
from helpers.checks import refusal

from utils.config import create_config, path_text, read_env
from utils.config.values import TREE
from utils.storage.yaml_files import parse_yaml


@pytest.fixture
def line_of(tmp_path):
    """line_of(text) is the line in which a YAML text is refused, without the name of its file."""
    def line(text):
        return refusal(parse_yaml, text, 'file.yml').removeprefix('file.yml: ')
    return line


@pytest.mark.parametrize('text, key, first, second', [
    ('epochs: 1\nseed: 3\nepochs: 2\n', 'epochs', 1, 3), ('epochs: 1\nepochs: 1\n', 'epochs', 1, 2),
    ('a:\n  b: 1\n  c: 2\n  b: 3\n', 'b', 2, 4), ('x: 1\na: {b: 1, c: 2,\n  b: 3}\n', 'b', 2, 3),
    ('{a: 1, a: 2}', 'a', 1, 1),
    ('a: [{b: 1}, {c: 1, "c": 2}]', 'c', 1, 1), ('a:\n- b: 1\n  b: 2\n', 'b', 2, 3), ('1: x\n2: y\n1: z\n', '1', 1, 3),
    ('base: &b {k: 1}\nother:\n  <<: *b\n  k: 2\n  k: 3\n', 'k', 4, 5)])
def test_a_key_that_is_there_twice(line_of, text, key, first, second):
    assert line_of(text) == f"the key '{key}' appears twice, in line {first} and in line {second}: remove one of them"


def test_keys_that_only_look_alike():
    assert parse_yaml('a: {b: 1}\nc: {b: 2}\n"1": x\n1: y\n', 'f') == {'a': {'b': 1}, 'c': {'b': 2}, '1': 'x', 1: 'y'}
    merged = parse_yaml('base: &b {k: 1, l: 1}\nother:\n  <<: *b\n  k: 2\nsame: *b\n', 'f')
    assert merged['other'] == {'k': 2, 'l': 1} and merged['same'] == {'k': 1, 'l': 1}


@pytest.mark.parametrize('text, words', [
    ('010', 'an octal number in YAML: write 10 or 8'), ('-012', 'write -12 or -10'),
    ('007', 'write 7,'),
    ('0_17', 'write 17 or 15'), ('1:30', 'a number in base 60 in YAML: write 90'), ('-1:30', 'write -90'),
    ('1:30.5', 'write 90.5'), ('20:30:40', 'write 73840')])
def test_numbers_that_mean_something_else(line_of, text, words):
    for before, after, number in (('', '', 1), ('a: 1\nb: ', '\n', 2), ('a:\n- {c: [1, ', ']}\n', 2)):
        line = line_of(before + text + after)
        assert line.startswith(f'{text} in line {number} is ') and words in line and f"'{text}' for a name" in line
    assert parse_yaml(f"a: '{text}'", 'f') == {'a': text}


def test_numbers_that_mean_what_they_look_like():
    assert parse_yaml('[0, 10, 1_000, 0x10, 0.5, -0, 0b11, 1.0e+3]', 'f') == [0, 10, 1000, 16, 0.5, 0, 3, 1000.0]


@pytest.mark.parametrize('changes, words', [
    ({'epochs': '010'}, 'epochs must be an integer'), ({'epochs': '0o10'}, 'epochs must be an integer'),
    ({'optimizer_kwargs.lr': '1,5'}, 'optimizer_kwargs.lr must be a number'),
    ({'train_db_name': False}, 'put quotes around'), ({'retrieval_kwargs.ignore_classes': ['bus', True]}, 'put quotes'),
    ({'seed': 'None'}, 'seed: write null instead of None'),
    ({'pretraining': 'None'}, 'pretraining: write null instead of None')])
def test_values_that_are_no_numbers_or_names(experiment, changes, words):
    arguments = experiment(changes)
    assert words in refusal(create_config, arguments[1], arguments[3])


# Paths


@pytest.fixture
def env_of(tmp_path, monkeypatch):
    """env_of(**keys) is what env.yml with these keys becomes."""
    monkeypatch.setenv('MC_ROOM', str(tmp_path / 'a room'))
    monkeypatch.setenv('MC_RELATIVE', 'below/here')
    monkeypatch.setenv('MC_EMPTY', '')
    monkeypatch.delenv('MC_UNSET', raising=False)

    def env(**keys):
        file = tmp_path / 'env.yml'
        file.write_text(''.join(f'{key}: "{value}"\n' for key, value in {'root_dir': '/out', **keys}.items()))
        return read_env(file)
    return env


def test_variables_in_every_path_key(env_of, experiment, tmp_path):
    room = tmp_path / 'a room'
    env = env_of(root_dir='$MC_ROOM/out', db_root='${MC_ROOM}/data', image_cache='~/cache')
    assert env == {'root_dir': f'{room}/out', 'db_root': f'{room}/data', 'image_cache': os.path.expanduser('~/cache')}
    assert env_of(root_dir='$MC_RELATIVE/x').root_dir == str(TREE / 'below' / 'here' / 'x')
    assert env_of(root_dir='/x/${MC_RELATIVE}y$MC_ROOM').root_dir == f'/x/below/herey{room}'
    arguments = experiment({f'backbone_kwargs.{key}': f'$MC_ROOM/{key}' for key in ('moco_state_dict', 'state_dict')}
                           | {'pretraining': '${MC_ROOM}/w'})
    p = create_config(arguments[1], arguments[3])
    assert p.backbone_kwargs.state_dict == f'{room}/state_dict' and p.pretraining == f'{room}/w'
    assert p.backbone_kwargs.moco_state_dict == f'{room}/moco_state_dict'


@pytest.mark.parametrize('value, words', [
    ('$MC_UNSET/x', 'the environment variable MC_UNSET, which is not set'),
    ('${MC_UNSET}', 'the environment variable MC_UNSET, which is not set'), ('/a/$MC_EMPTY/x', 'MC_EMPTY, which is empty'),
    ('${MC_UNSET:-/tmp}', 'MC_UNSET:-/tmp, which is not set'),
    ('~nobody-of-this-name/x', 'there is no user nobody-of-this-name')])
@pytest.mark.parametrize('key', ['root_dir', 'db_root', 'image_cache'])
def test_paths_that_lead_nowhere(env_of, tmp_path, key, value, words):
    line = refusal(env_of, **{key: value})
    assert line.startswith(f'{tmp_path / "env.yml"}: {key}: ') and value in line and words in line


@pytest.mark.parametrize('name', ['a$b', '$HOME', 'a${x}', '$$', 'x$'])
def test_a_dollar_in_a_name(env_of, name):
    assert env_of(root_dir=path_text(Path('/tmp') / name)).root_dir == f'/tmp/{name}'
