"""The fused losses against the plain ones, against hand-computed values, and at the edges."""
import math

import pytest
import torch
from torch.nn import functional as F

from contrastive import fused_losses as fused
from contrastive import losses
from contrastive.fused_losses import contrastive_loss, mask_prototypes, saliency_loss


def example(batch=3, ndim=8, grid=(7, 7), size=(56, 56), queue=12, dtype=torch.float64, seed=0):
    """Grid embeddings, masks of very different areas, prototypes, queue."""
    g = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(batch, ndim, *grid, generator=g, dtype=dtype)
    mask = torch.zeros(batch, *size, dtype=torch.uint8)
    for i in range(batch):
        mask[i, 2:2 + (i + 1) * size[0] // (batch + 2), 1:1 + size[1] // (i + 2)] = 1
    unit = F.normalize(torch.randn(batch + queue, ndim, generator=g, dtype=dtype), dim=1)
    return embeddings, mask, unit[:batch], unit[batch:].t().contiguous()


SIZES = [{}, {'grid': (13, 9), 'size': (97, 66)}, {'grid': (12, 17), 'size': (95, 130)}, {'batch': 1, 'queue': 2},
         {'batch': 5, 'grid': (4, 4), 'size': (4, 4)}, {'batch': 2, 'ndim': 2, 'queue': 3}, {'queue': 300}, {'queue': 0}]


@pytest.mark.parametrize('shape', SIZES)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_contrastive_loss_equals_the_plain_one(shape, dtype, tolerance):
    grid, mask, prototypes, queue = example(dtype=dtype, **shape)
    lean, plain = grid.clone().requires_grad_(), grid.clone().requires_grad_()
    got = contrastive_loss(lean, mask, prototypes, queue, 0.5)
    want = losses.contrastive_loss(plain, mask, prototypes, queue, 0.5)
    got[0].backward()
    want[0].backward()
    for a, b in zip(got, want, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=tolerance)
    assert (lean.grad - plain.grad).abs().max() <= tolerance * plain.grad.abs().max()
    assert plain.grad.abs().max() > 0


@pytest.mark.parametrize('budget', [1, 1000])
def test_groups_and_chunks_change_nothing(monkeypatch, budget):
    grid, mask, prototypes, queue = example()
    whole = contrastive_loss(grid.requires_grad_(), mask, prototypes, queue, 0.5)
    gradient, = torch.autograd.grad(whole[0], grid)
    monkeypatch.setattr(fused, 'CHUNK_ELEMENTS', budget)
    parts = contrastive_loss(grid, mask, prototypes, queue, 0.5)
    assert torch.allclose(torch.autograd.grad(parts[0], grid)[0], gradient, rtol=1e-12, atol=1e-15)
    assert torch.allclose(torch.stack(parts), torch.stack(whole), rtol=1e-12)


@pytest.mark.parametrize('images', [1, 2, 9])
def test_all_pixels_with_weight_zero_outside_equal_the_masked_ones(monkeypatch, images):
    """The form that a GPU runs, in groups of images, in which the number of object pixels is never asked for."""
    grid, mask, prototypes, queue = example(batch=5)
    means = mask_prototypes(grid, mask)
    masked = contrastive_loss(grid.requires_grad_(), mask, prototypes, queue, 0.5)
    gradient, = torch.autograd.grad(masked[0], grid)
    monkeypatch.setattr(fused, '_chunks', lambda inside, rows: [slice(i, i + 500) for i in range(0, inside.shape[1], 500)])
    groups = [slice(start, min(start + images, len(mask))) for start in range(0, len(mask), images)]
    monkeypatch.setattr(fused, '_image_groups', lambda *_: groups)
    assert torch.allclose(mask_prototypes(grid, mask), means, rtol=1e-12)
    everywhere = contrastive_loss(grid, mask, prototypes, queue, 0.5)
    assert torch.allclose(torch.autograd.grad(everywhere[0], grid)[0], gradient, rtol=1e-12, atol=1e-15)
    assert torch.allclose(torch.stack(everywhere), torch.stack(masked), rtol=1e-12)


def test_gradient_is_that_of_finite_differences():
    grid, mask, prototypes, queue = example(batch=2, ndim=3, grid=(2, 3), size=(5, 6), queue=2)
    assert torch.autograd.gradcheck(lambda g: contrastive_loss(g, mask, prototypes, queue, 0.3)[0],
                                    grid.requires_grad_(), rtol=1e-6)


def test_small_temperatures_do_not_overflow():
    grid, mask, prototypes, queue = example(dtype=torch.float32)
    for temperature in (0.05, 0.005, 0.0005):
        got = contrastive_loss(grid, mask, prototypes, queue, temperature)[0]
        want = losses.contrastive_loss(grid, mask, prototypes, queue, temperature)
        assert math.isfinite(got) and got.item() == pytest.approx(want[0].item(), rel=1e-4)


@pytest.mark.parametrize('form', [fused, losses], ids=['fused', 'plain'])
def test_by_hand(form):
    """One image, all pixels equal to its prototype, one orthogonal queue column: -log(e^2 / (e^2 + 1))."""
    grid = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    prototype, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    loss, acc1, acc5 = form.contrastive_loss(grid, torch.ones(1, 4, 4), prototype, queue, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert not acc1.requires_grad and not acc5.requires_grad
    assert (acc1.item(), acc5.item()) == (100, 100)
    loss, acc1, acc5 = form.contrastive_loss(-grid, torch.ones(1, 4, 4), prototype, queue, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2)))
    assert (acc1.item(), acc5.item()) == (0, 100)


@pytest.mark.parametrize('form', [fused, losses], ids=['fused', 'plain'])
def test_no_object_at_all_is_zero_and_finite(form):
    grid, mask, prototypes, queue = example()
    loss, acc1, acc5 = form.contrastive_loss(grid.requires_grad_(), torch.zeros_like(mask), prototypes, queue, 0.5)
    loss.backward()
    assert (loss.item(), acc1.item(), acc5.item()) == (0, 0, 0)
    assert torch.equal(grid.grad, torch.zeros_like(grid))


def test_an_image_without_object_changes_nothing_but_the_columns():
    grid, mask, prototypes, queue = example()
    mask[1] = 0
    got = contrastive_loss(grid, mask, prototypes, queue, 0.5)
    want = losses.contrastive_loss(grid, mask, prototypes, queue, 0.5)
    assert torch.allclose(torch.stack(got), torch.stack(want), rtol=1e-10)


def test_results_do_not_depend_on_the_layout():
    """Bit for bit: processes that exchange grids get them in another layout than a single one has them in."""
    grid, mask, prototypes, queue = example(dtype=torch.float32, ndim=32)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = grid.to(memory_format=layout).requires_grad_()
        loss = contrastive_loss(leaf, mask, prototypes, queue, 0.5)[0]
        results.append((mask_prototypes(leaf.detach(), mask), loss, *torch.autograd.grad(loss, leaf)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('shape', SIZES)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_prototypes_equal_the_plain_ones(shape, dtype, tolerance):
    grid, mask, *_ = example(dtype=dtype, **shape)
    mask[0] = 0
    got = mask_prototypes(grid, mask)
    want = losses.mask_prototypes(grid, mask)
    assert (got - want).abs().max() <= tolerance
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    assert torch.equal(got, mask_prototypes(grid, mask * 255))


def test_saliency_loss_by_hand():
    """3 object pixels of 12, logits 0: each pixel's cross-entropy is log 2, weighted by 9/12 on objects and 3/12 elsewhere."""
    mask = torch.zeros(1, 3, 4, dtype=torch.long)
    mask[0, 0, :3] = 1
    loss = saliency_loss(torch.zeros(1, 3, 4), mask)
    assert loss.item() == pytest.approx(math.log(2) * (3 * 9 / 12 + 9 * 3 / 12) / 12)
    sure = torch.where(mask.bool(), 3.0, -2.0)
    want = (9 / 12 * 3 * math.log(1 + math.exp(-3)) + 3 / 12 * 9 * math.log(1 + math.exp(-2))) / 12
    assert saliency_loss(sure, mask).item() == pytest.approx(want)
    assert saliency_loss(sure, mask * 0).isfinite() and saliency_loss(sure, mask * 0 + 1).isfinite()


@pytest.mark.parametrize('form', [fused, losses], ids=['fused', 'plain'])
def test_class_weights_by_hand(form):
    """Two images, of 3 and of 1 object pixels: their pixels weigh 1 / ln(1.02 + 3/4) and 1 / ln(1.02 + 1/4)."""
    grid = torch.zeros(2, 2, 2, 2)
    grid[0, 0], grid[1, 1] = 5.0, 7.0                                   # unit vectors (1, 0) and (0, 1)
    mask = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]])
    prototypes, queue = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.zeros(2, 1)
    loss, acc1, acc5 = form.contrastive_loss(grid, mask, prototypes, queue, 1.0)
    first = math.log(math.exp(1) + math.exp(0.6) + 1) - 1
    second = math.log(1 + math.exp(0.8) + 1) - 0.8
    weights = [1 / math.log(1.02 + 3 / 4), 1 / math.log(1.02 + 1 / 4)]
    assert loss.item() == pytest.approx((3 * weights[0] * first + weights[1] * second) / (3 * weights[0] + weights[1]))
    assert (acc1.item(), acc5.item()) == (100, 100)
    assert torch.allclose(form.mask_prototypes(grid, mask), torch.eye(2))
    assert torch.equal(form.mask_prototypes(grid, mask * 0), torch.zeros(2, 2))
