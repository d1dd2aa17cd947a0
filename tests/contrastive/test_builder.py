"""One and several steps of the whole method against the plain version, and against published figures."""
import copy

import pytest
import torch
from helpers.plain_method import plain_step
from torch import nn

from contrastive.builder import ContrastiveModel
from gpu import golden
from plain import plain_network


def build(backbone='resnet18', freeze=False, dtype=torch.float32, loss='fused', **changes):
    torch.manual_seed(0)
    model = ContrastiveModel({
        'backbone': backbone, 'backbone_kwargs': {'dilated': changes.pop('dilated', True), 'pretraining': None},
        'head': 'deeplab', 'model_kwargs': {'ndim': 16, 'head': 'linear', 'upsample': True,
                                            'use_classification_head': True} | changes,
        'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 6, 'loss': loss}, 'freeze_layers': freeze})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():  # a key network that differs from the query's, as it does in the middle of a run
        for parameter, query in zip(model.model_k.parameters(), model.model_q.parameters(), strict=True):
            if query.requires_grad:
                parameter.add_(0.1 * parameter.std(correction=0).clamp_min(0.1) * torch.randn_like(parameter))
    return model.to(dtype).train()


def batch(images=3, size=40, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    im_q, im_k = torch.randn(2, images, 3, size, size, generator=g, dtype=dtype)
    sal_q, sal_k = torch.zeros(2, images, size, size, dtype=torch.long)
    for i in range(images):
        sal_q[i, 5:20 + 4 * i, 3:25], sal_k[i, 10:30, 8:12 + 7 * i] = 1, 1
    return im_q, im_k, sal_q, sal_k


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9, weight_decay=1e-4)


def take_steps(model, step, steps, dtype):
    optimizer, results = sgd(model), []
    for number in range(steps):
        output = step(*batch(dtype=dtype, seed=number))
        optimizer.zero_grad()
        output['loss'].backward()
        optimizer.step()
        results.append({name: value.item() for name, value in output.items()})
    return results


@pytest.mark.slow
@pytest.mark.parametrize('backbone, freeze, dtype, steps, tolerance', [
    ('resnet18', False, torch.float32, 1, 1e-5), ('resnet18', False, torch.float64, 3, 1e-9),
    ('resnet50', True, torch.float64, 1, 1e-9)])
def test_steps_equal_the_plain_version(backbone, freeze, dtype, steps, tolerance):
    fast = build(backbone, freeze, dtype)
    plain = plain_network(copy.deepcopy(fast))
    start = copy.deepcopy(fast.state_dict())
    got = take_steps(fast, fast, steps, dtype)
    want = take_steps(plain, lambda *inputs: plain_step(plain, *inputs), steps, dtype)
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=tolerance)
    for name, value in plain.state_dict().items():  # weights after the step, key weights, statistics, queue, pointer
        scale = value.double().abs().max().clamp_min(1e-3)
        assert (fast.state_dict()[name].double() - value.double()).abs().max() <= 10 * tolerance * scale, name
    for name, value in start.items():  # frozen tensors are bit-equal, all others have moved
        in_trunk = name.split('.')[1:3] in (['backbone', part] for part in ('conv1', 'bn1', 'layer1', 'layer2'))
        if name != 'queue':
            assert torch.equal(value, fast.state_dict()[name]) == (freeze and in_trunk), name


@pytest.mark.slow
@pytest.mark.parametrize('height, width', [(95, 130), (96, 160)])
def test_a_step_of_other_sizes_equals_the_plain_version(height, width):
    """In float32: for example maps of 12 x 17, on which some dilations reach over one side only."""
    fast = build('resnet18', False, torch.float32)
    plain = plain_network(copy.deepcopy(fast))
    images = torch.randn(2, 3, 3, height, width, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    for i in range(3):
        masks[:, i, 3 * i:40 + 9 * i, 7:50 + 11 * i] = 1
    losses = fast(*images, *masks), plain_step(plain, *images, *masks)
    assert {key: value.item() for key, value in losses[0].items()} == pytest.approx(
        {key: value.item() for key, value in losses[1].items()}, rel=1e-5)
    for output in losses:
        output['loss'].backward()
    for (name, mine), other in zip(fast.model_q.named_parameters(), plain.model_q.parameters(), strict=True):
        scale = other.grad.norm().clamp_min(1e-3)  # some are sums that cancel, before batch norm
        assert (mine.grad - other.grad).norm() <= 1e-4 * scale, name
    assert torch.allclose(fast.queue, plain.queue, atol=1e-5)


def test_frozen_layers_build_no_graph():
    model = build(freeze=True)
    outputs = []
    for layer in (model.model_q.backbone.layer2, model.model_q.backbone.layer3):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(*batch())['loss'].backward()
    assert outputs[0].grad_fn is None and outputs[1].grad_fn is not None
    assert all(p.grad is None for p in model.model_q.backbone.layer2.parameters())
    assert all(p.grad is not None for p in model.model_q.backbone.layer3.parameters())
    assert not any(p.requires_grad for p in model.model_k.parameters())


@pytest.mark.slow
def test_the_graph_that_is_not_built_changes_no_gradient():
    """Of the layers that learn, whether or not those below build a graph; in float32."""
    model = build(freeze=True)
    images, masks = torch.randn(2, 3, 3, 95, 130), torch.zeros(2, 3, 95, 130, dtype=torch.uint8)
    masks[:, :, 20:70, 30:90] = 1
    gradients = []
    for graph in (False, True):
        copied = copy.deepcopy(model)
        if graph:
            copied.model_q.backbone.requires_grad_(True)
        copied(*images, *masks)['loss'].backward()
        gradients.append({name: parameter.grad for name, parameter in copied.model_q.named_parameters()})
    assert gradients[0]['backbone.conv1.weight'] is None and gradients[1]['backbone.conv1.weight'].abs().max() > 0
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert (gradient - gradients[1][name]).norm() <= 1e-5 * gradient.norm().clamp_min(1e-3), name


def test_train_keeps_frozen_layers_in_eval_mode():
    model = build(freeze=True).eval().train()
    for network in (model.model_q, model.model_k):
        assert not network.backbone.bn1.training and not network.backbone.layer2[0].bn1.training
        assert network.backbone.layer3.training and network.decoder.training


@pytest.mark.slow
@pytest.mark.parametrize('change', [{'upsample': False}, {'use_classification_head': False}, {'dilated': False}])
def test_other_networks_equal_the_plain_version(change):
    fast = build(dtype=torch.float64, **change)
    plain = copy.deepcopy(fast)
    inputs = batch(size=64, dtype=torch.float64)
    if change == {'upsample': False}:
        inputs = (*inputs[:2], *(mask[:, ::8, ::8] for mask in inputs[2:]))
    got, want = fast(*inputs), plain_step(plain, *inputs)
    for name in want:
        assert got[name].item() == pytest.approx(want[name].item(), rel=1e-9)


def test_a_batch_without_object_pixels_is_finite():
    model = build()
    im_q, im_k, sal_q, sal_k = batch()
    output = model(im_q, im_k, torch.zeros_like(sal_q), torch.zeros_like(sal_k))
    output['loss'].backward()
    assert all(torch.isfinite(value) for value in output.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.queue).all()


def test_a_batch_of_one_image():
    model = build()
    output = model(*batch(images=1))
    output['loss'].backward()
    assert all(torch.isfinite(value) for value in output.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize('loss', ['fused', 'plain'])
def test_autocast_leaves_losses_in_float32(loss):
    model = build(loss=loss)
    im_q, im_k, sal_q, sal_k = batch()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = model(im_q, im_k, sal_q, sal_k)
        q = model.model_q.grid(im_q)[0]
        inside = model.step_losses(q, None, sal_q, model.prototypes(q, sal_k))
    outside = model.step_losses(q.float(), None, sal_q, model.prototypes(q.float(), sal_k))
    assert q.dtype == torch.bfloat16 and {value.dtype for value in output.values()} == {torch.float32}
    assert all(torch.equal(inside[name], outside[name]) for name in inside)


@pytest.mark.slow
def test_the_plain_losses_train_alike():
    """The key moco_kwargs.loss changes how a step is computed, not what."""
    fused, plain = (build(dtype=torch.float64, loss=loss) for loss in ('fused', 'plain'))
    got, want = (take_steps(model, model, 2, torch.float64) for model in (fused, plain))
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for name, value in plain.state_dict().items():
        assert (fused.state_dict()[name].double() - value.double()).abs().max() <= 1e-8 * value.double().abs().max().clamp_min(
            1e-3), name


def test_queue_wraps_around():
    model = build()
    first = model.queue.clone()
    model(*batch())
    assert model.queue_ptr.item() == 3 and torch.equal(model.queue[:, 3:], first[:, 3:])
    model(*batch(seed=1))
    assert model.queue_ptr.item() == 0
    model(*batch(images=2))
    model(*batch(images=6))  # from column 2 on, over the end
    assert model.queue_ptr.item() == 2
    assert torch.allclose(model.queue.norm(dim=0), torch.ones(6))
    assert not (model.queue == first).all(0).any()


def test_wrong_sizes_are_refused():
    model = build()
    im_q, im_k, sal_q, sal_k = batch()
    with pytest.raises(ValueError, match='masks of shape'):
        model(im_q, im_k, sal_q[:, :20], sal_k)
    with pytest.raises(ValueError, match='multiple of the global batch 4'):
        model(*batch(images=4))


# Besides the figures that `make gpu` compares: of the outputs in eval mode, and the queue's first column
EVAL = {'resnet18': (-1.3887007930908872, 13.949073995722227, -3.2262401213602865),
        'resnet50': (57.05040605020268, 496.70869546338196, -684.4815099369101)}
COLUMN = {'resnet18': (0.04299, -0.214152, 0.006011, -0.128312, -0.060178, -0.130527),
          'resnet50': (-0.027606, -0.262917, 0.167809, 0.06443, -0.139486, -0.086162)}


@pytest.mark.slow
@pytest.mark.parametrize('backbone, tolerance, norm_tolerance', [('resnet18', 1e-5, 1e-3), ('resnet50', 1e-4, 2e-2)])
def test_published_figures(backbone, tolerance, norm_tolerance):
    want = golden.FIGURES[backbone]
    model = build(backbone, ndim=32)
    model.K, model.queue = 12, torch.empty(32, 12)
    golden.fill(model)
    inputs = golden.inputs()
    with torch.no_grad():
        embeddings, saliency = model.eval().model_q(inputs[0])
    assert (embeddings.mean().item(), embeddings.std().item(), saliency.mean().item()) == pytest.approx(
        EVAL[backbone], rel=tolerance)
    output = model.train()(*inputs)
    output['loss'].backward()
    for name in ('contrastive_loss', 'saliency_loss', 'acc1', 'acc5'):
        assert output[name].item() == pytest.approx(want[name], rel=tolerance)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(want['grad_norm'], rel=norm_tolerance)
    assert model.queue_ptr.item() == 3
    assert model.queue[:6, 0].tolist() == pytest.approx(COLUMN[backbone], abs=5e-5)
