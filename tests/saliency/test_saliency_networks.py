"""Saliency networks: small real ones, against the same computation in numpy, and what a user can do wrong."""
import importlib.util
import math
import os
import sys

import numpy as np
import pytest
import torch
from helpers.checks import refusal

onnxruntime = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
if importlib.util.find_spec('rembg') is None:  # its import takes seconds, and a minute the first time
    pytest.skip('could not import rembg', allow_module_level=True)

from onnx import TensorProto, helper  # noqa: E402

from models.backbones import IMAGENET  # noqa: E402
from saliency.estimators import REMBG  # noqa: E402
from saliency.onnx_formats import LOGITS, OUTPUTS, PRESETS, STRETCHED, OnnxFormat  # noqa: E402
from saliency.onnx_network import OnnxSaliency  # noqa: E402
from saliency.rembg_models import RembgSaliency  # noqa: E402
from utils.cli.packages import require  # noqa: E402
from utils.errors import UserError  # noqa: E402


@pytest.fixture
def image():
    """48 x 64, smooth, with red from 0 to 255."""
    y, x = np.mgrid[:48, :64]
    red = 127.5 + 127.5 * np.sin(y / 9) * np.cos(x / 11)
    red = (red - red.min()) / np.ptp(red) * 255
    return np.stack([red, 255 * y / 47, 255 * x / 63], axis=2).round().astype(np.uint8)


@pytest.fixture
def network(tmp_path):
    """Write an ONNX file: a 1 x 1 convolution of the normalised image and what `nodes` make of its output 'p'.

    By default the convolution undoes red's normalisation, so the output is red / 255; slope and offset act on that.
    """
    def write(size=('h', 'w'), kind=TensorProto.FLOAT, channels=3, slope=1.0, offset=0.0, nodes=(), constants=(),
              outputs=('p',), inputs=(), out_channels=1, batch=1, first='Conv'):
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        weight = np.zeros((out_channels, channels, 1, 1), dtype)
        weight[:, 0] = slope * IMAGENET[1][0]
        bias = np.full(out_channels, slope * IMAGENET[0][0] + offset, dtype)
        graph = helper.make_graph(
            [helper.make_node(first, ['x', 'weight', 'bias'] if first == 'Conv' else ['x'], ['p']), *nodes], 'red',
            [helper.make_tensor_value_info(name, kind, [batch, channels, *size]) for name in ('x', *inputs)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            [onnx.numpy_helper.from_array(weight, 'weight'), onnx.numpy_helper.from_array(bias, 'bias'), *constants])
        path = tmp_path / 'network.onnx'
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9), path)
        return path
    return write


def axes(*values):
    return onnx.numpy_helper.from_array(np.array(values, np.int64), 'axes')


def triangle(size, length):
    """length x size weights of a bilinear filter, which is as much wider as the result is smaller."""
    weights = np.zeros((length, size))
    scale = size / length
    for i in range(length):
        for j in range(size):
            weights[i, j] = max(0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def resized(values, height, width):
    return triangle(values.shape[0], height) @ values @ triangle(values.shape[1], width).T


def test_red_is_the_probability(network, image):
    probability = OnnxSaliency(network((48, 64)))(image)
    assert probability.shape == (48, 64) and probability.dtype == np.float32
    np.testing.assert_allclose(probability, image[..., 0] / 255, atol=1e-6)
    assert probability.min() >= 0 and probability.max() <= 1


@pytest.mark.parametrize(('size', 'inner'), [
    ((24, 40), (24, 40)), (('h', 'w'), (320, 320)), ((96, 'w'), (96, 320))], ids=['fixed', 'dynamic', 'one side'])
def test_sizes(network, image, size, inner):
    probability = OnnxSaliency(str(network(size)))(image)
    expected = resized(resized(image[..., 0] / 255, *inner), 48, 64)
    np.testing.assert_allclose(probability, expected, atol=2 / 255)  # the resized image is rounded twice


def test_float16(network, image):
    probability = OnnxSaliency(network((48, 64), TensorProto.FLOAT16))(image)
    assert probability.dtype == np.float32 and probability.max() <= 1
    np.testing.assert_allclose(probability, image[..., 0] / 255, atol=2e-3)


@pytest.mark.parametrize('removed', [(), (1,), (0, 1)], ids=str)
def test_output_of_half_the_size(network, image, removed):
    nodes = [helper.make_node('AveragePool', ['p'], ['half'], kernel_shape=[2, 2], strides=[2, 2])]
    if removed:
        nodes.append(helper.make_node('Squeeze', ['half', 'axes'], ['y']))
    path = network((48, 64), nodes=nodes, constants=[axes(*removed)] if removed else [],
                   outputs=('y' if removed else 'half', 'p'))
    half = image[..., 0].reshape(24, 2, 32, 2).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(OnnxSaliency(path)(image), resized(half, 48, 64), atol=1e-5)


def test_logits(network, image):
    path = network((48, 64), slope=6, offset=-3)
    probability = OnnxSaliency(path, OnnxFormat(output=LOGITS))(image)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(3 - 6 * (image[..., 0] / 255))), atol=1e-5)
    message = refusal(OnnxSaliency(path), image)
    assert message == f'{path}: its output is not a probability (it goes from -3 to 3): add --onnx_output logits, or stretched'
    path = network((48, 64), slope=1.001, offset=-0.0005)  # rounding, not logits
    assert (OnnxSaliency(path)(image).min(), OnnxSaliency(path)(image).max()) == (0, 1)


def test_stretched(network, image):
    path = network((48, 64), slope=6, offset=-3)
    probability = OnnxSaliency(path, OnnxFormat(output=STRETCHED))(image)
    np.testing.assert_allclose(probability, image[..., 0] / 255, atol=1e-6)
    assert (OnnxSaliency(network((48, 64), slope=0, offset=7), OnnxFormat(output=STRETCHED))(image) == 0).all()


def test_another_mean_and_deviation(network, image):
    """The network undoes ImageNet's for red; with others that is a slope and an offset of red, here below 0 and above 1."""
    form = OnnxFormat((0.5, 0.1, 0.2), (0.5, 3.0, 4.0), (12, 20), STRETCHED)
    values = OnnxSaliency(network((48, 64), slope=0.3, offset=0.2), OnnxFormat((0.5, 0.1, 0.2), (0.5, 3.0, 4.0)))(image)
    expected = (image[..., 0] / 255 - 0.5) / 0.5 * 0.3 * IMAGENET[1][0] + 0.3 * IMAGENET[0][0] + 0.2
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_allclose(OnnxSaliency(network(), form)(image),  # 12 x 20, as the file leaves it open
                               resized(_stretch(resized(image[..., 0] / 255, 12, 20)), 48, 64), atol=2 / 255)


def _stretch(values):
    return (values - values.min()) / np.ptp(values)


def test_presets():
    """As their authors run them: (value - mean) / deviation of values from 0 to 255."""
    def run(form, value):
        return [(value / 255 - mean) / deviation for mean, deviation in zip(form.mean, form.deviation, strict=True)]
    assert run(PRESETS['imgly'], 200) == pytest.approx([(200 - 128) / 256] * 3) and PRESETS['imgly'].size == (1024, 1024)
    assert run(PRESETS['isnet'], 200) == pytest.approx([200 / 255 - 0.5] * 3) and PRESETS['isnet'].size == (1024, 1024)
    for name, size, output in (('u2net', 320, STRETCHED), ('birefnet', 1024, LOGITS)):
        assert run(PRESETS[name], 124) == pytest.approx(
            [(124 / 255 - 0.485) / 0.229, (124 / 255 - 0.456) / 0.224, (124 / 255 - 0.406) / 0.225])
        assert PRESETS[name].size == (size, size) and PRESETS[name].output == output


@pytest.mark.parametrize(('options', 'words'), [
    ({'channels': 4}, "its input x is [1, 4, 'h', 'w'], not 1 x 3 x height x width"),
    ({'batch': 2}, "its input x is [2, 3, 'h', 'w']"),
    ({'size': ('h',), 'first': 'Relu'}, "its input x is [1, 3, 'h']"),
    ({'kind': TensorProto.DOUBLE, 'first': 'Relu'}, 'its input x is a tensor(double), not float32 or float16'),
    ({'inputs': ('size',)}, 'it has 2 inputs (x, size)'),
    ({'outputs': ('nothing',)}, 'onnxruntime could not load it')])
def test_another_network(network, options, words):
    path = network(**options)
    assert refusal(OnnxSaliency, path).startswith(f'{path}: {words}')


@pytest.mark.parametrize(('options', 'words'), [
    ({'out_channels': 2}, 'its first output is [1, 2, 320, 320], not one channel'),
    ({'nodes': [helper.make_node('Flatten', ['p'], ['f']), helper.make_node('Squeeze', ['f'], ['y'])], 'outputs': ('y',)},
     'its first output is [102400], not one channel'),
    ({'offset': math.nan}, 'its output is not finite'),
    ({'offset': math.inf}, 'its output is not finite'),
    ({'nodes': [helper.make_node('Reshape', ['p', 'axes'], ['y'])], 'constants': [axes(7, 11)], 'outputs': ('y',)},
     'the network failed on an image of 320 x 320 (')])
def test_another_output(network, image, capfd, options, words):
    path = network(**options)
    for output in OUTPUTS:
        assert refusal(OnnxSaliency(path, OnnxFormat(output=output)), image).startswith(f'{path}: {words}')
    assert capfd.readouterr().err == ''


def test_no_onnx_file(tmp_path, capfd):
    path = tmp_path / 'u2net.onnx'
    assert refusal(OnnxSaliency, path) == f'{path}: this ONNX file does not exist'
    path.write_bytes(b'<html>what a browser saves</html>')
    assert refusal(OnnxSaliency, path).startswith(f'{path}: onnxruntime could not load it as an ONNX network (')
    assert capfd.readouterr().err == ''


@pytest.mark.skipif('CUDAExecutionProvider' in onnxruntime.get_available_providers(), reason='this onnxruntime has CUDA')
def test_no_cuda(network):
    message = refusal(OnnxSaliency, network(), device=torch.device('cuda', 0))
    assert 'pip install onnxruntime-gpu==' in message


def test_missing_packages(network, monkeypatch):
    assert require('onnxruntime', 'this test') is onnxruntime
    calls = {'onnxruntime': lambda: OnnxSaliency(network()), 'rembg': lambda: RembgSaliency('u2net')}
    for package, call in calls.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert refusal(call) == (f'this saliency network needs the package {package}: '
                                     'pip install -r requirements-optional.txt')


def test_broken_package(monkeypatch, tmp_path):
    (tmp_path / 'broken_here.py').write_text('import not_installed_here')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert refusal(require, 'broken_here', 'this test') == (
        "this test needs the package broken_here (No module named 'not_installed_here'): "
        'pip install -r requirements-optional.txt')


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A folder in which rembg looks for its files, and no network."""
    monkeypatch.setenv('U2NET_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('MODEL_CHECKSUM_DISABLED', '1')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    for name in ('https_proxy', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / 'home'


@pytest.mark.parametrize('place', ['u2net.onnx', 'models/u2net/u2net.onnx'])
def test_rembg(home, network, place):
    """Of an image of U2-Net's own size: red from 40 to 240, which rembg stretches to 0 and 255."""
    y, x = np.mgrid[:320, :320]
    image = np.stack([40 + (y + x) * 200 / 638, np.full(y.shape, 255), y / 2], axis=2).round().astype(np.uint8)
    path = home / place
    path.parent.mkdir(parents=True)
    os.rename(network((320, 320)), path)
    threads = torch.get_num_threads()
    probability = RembgSaliency('u2net')(image)
    assert torch.get_num_threads() == threads
    assert probability.shape == (320, 320) and probability.dtype == np.float32
    np.testing.assert_allclose(probability, (image[..., 0] - 40.0) / 200, atol=1.01 / 255)  # rembg rounds down
    assert (probability.min(), probability.max()) == (0, 1)
    assert RembgSaliency('u2net')(image[:100, :50]).shape == (100, 50)


@pytest.mark.parametrize('name', REMBG)
def test_rembg_without_network(home, name):
    with pytest.raises(UserError) as caught:
        RembgSaliency(name)
    url, path = caught.value.__cause__.request.url, home / 'models' / name / f'{name}.onnx'
    message = caught.value.line()
    assert message == str(caught.value) and message.startswith(f'{url} could not be downloaded to {path} (')
    assert message.endswith(f'run again, or open {url} in a browser, save the file as {path} and run again')
    assert not any(entry.is_file() for entry in home.rglob('*'))


def test_rembg_mistakes(home):
    assert refusal(RembgSaliency, 'u3net') == ('u3net: unknown saliency network, available: u2net, isnet-general-use, '
                                               'birefnet-general')
    home.write_bytes(b'')  # where a folder should be
    assert f'could not be downloaded to {home}/models/u2net/u2net.onnx (' in refusal(RembgSaliency, 'u2net')
    home.unlink()
    home.mkdir()
    (home / 'u2net.onnx').write_bytes(b'<html>what a browser saves</html>')
    assert refusal(RembgSaliency, 'u2net').startswith(f'{home}/u2net.onnx: onnxruntime could not load it (')
