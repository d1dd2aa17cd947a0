"""Weights as other code stores them: NumPy's numbers beside them, prefixes of wrapped modules, dicts around them."""
import numpy as np
import pytest
import torch
from helpers.checks import assert_same, refusal
from helpers.stored import NETWORKS, weights_of

from evaluation.model_loading import query_weights, stored_network
from models.backbone_weights import backbone_weights, load_initial_weights
from models.factory import get_model
from utils.checkpoint import load_file, unwrapped

PREFIXES = ('module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.')
HOLDERS = ((), ('state_dict',), ('model',), ('model_state_dict',), ('model', 'state_dict'))


# NumPy


@pytest.mark.parametrize('value, wanted', [
    (np.float64(0.5), 0.5), (np.float32(1.5), 1.5), (np.float16(2), 2.0), (np.int64(-3), -3), (np.uint8(255), 255),
    (np.bool_(True), True), (np.str_('größe'), 'größe'), (np.bytes_(b'ab'), b'ab'), (np.complex64(1 + 2j), 1 + 2j)], ids=repr)
@pytest.mark.parametrize('core', ['core', '_core'])
def test_scalars(tmp_path, value, wanted, core):
    """Under the module names of NumPy 1 and 2."""
    path = tmp_path / 'checkpoint.pth.tar'
    torch.save({'model': {'w': torch.ones(2)}, 'best': [value]}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'cnumpy._core.multiarray\n', f'cnumpy.{core}.multiarray\n'.encode()))
    assert b'multiarray' in content
    found = load_file(path)['best'][0]
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize('array', [
    np.arange(6.).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.array([], np.float32), np.array(5), np.array(['a', 'bcd']),
    np.array([1, 2], '>i4'), np.zeros((0, 3), bool)], ids=lambda array: f'{array.dtype}{array.shape}')
def test_arrays(tmp_path, array):
    torch.save({'iou': array}, tmp_path / 'checkpoint.pth.tar')
    found = load_file(tmp_path / 'checkpoint.pth.tar')['iou']
    assert isinstance(found, np.ndarray) and np.array_equal(found, array) and found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder('=')


class Payload:
    def __reduce__(self):
        return print, ('code was run',)


@pytest.mark.parametrize('value', [
    np.array([1, Payload()], object), np.array([(1, 2.)], 'i4,f4'), np.datetime64('2020-01-01'), np.dtype('O'),
    np.random.default_rng(0), Payload(), np.array], ids=lambda value: type(value).__name__)
def test_what_is_no_plain_data_stays_refused(tmp_path, value, capsys):
    torch.save({'value': value}, tmp_path / 'checkpoint.pth.tar')
    refusal(load_file, tmp_path / 'checkpoint.pth.tar')
    assert 'code' not in capsys.readouterr().out


@pytest.mark.parametrize('size', [0, 7, 9, 80])
def test_contents_of_a_wrong_length(tmp_path, size):
    """The bytes must be those of the shape."""
    parts = np.ones(2).__reduce__()
    forged = type('Forged', (), {'__reduce__': lambda _: (*parts[:2], (*parts[2][:4], bytes(size)))})()
    torch.save({'value': forged}, tmp_path / 'checkpoint.pth.tar')
    refusal(load_file, tmp_path / 'checkpoint.pth.tar')


# Prefixes and holders


def wrapped(state, prefix, holders):
    content = {prefix + key: value for key, value in state.items()}
    for name in reversed(holders):
        content = {name: content, 'epoch': 3, 'optimizer': {}, 'best_iou': np.float64(0.5)}
    return content


@pytest.mark.parametrize('holders', HOLDERS, ids='.'.join)
@pytest.mark.parametrize('prefix', ['', *PREFIXES])
def test_only_the_prefix_is_another(prefix, holders):
    state = {'backbone.conv1.weight': torch.ones(1), 'decoder.4.bias': torch.zeros(2)}
    assert_same(unwrapped(wrapped(state, prefix, holders), 'file'), state)


def test_names_that_fall_together_or_differ_in_more():
    one, two = torch.ones(1), torch.zeros(1)
    assert set(unwrapped({'module.a': one, 'a': two}, 'f')) == {'module.a', 'a'}
    assert set(unwrapped({'module.encoder.a': one, 'model.b': one}, 'f')) == {'encoder.a', 'model.b'}
    assert set(unwrapped({'backbone._orig_mod.a': one, 'my_module.b': one}, 'f')) == {'backbone.a', 'my_module.b'}
    for content in ({'model': 3}, {'state_dict': None}, [1], 7, {'model': {'model': 'x'}}):
        assert refusal(unwrapped, content, 'f').startswith('f: not a weights file')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['linear', 'pretraining'])
@pytest.mark.parametrize('prefix, holders', [('module.', ()), ('', ('state_dict',)), ('module._orig_mod.', ('model',))])
def test_networks_of_every_kind(tmp_path, kind, prefix, holders):
    path = tmp_path / 'weights.pth'
    network = weights_of(NETWORKS[kind][0], path)
    torch.save(wrapped(network.state_dict(), prefix, holders), path)
    assert_same(dict(stored_network(path).state_dict()), dict(network.state_dict()))
    if kind == 'pretraining':
        for query in ('', 'model_q.'):  # the query network alone, or in the whole
            torch.save(wrapped({query + key: value for key, value in network.state_dict().items()}, prefix, holders), path)
            assert_same(query_weights(path), dict(network.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize('prefix, holders', [('', ()), ('module.', ('state_dict',)),
                                             ('_orig_mod.', ('model',))])
def test_initial_weights(tmp_path, prefix, holders):
    torch.manual_seed(0)
    network, path = get_model({'backbone': 'resnet18'}).backbone, tmp_path / 'weights.pth'
    state = dict(network.state_dict())
    plain = wrapped({**state, 'fc.bias': torch.zeros(3)}, prefix, holders)
    moco = wrapped({f'encoder_q.{key}': value for key, value in {**state, 'fc.0.bias': torch.zeros(3)}.items()}
                   | {'encoder_k.conv1.weight': torch.zeros(1), 'queue': torch.zeros(1)}, prefix, holders)
    for content, options in ((plain, {'state_dict': path}), (moco, {'pretraining': 'imagenet_moco', 'moco_state_dict': path})):
        torch.save(content, path)
        assert_same(backbone_weights(path, 'resnet18'), state)
        other = get_model({'backbone': 'resnet18'}).backbone
        assert load_initial_weights(other, 'resnet18', **options) == str(path)
        assert_same(dict(other.state_dict()), state)
