"""The losses of object pixels only, against the plain ones, on a CPU, and on tensors of a GPU that is not there."""
import logging

import pytest
import torch
from test_losses import SIZES, example
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from contrastive import gathered_losses, losses
from contrastive.builder import ContrastiveModel
from contrastive.compilation import Compiled
from contrastive.gathered_losses import contrastive_loss, gathered, pixel_chunk
from contrastive.simulation import SimulatedProcesses
from utils.parallel.random_streams import RandomStreams

CPU = torch.device('cpu')


def counts(mask):
    return (mask != 0).flatten(1).sum(1).tolist()


def both(grid, mask, prototypes, queue, **known):
    """Values and gradients of the plain losses and of these."""
    results = []
    for form, options in ((losses, {}), (gathered_losses, known)):
        leaf = grid.clone().requires_grad_()
        values = form.contrastive_loss(leaf, mask, prototypes, queue, 0.5, **options)
        (3 * values[0]).backward()
        results.append((torch.stack(values).detach(), leaf.grad))
    return results


def assert_equal(results, tolerance):
    (plain, plain_gradient), (got, gradient) = results
    assert torch.allclose(got, plain, rtol=tolerance, atol=0)
    assert (gradient - plain_gradient).abs().max() <= tolerance * plain_gradient.abs().max()


@pytest.mark.parametrize('shape', SIZES)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_they_equal_the_plain_ones(shape, dtype, tolerance):
    grid, mask, *others = example(dtype=dtype, **shape)
    assert_equal(both(grid, mask, *others, object_pixels=counts(mask)), tolerance)
    assert_equal(both(grid, mask * 255, *others), tolerance)  # the counts are not known


@pytest.mark.parametrize('group, chunk', [(1, 1 << 25), (1 << 26, 1500), (2 * 8 * 56 * 56, 3000), (1, 17)])
def test_groups_and_chunks_change_nothing(monkeypatch, group, chunk):
    monkeypatch.setattr(gathered_losses, 'GROUP_ELEMENTS', group)
    monkeypatch.setattr(gathered_losses, 'CHUNK_ELEMENTS', chunk)
    grid, mask, *others = example(batch=5)
    mask[1] = 0
    assert_equal(both(grid, mask, *others, object_pixels=counts(mask)), 1e-10)


@pytest.mark.parametrize('empty', [(0,), (2,), (0, 1), (0, 1, 2)])
def test_images_without_an_object(empty):
    grid, mask, *others = example()
    mask[list(empty)] = 0
    results = both(grid, mask, *others, object_pixels=counts(mask))
    assert_equal(results, 1e-10)
    assert (results[1][0][0] == 0) == (len(empty) == 3)


def test_wrong_counts_are_refused_where_they_can_be_seen():
    grid, mask, *others = example()
    with pytest.raises(ValueError, match='2 counts of object pixels for 3 masks'):
        contrastive_loss(grid, mask, *others, 0.5, object_pixels=counts(mask)[:2])
    with pytest.raises(ValueError, match='but those of the masks'):
        contrastive_loss(grid, mask, *others, 0.5, object_pixels=[1, 2, 3])


def test_small_temperatures_do_not_overflow():
    grid, mask, prototypes, queue = example(dtype=torch.float32)
    for temperature in (0.05, 0.0005):
        got = contrastive_loss(grid, mask, prototypes, queue, temperature, object_pixels=counts(mask))[0]
        want = losses.contrastive_loss(grid, mask, prototypes, queue, temperature)[0]
        assert got.item() == pytest.approx(want.item(), rel=1e-4)


def test_what_is_gathered():
    inside = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)
    assert [part.tolist() for part in gathered(inside, 4, 3)] == [[1, 2, 4], [7, -1, -1]]
    assert gathered(inside & False, 0, 3) == ()


def test_on_a_gpu_nothing_is_asked_for():
    """Fake tensors have no values: whoever asked for one, or for a size that follows from values, would get an error."""
    grid, mask, prototypes, queue = example(batch=3, dtype=torch.float32)
    pixels = counts(mask)
    with FakeTensorMode():
        grid, prototypes, queue = (torch.empty(tensor.shape, device='cuda') for tensor in (grid, prototypes, queue))
        mask = torch.empty(mask.shape, device='cuda', dtype=torch.bool)
        columns = torch.cat([prototypes.t(), queue], dim=1)
        way, gathered_losses._compiled_chunk = gathered_losses._compiled_chunk, pixel_chunk
        try:
            sums, gradient = gathered_losses._loss_and_gradient(grid, mask, columns, pixels)
        finally:
            gathered_losses._compiled_chunk = way
        assert (sums.shape, gradient.shape) == ((3,), grid.shape) and sums.device.type == gradient.device.type == 'cuda'
        with pytest.raises(Exception, match='nonzero|data-dependent|Dynamic'):
            mask.nonzero()


def chunk_arguments():
    g = torch.Generator().manual_seed(0)
    columns = F.normalize(torch.randn(8, 20, generator=g), dim=0) / 0.5
    return torch.randn(30, 8, generator=g), torch.randint(3, (30,), generator=g), torch.rand(30, generator=g), columns


@pytest.mark.slow
def test_the_compiled_chunk_equals_the_eager_one():
    arguments = chunk_arguments()
    compiled = Compiled(pixel_chunk, 'it', backend='aot_eager', fullgraph=True)
    for got, want in zip(compiled(*arguments), pixel_chunk(*arguments), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)
    assert compiled.compiled
    torch.compiler.reset()


@pytest.mark.slow
def test_without_a_compiler_it_is_computed_all_the_same(caplog):
    def no_compiler(graph, inputs):
        raise RuntimeError('no C compiler\nand more lines')
    arguments = chunk_arguments()
    compiled = Compiled(pixel_chunk, 'the losses', backend=no_compiler)
    with caplog.at_level(logging.WARNING, 'maskcontrast'):
        for _ in range(2):
            for got, want in zip(compiled(*arguments), pixel_chunk(*arguments), strict=True):
                assert torch.equal(got, want)
    message, = [record.getMessage() for record in caplog.records]
    assert 'could not compile the losses' in message and 'no C compiler' in message and '\n' not in message
    torch.compiler.reset()


def steps(form, processes=1, known=True):
    """The output of a step, and its gradients."""
    torch.manual_seed(0)
    model = ContrastiveModel({'backbone': 'resnet18', 'model_kwargs': {'ndim': 8},
                              'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8, 'loss': form}}).train()
    step = SimulatedProcesses(model, RandomStreams(0, 0, processes, CPU)) if processes > 1 else model
    images = torch.randn(2, 4, 3, 32, 32)
    mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    for image in range(4):
        mask[image, 3:9 + 3 * image, 5:20] = 1
    output = step(*images, mask, mask.flip(2), counts(mask) if known else None)
    output['loss'].backward()
    return {**{name: value.detach() for name, value in output.items()},
            **{name: value.grad for name, value in model.named_parameters() if value.grad is not None}}


@pytest.mark.slow
@pytest.mark.parametrize('processes, known', [(1, True), (2, True), (1, False)])
def test_a_step_of_the_model(processes, known):
    plain, got = steps('plain', processes), steps('gathered', processes, known)
    assert plain.keys() == got.keys()
    for name, value in plain.items():
        assert (got[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name
