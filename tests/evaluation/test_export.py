"""segmentation/export.py: the ONNX file computes what the network does, and mistakes leave what was there. Networks of other
backbones, and without a saliency head, are in tests/project/test_timm_everywhere.py."""
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.stored import NETWORKS, weights_of

import export
from evaluation import onnx_export
from evaluation.model_loading import stored_network

SIZE = (64, 107)  # a grid of 8 x 14, on which the rate 12 of the ASPP sees more than its centre


def refusal(user_error, *arguments):
    return user_error(lambda: export.main(list(map(str, arguments))))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['linear', 'output_stride_32', 'pretraining'])
def test_the_file_computes_what_the_network_does(kind, tmp_path):
    p, outputs = NETWORKS[kind]
    network = weights_of(p, tmp_path / 'weights.pth.tar')
    arguments = ['--weights', str(tmp_path / 'weights.pth.tar'), '--out', str(tmp_path / 'new' / 'network.onnx')]
    stride = ['--output-stride', '32'] if kind == 'output_stride_32' else []
    export.main([*arguments, '--size', *map(str, SIZE), *stride])
    session = onnxruntime.InferenceSession(tmp_path / 'new' / 'network.onnx', providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == outputs
    for batch in (1, 3):
        images = torch.randn(batch, 3, *SIZE)
        with torch.no_grad():
            wanted = network(images)
        wanted = [tensor for tensor in (wanted if isinstance(wanted, tuple) else (wanted,)) if tensor is not None]
        for given, want in zip(session.run(None, {'images': images.numpy()}), wanted, strict=True):
            assert given.shape == want.shape and given.dtype == np.float32
            assert np.abs(given - want.numpy()).max() <= 1e-4 * want.abs().max()


def test_mistakes_leave_what_was_there(tmp_path, user_error, monkeypatch):
    weights, out = tmp_path / 'weights.pth.tar', tmp_path / 'network.onnx'
    out.write_text('of before')
    weights_of({'num_classes': 6}, weights)
    content = weights.read_bytes()
    assert 'nowhere.pth' in refusal(user_error, '--weights', tmp_path / 'nowhere.pth', '--out', out)
    torch.save({'fc.weight': torch.zeros(2, 2)}, tmp_path / 'other.pth')
    assert 'other.pth: neither' in refusal(user_error, '--weights', tmp_path / 'other.pth', '--out', out)
    assert '--size is 0 64' in refusal(user_error, '--weights', weights, '--out', out, '--size', 0, 64)
    assert 'is a folder' in refusal(user_error, '--weights', weights, '--out', tmp_path)
    assert 'is the file of the weights' in refusal(user_error, '--weights', weights, '--out', weights)
    for package in ('onnxscript', 'onnxruntime'):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert f'export.py needs the package {package}' in refusal(user_error, '--weights', weights, '--out', out)
    assert out.read_text() == 'of before' and weights.read_bytes() == content


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path, user_error, monkeypatch):
    weights, out = tmp_path / 'weights.pth.tar', tmp_path / 'network.onnx'
    weights_of({'num_classes': 2, 'head': 'none'}, weights)
    right = onnx_export.export_onnx(stored_network(weights).eval(), (64, 64))
    for change in 1, float('nan'):
        def wrong(network, size):
            network.classifier.bias.data += change  # noqa: B023 - after the export
            return right
        monkeypatch.setattr(onnx_export, 'export_onnx', wrong)
        assert f'{out} is not written' in refusal(user_error, '--weights', weights, '--out', out, '--size', 64, 64)
        assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize('kind, backbone', [*((kind, 'resnet18') for kind in NETWORKS), ('linear', 'resnet50'),
                                            ('pretraining', 'resnet50')])
def test_stored_networks(kind, backbone, tmp_path):
    p = {**NETWORKS[kind][0], 'backbone': backbone}
    network = weights_of(p, tmp_path / 'weights.pth.tar')
    stored = stored_network(tmp_path / 'weights.pth.tar', output_stride=32 if kind == 'output_stride_32' else None)
    assert type(stored) is type(network) and str(stored) == str(network)
    assert all(torch.equal(a, b) for a, b in zip(stored.state_dict().values(), network.state_dict().values(), strict=True))


@pytest.mark.slow
def test_other_forms_of_files(tmp_path):
    """A checkpoint of linear_finetune.py, and of a pre-training the bare state dict with key network and queue."""
    for kind in ('linear', 'pretraining'):
        network, file = weights_of(NETWORKS[kind][0], tmp_path / 'weights.pth.tar'), tmp_path / 'other.pth.tar'
        state = torch.load(tmp_path / 'weights.pth.tar', weights_only=True)
        if kind == 'linear':
            torch.save({'model': state, 'epoch': 3}, file)
        else:
            key = {name.replace('model_q', 'model_k'): torch.zeros_like(value) for name, value in state['model'].items()}
            torch.save({**key, **state['model'], 'module.queue': torch.zeros(5, 8)}, file)
        stored = stored_network(file).state_dict()
        assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
