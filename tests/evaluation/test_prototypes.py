"""Masks and prototypes equal those of the plain order: upsample every embedding, weigh every pixel, sum, normalise.

Axes: B images, D embedding, h w the network's grid, H W its input's size.
"""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evaluation.prototypes import SALIENT, CompressedMask, object_weights, prototypes
from models.interpolation import interpolation_matrix, resize_transpose

SIZES = [((8, 8), (64, 64)), ((8, 7), (64, 56)), ((9, 5), (65, 37)), ((5, 11), (33, 87)), ((1, 1), (8, 8)), ((1, 6), (3, 41)),
         ((64, 64), (512, 512)), ((16, 16), (16, 16))]


def to_grid(weights, size):
    matrices = [interpolation_matrix(small, large, weights) for small, large in zip(size, weights.shape[1:], strict=True)]
    return resize_transpose(weights.unsqueeze(3), *matrices).squeeze(3)


def plain_prototypes(grid, logits, size, masks=None):
    """The method's steps, one image and one pixel weight at a time, summed in float64. Returns masks, B x D prototypes."""
    embeddings = F.interpolate(grid.double(), size=size, mode='bilinear', align_corners=False)
    logits = F.interpolate(logits.float().unsqueeze(1), size=size, mode='bilinear', align_corners=False).squeeze(1)
    inside, found = [], []
    for i in range(len(grid)):
        mask = logits[i] > 0.5 if masks is None else masks[i] == 1
        weight = logits[i] if masks is None else torch.ones_like(logits[i])
        total = (embeddings[i] * (weight.double() * mask)).sum((1, 2))
        inside.append(mask)
        found.append(total / max(total.norm(), 1e-12))
    return torch.stack(inside), torch.stack(found)


@pytest.mark.parametrize('grid_size, size', SIZES)
@pytest.mark.parametrize('given', [False, True])
def test_prototypes_equal_the_plain_order(grid_size, size, given):
    torch.manual_seed(sum(size))
    grid = torch.randn(3, 6, *grid_size) + 0.3
    logits = torch.randn(3, *grid_size) + 0.4
    masks = torch.randint(0, 2, (3, *size), dtype=torch.uint8) if given else None
    want_masks, want = plain_prototypes(grid, logits, size, masks)
    inside, weights = object_weights(logits, size, masks)
    assert inside.dtype == torch.bool and inside.shape == weights.shape == (3, *size)
    assert torch.equal(inside, want_masks)
    found = prototypes(grid, weights)
    assert found.dtype == torch.float32 and found.shape == (3, 6)
    assert torch.allclose(found.double(), want, atol=2e-5)
    # What float32 leaves is rounding: in float64 the weights brought to the grid give the same to 12 digits.
    exact = torch.einsum('bdhw,bhw->bd', grid.double(), to_grid(weights.double(), grid_size))
    straight = (F.interpolate(grid.double(), size=size, mode='bilinear') * weights.double().unsqueeze(1)).sum((2, 3))
    assert torch.allclose(exact, straight, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize('grid_size, size', SIZES)
def test_the_transpose_of_the_upsampling_keeps_sums_and_inner_products(grid_size, size):
    torch.manual_seed(0)
    grid, weights = torch.randn(2, *grid_size, dtype=torch.float64), torch.randn(2, *size, dtype=torch.float64)
    upsampled = F.interpolate(grid.unsqueeze(1), size=size, mode='bilinear', align_corners=False).squeeze(1)
    assert torch.allclose((upsampled * weights).sum((1, 2)), (grid * to_grid(weights, grid_size)).sum((1, 2)))
    assert torch.allclose(weights.sum((1, 2)), to_grid(weights, grid_size).sum((1, 2)))


def test_the_mask_is_strictly_above_a_logit_of_a_half():
    assert SALIENT == 0.5
    above, below = np.nextafter(np.float32(0.5), np.float32(1)), np.nextafter(np.float32(0.5), np.float32(0))
    logits = torch.tensor([[[0.5, above, below, 0.0, -3.0, 7.0, 0.6]]])
    masks, weights = object_weights(logits, (1, 7))
    assert masks.tolist() == [[[False, True, False, False, False, True, True]]]
    assert torch.equal(weights, torch.where(masks, logits, 0))


def test_negative_logits_are_out_and_the_others_weigh_by_their_logit():
    """By hand, two embeddings that stand at a right angle: logits 3 and 1 give (3, 1) / sqrt(10)."""
    grid = torch.zeros(1, 3, 2, 2)
    grid[0, 0, 0, 0] = grid[0, 1, 0, 1] = 1
    grid[0, 2, 1] = 100  # would outweigh the others
    masks, weights = object_weights(torch.tensor([[[3.0, 1.0], [-9.0, 0.5]]]), (2, 2))
    assert masks.tolist() == [[[True, True], [False, False]]]
    assert torch.allclose(prototypes(grid, weights), torch.tensor([[3, 1, 0]]) / 10 ** 0.5)


def test_given_masks_weigh_1_whatever_the_network_says():
    grid = torch.zeros(1, 2, 1, 3)
    grid[0, 0, 0, 0], grid[0, 1, 0, 1], grid[0, :, 0, 2] = 1, 1, 50
    given = torch.tensor([[[1, 1, 0]]], dtype=torch.uint8)
    for logits in (None, torch.tensor([[[-4.0, 8.0, 9.0]]])):
        masks, weights = object_weights(logits, (1, 3), given)
        assert masks.tolist() == [[[True, True, False]]] and weights.tolist() == [[[1, 1, 0]]]
        assert torch.allclose(prototypes(grid, weights), torch.full((1, 2), 0.5 ** 0.5))


def test_an_empty_mask_gives_a_zero_prototype_and_leaves_the_others_alone():
    torch.manual_seed(0)
    grid, logits = torch.randn(3, 4, 5, 6), torch.full((3, 5, 6), 2.0)
    logits[1] = 0.49
    masks, weights = object_weights(logits, (40, 48))
    found = prototypes(grid, weights)
    assert masks.flatten(1).all(1).tolist() == [True, False, True] and not masks[1].any()
    assert found[1].tolist() == [0] * 4
    assert torch.allclose(found[[0, 2]].norm(dim=1), torch.ones(2))
    for i in range(3):
        assert torch.allclose(found[i:i + 1], prototypes(grid[i:i + 1], weights[i:i + 1]), atol=1e-6)


def test_embeddings_are_not_normalised_before_the_sum():
    grid = torch.tensor([[[[1.0, 0.0]], [[0.0, 100.0]]]])
    _, weights = object_weights(torch.ones(1, 1, 2), (1, 2))
    assert torch.allclose(prototypes(grid, weights), torch.tensor([[1.0, 100.0]]) / 10001 ** 0.5)


def test_half_precision_outputs_are_summed_in_float32():
    torch.manual_seed(0)
    grid, logits = torch.randn(2, 4, 8, 8).bfloat16() + 1, torch.rand(2, 8, 8).bfloat16() + 1
    _, want = plain_prototypes(grid, logits, (64, 64))
    _, weights = object_weights(logits, (64, 64))
    assert weights.dtype == torch.float32
    assert torch.allclose(prototypes(grid, weights).double(), want, atol=1e-5)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (9, 1), (8, 8), (37, 65), (500, 375), (3, 1001)])
def test_compressed_masks_come_back(size):
    rng = np.random.default_rng(size)
    blob = np.zeros(size, np.uint8)
    blob[size[0] // 3:, :size[1] // 2 + 1] = 1
    for mask in (np.zeros(size, np.uint8), np.ones(size, np.uint8), rng.integers(0, 2, size).astype(np.uint8), blob):
        found = CompressedMask(mask).array()
        assert found.dtype == np.uint8 and np.array_equal(found, mask)


def test_compressed_masks_are_small():
    mask = np.zeros((512, 512), np.uint8)
    mask[100:300, 50:400] = 1
    assert len(CompressedMask(mask).data) < mask.size / 100
