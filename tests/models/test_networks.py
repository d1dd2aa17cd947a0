"""Keys, shapes and dilations of the networks, and where their initial weights come from."""
import copy
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import resnet18, resnet50
from torchvision.models.segmentation.deeplabv3 import ASPPPooling, DeepLabHead

from models import atrous
from models.atrous import AtrousConv2d
from models.backbone_weights import load_initial_weights
from models.backbones import build_backbone
from models.factory import get_model
from plain import plain_network
from utils.checkpoint import load_exactly
from utils.errors import UserError

LAYERS = {'resnet18': (2, 2, 2, 2), 'resnet50': (3, 4, 6, 3)}
CONVOLUTIONS = {'resnet18': 2, 'resnet50': 3}  # of a block


def norm(name):
    return [f'{name}.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]


def expected_keys(backbone):
    """The keys of the published files, spelt out from their rule: backbone and decoder without the last layer."""
    keys = ['backbone.conv1.weight', *norm('backbone.bn1')]
    for layer, blocks in enumerate(LAYERS[backbone], start=1):
        for block in range(blocks):
            prefix = f'backbone.layer{layer}.{block}'
            for i in range(1, CONVOLUTIONS[backbone] + 1):
                keys += [f'{prefix}.conv{i}.weight', *norm(f'{prefix}.bn{i}')]
            if block == 0 and (layer > 1 or backbone == 'resnet50'):
                keys += [f'{prefix}.downsample.0.weight', *norm(f'{prefix}.downsample.1')]
    for branch in range(4):
        keys += [f'decoder.0.convs.{branch}.0.weight', *norm(f'decoder.0.convs.{branch}.1')]
    keys += ['decoder.0.convs.4.1.weight', *norm('decoder.0.convs.4.2')]
    keys += ['decoder.0.project.0.weight', *norm('decoder.0.project.1')]
    return [*keys, 'decoder.1.weight', *norm('decoder.2')]


@pytest.mark.slow
@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_state_dict_keys(backbone):
    body = expected_keys(backbone)
    pretraining = get_model({'backbone': backbone, 'kmeans_eval': True}).state_dict()
    assert sorted(pretraining) == sorted([*body, 'head.weight', 'head.bias', 'classification_head.weight'])
    linear = get_model({'backbone': backbone}).state_dict()
    assert sorted(linear) == sorted([*body, 'decoder.4.weight', 'decoder.4.bias'])
    channels = {'resnet18': 512, 'resnet50': 2048}[backbone]
    assert pretraining['head.weight'].shape == (32, 256, 1, 1)
    assert pretraining['classification_head.weight'].shape == (1, 256, 1, 1)
    assert linear['decoder.4.weight'].shape == (21, 256, 1, 1)
    assert linear['decoder.0.convs.1.0.weight'].shape == (256, channels, 3, 3)
    assert linear['decoder.0.project.0.weight'].shape == (256, 1280, 1, 1)


def test_dilation_is_torchvisions():
    ours, theirs = build_backbone('resnet50', {}), resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    theirs = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.extra_repr() == theirs[name].extra_repr(), name


def test_dilation_of_resnet18():
    modules = dict(build_backbone('resnet18', {}).named_modules())
    dilations = {name: module.dilation[0] for name, module in modules.items() if re.fullmatch(r'layer[34].*conv.', name)}
    assert dilations == {'layer3.0.conv1': 1, 'layer3.0.conv2': 2, 'layer3.1.conv1': 2, 'layer3.1.conv2': 2,
                         'layer4.0.conv1': 2, 'layer4.0.conv2': 4, 'layer4.1.conv1': 4, 'layer4.1.conv2': 4}
    assert all(modules[name].padding == modules[name].dilation for name in dilations)
    assert all(modules[name].stride == (1, 1) for name in modules
               if re.fullmatch(r'layer[34].*(conv.|downsample.0)', name))


@pytest.mark.parametrize('size, dilated, grid', [((96, 96), True, (12, 12)), ((95, 130), True, (12, 17)),
                                                 ((96, 128), False, (3, 4))])
def test_output_sizes(size, dilated, grid):
    network = get_model({'backbone': 'resnet18', 'backbone_kwargs': {'dilated': dilated}, 'kmeans_eval': True,
                         'model_kwargs': {'ndim': 5}}).eval()
    with torch.no_grad():
        embeddings, saliency = network(torch.randn(2, 3, *size))
        assert embeddings.shape == (2, 5, *size) and saliency.shape == (2, *size)
        network.upsample = False
        embeddings, saliency = network(torch.randn(2, 3, *size))
        assert embeddings.shape == (2, 5, *grid) and saliency.shape == (2, *grid)


def test_image_pooling_trains_on_one_image_as_it_evaluates():
    network = get_model({'backbone': 'resnet18'})
    pooling = network.decoder[0].convs[-1]
    pooling[2].running_mean.fill_(0.3)
    features = torch.randn(1, 512, 4, 4)
    one = pooling.train()(features)
    assert torch.equal(one, pooling.eval()(features))
    two = pooling.train()(torch.cat([features, features + 1]))
    assert not torch.equal(two[:1], one) and pooling[2].running_mean[0] != 0.3


@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_image_pooling_keeps_the_layout_and_torchvisions_values(layout):
    """Of outputs and gradients: other branches' are added to them, which is slow in two layouts."""
    torch.manual_seed(0)
    ours = get_model({'backbone': 'resnet18'}).decoder[0].convs[-1].double().train()
    theirs = copy.deepcopy(ours)
    theirs.__class__ = ASPPPooling
    results = []
    for pooling in (ours, theirs):
        x = torch.rand(3, 512, 5, 7, generator=torch.manual_seed(1)).double().to(memory_format=layout).requires_grad_()
        arriving = []
        flow = x * 1
        flow.register_hook(arriving.append)
        output = pooling(flow)
        output.square().sum().backward()
        results += [arriving[0], output]
    (gradient, output), (want_gradient, want_output) = results[:2], results[2:]
    assert output.is_contiguous(memory_format=layout) and gradient.is_contiguous(memory_format=layout)
    assert torch.allclose(output, want_output) and torch.allclose(gradient, want_gradient)


@pytest.mark.slow
@pytest.mark.parametrize('size, dtype, tolerance', [
    *(((side, other), torch.float64, 1e-9) for side, other in ((5, 5), (12, 12), (12, 13), (24, 7), (40, 40))),
    ((12, 17), torch.float32, 1e-5), ((17, 12), torch.float32, 1e-5)])
def test_aspp_equals_torchvisions(size, dtype, tolerance):
    """Also on maps smaller than a dilation, where only the centre tap of a convolution is computed."""
    torch.manual_seed(0)
    ours, theirs = get_model({'backbone': 'resnet18'}).decoder.to(dtype), DeepLabHead(512, 21).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 512, *size, dtype=dtype)
    for decoder in (ours, theirs):
        decoder[0].project[3].p = 0.0
        decoder(features).square().mean().backward()
    with torch.no_grad():
        assert torch.allclose(ours(features), theirs(features), rtol=tolerance, atol=tolerance)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() <= 10 * tolerance * other.grad.abs().max().clamp_min(1e-6), name


def gradients(network, images):
    network.zero_grad()
    network(images).square().mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize('size', [(12, 17), (17, 12), (4, 37), (5, 5), (12, 12), (30, 30)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_atrous_convolutions_equal_plain_ones(size, dtype, tolerance):
    """Outputs, and gradients of weights and images; which of three ways a convolution takes depends on the map."""
    torch.manual_seed(0)
    for dilation in (1, 2, 4, 12, 24, 36):
        plain = torch.nn.Conv2d(6, 10, 3, padding=dilation, dilation=dilation, bias=False, dtype=dtype)
        ours = AtrousConv2d(copy.deepcopy(plain), dilation)
        images = torch.randn(3, 6, *size, dtype=dtype)
        pairs = []
        for convolution in (ours, plain):
            x = images.clone().requires_grad_()
            output = convolution(x)
            output.square().sum().backward()
            pairs.append((output, x.grad, convolution.weight.grad))
        for a, b in zip(*pairs, strict=True):
            assert (a - b).abs().max() <= tolerance * b.abs().max(), dilation


@pytest.mark.slow
@pytest.mark.parametrize('backbone, size', [('resnet18', (95, 130)), ('resnet50', (96, 96))])
def test_backbones_learn_as_with_plain_convolutions(backbone, size):
    ours = build_backbone(backbone, {}).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    got, want = gradients(ours, images), gradients(plain_network(copy.deepcopy(ours)), images)
    for name in want:
        assert (got[name] - want[name]).abs().max() <= 1e-10 * want[name].abs().max(), name


@pytest.mark.parametrize('size', [(7, 9), (28, 28), (13, 40)])
@pytest.mark.parametrize('dilation', [1, 4, 12])
def test_every_form_of_an_atrous_convolution_is_the_same(size, dilation):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, *size, generator=g).double(), torch.randn(5, 3, 3, 3, generator=g).double()
    results = {}
    for name, form in atrous.FORMS.items():
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = form(*leaves, dilation)
        output.square().sum().backward()
        results[name] = (output.detach(), *(leaf.grad for leaf in leaves))
    for got in results.values():
        for a, b in zip(got, results['convolution'], strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('form', list(atrous.FORMS))
def test_the_form_of_other_devices_is_one_constant(monkeypatch, form):
    """On tensors of a GPU that is not there."""
    monkeypatch.setattr(atrous, 'GPU_FORM', form)
    seen = []
    monkeypatch.setitem(atrous.FORMS, form, lambda *arguments: seen.append(form) or atrous.by_taps(*arguments))
    with FakeTensorMode(), torch.device('cuda'):
        module = AtrousConv2d(torch.nn.Conv2d(3, 5, 3, bias=False), 4)
        assert module(torch.empty(2, 3, 9, 11)).shape == (2, 5, 9, 11)
    assert seen == ([] if form == 'convolution' else [form])


def test_atrous_convolutions_in_bfloat16():
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(4, 5, 3, padding=4, dilation=4, bias=False)
    ours, images = AtrousConv2d(copy.deepcopy(plain), 4), torch.randn(1, 4, 6, 6)
    for convolution in (ours, plain):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            output = convolution(images)
        assert output.dtype == torch.bfloat16
        output.float().sum().backward()
    assert torch.allclose(ours.weight.grad, plain.weight.grad, rtol=2 ** -8)
    assert ours.weight.grad.dtype == torch.float32


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder with a ResNet file of torchvision as of 2017 (no counters) and a MoCo v2 file, of the same weights, which are
    the second value."""
    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(1)
    state = {key: torch.randn_like(value) for key, value in resnet18(weights=None).state_dict().items()
             if not key.endswith('num_batches_tracked')}
    torch.save(state, folder / 'resnet18-old.pth')
    full = resnet18(weights=None).state_dict() | state
    moco = {f'module.encoder_q.{key}': value for key, value in full.items() if not key.startswith('fc.')}
    moco |= {f'module.encoder_k.{key}': torch.zeros_like(value) for key, value in full.items()}
    moco |= {'module.encoder_q.fc.0.weight': torch.randn(512, 512), 'module.encoder_q.fc.2.bias': torch.randn(128),
             'module.queue': torch.randn(128, 64), 'module.queue_ptr': torch.zeros(1, dtype=torch.long)}
    torch.save({'epoch': 800, 'arch': 'resnet18', 'state_dict': moco, 'optimizer': {}}, folder / 'moco.pth.tar')
    return folder, state


@pytest.mark.parametrize('kwargs', [{'pretraining': 'imagenet_classification', 'state_dict': 'resnet18-old.pth'},
                                    {'pretraining': None, 'state_dict': 'resnet18-old.pth'},
                                    {'pretraining': 'imagenet_moco', 'moco_state_dict': 'moco.pth.tar'}])
def test_initial_weights(files, kwargs):
    folder, state = files
    kwargs = {key: str(folder / value) if key.endswith('state_dict') else value for key, value in kwargs.items()}
    network = get_model({'backbone': 'resnet18', 'backbone_kwargs': kwargs, 'kmeans_eval': True})
    for key, value in network.backbone.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize('change, named', [('too few', 'missing layer3.0.bn1.bias'), ('too many', 'left over layer5.weight'),
                                           ('other shape', 'of another shape conv1.weight')])
@pytest.mark.parametrize('kind', ['resnet', 'moco'])
def test_wrong_keys_are_named(files, tmp_path, change, named, kind):
    path = tmp_path / {'resnet': 'resnet18-old.pth', 'moco': 'moco.pth.tar'}[kind]
    content = torch.load(files[0] / path.name, weights_only=True)
    state, prefix = (content, '') if kind == 'resnet' else (content['state_dict'], 'module.encoder_q.')
    if change == 'too few':
        del state[f'{prefix}layer3.0.bn1.bias']
    elif change == 'too many':
        state[f'{prefix}layer5.weight'] = torch.zeros(1)
    else:
        state[f'{prefix}conv1.weight'] = torch.zeros(64, 3, 3, 3)
    torch.save(content, path)
    backbone = build_backbone('resnet18', {})
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    kwargs = {'pretraining': 'imagenet_moco', 'moco_state_dict': path} if kind == 'moco' else {'state_dict': path}
    with pytest.raises(UserError) as error:
        load_initial_weights(backbone, 'resnet18', **kwargs)
    assert str(path) in error.value.line() and named in error.value.line()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_load_exactly_wants_exactly_the_named_exceptions():
    module = torch.nn.Linear(2, 2)
    weight = torch.ones(2, 2)
    with pytest.raises(UserError, match='missing bias'):
        load_exactly(module, {'weight': weight}, 'f')
    load_exactly(module, {'weight': weight, 'extra': weight}, 'f', missing=['bias'], leftover=['extra'])
    assert torch.equal(module.weight, weight)
    with pytest.raises(UserError, match='missing extra'):
        load_exactly(module, {'weight': weight}, 'f', missing=['bias'], leftover=['extra'])
    with pytest.raises(UserError, match='should not be there: bias'):
        load_exactly(module, {'weight': weight, 'bias': torch.ones(2)}, 'f', missing=['bias'])
