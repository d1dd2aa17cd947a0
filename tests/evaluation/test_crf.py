"""The dense CRF against its plain order of operations, against brute force, and over real processes.

Axes: C classes, N pixels.
"""
import os
import signal
import time

import numpy as np
import pytest
import torch
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax
from torch.nn import functional as F

from data.dataset import SegmentationDataset
from evaluation.crf import CrfPool, dense_crf, refine
from utils.errors import UserError


@pytest.fixture
def dataset(shapes_root):
    return SegmentationDataset(shapes_root / 'Shapes', 'val', labels=True)


def noisy_grid(labels, classes=9, seed=0):
    """C x 8 x 7 logits that roughly know the labels."""
    small = torch.from_numpy(labels).long().clamp(max=classes - 1)[None, None].float()
    small = F.interpolate(small, (8, 7), mode='nearest')[0, 0].long()
    noise = torch.randn(classes, 8, 7, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(small, classes).permute(2, 0, 1) * 2.0 + noise


def plain_refine(image, grid, resolution):
    """Every step written out, with the library's own unary."""
    logits = F.interpolate(grid[None], resolution, mode='bilinear', align_corners=False)
    logits = F.interpolate(logits, image.shape[:2], mode='bilinear', align_corners=False)
    probabilities = torch.softmax(logits, 1)[0].numpy()
    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(grid))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities, clip=1e-5)))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image[:, :, ::-1].copy(), compat=4)
    return np.argmax(crf.inference(10), axis=0).reshape(image.shape[:2])


def brute_force(image, probabilities):
    """Mean field over all pairs of pixels: normalised N x N kernels, Potts, ten iterations. Returns C x H x W marginals."""
    classes, height, width = probabilities.shape
    y, x = (axis.ravel().astype(float) for axis in np.mgrid[:height, :width])
    colour = image.reshape(-1, 3).astype(float)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    kernels = ((3, np.exp(-distance / 2)),
               (4, np.exp(-distance / (2 * 67 ** 2) - ((colour[:, None] - colour) ** 2).sum(2) / (2 * 3 ** 2))))
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1)
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(10):
        energy = -unary
        for weight, kernel in kernels:
            norm = 1 / np.sqrt(kernel.sum(1) + 1e-20)
            energy = energy + weight * (((q * norm) @ kernel) * norm)
        q = np.exp(energy - energy.max(0))
        q /= q.sum(0)
    return q.reshape(probabilities.shape)


def test_equals_the_plain_order(dataset):
    changed = 0
    for index in range(3):
        sample = dataset[index]
        grid = noisy_grid(sample['labels'], seed=index)
        found = refine(sample['image'], grid, (40, 32))
        assert found.dtype == np.uint8 and found.shape == sample['labels'].shape
        assert np.array_equal(found, plain_refine(sample['image'], grid, (40, 32)))
        start = F.interpolate(F.interpolate(grid[None], (40, 32), mode='bilinear'), found.shape, mode='bilinear')
        changed += (start[0].argmax(0).numpy() != found).mean()
    assert changed > 0.05  # it does something


def test_agrees_with_brute_force():
    """The library approximates the kernels on a lattice; brute force does not."""
    rng = np.random.default_rng(0)
    image = np.full((24, 30, 3), 60, np.uint8)
    image[6:18, 8:22] = (180, 90, 40)
    image = (image + rng.integers(-2, 3, image.shape)).astype(np.uint8)
    truth = np.zeros((24, 30), int)
    truth[6:18, 8:22] = 1
    for seed in range(3):
        scores = np.random.default_rng(seed).normal(size=(3, 24, 30)) + 1.2 * np.eye(3)[truth].transpose(2, 0, 1)
        probabilities = (np.exp(scores) / np.exp(scores).sum(0)).astype(np.float32)
        before, found = probabilities.argmax(0), dense_crf(image, probabilities)
        plain = brute_force(image, probabilities).argmax(0)
        assert (found == plain).mean() > 0.99
        assert (before == truth).mean() < 0.85 < 0.97 < (found == truth).mean()


def test_colours_are_not_swapped_and_probabilities_are_clipped():
    image = np.zeros((12, 12, 3), np.uint8)
    image[:, 6:, 0] = 255  # red on the right
    probabilities = np.full((2, 12, 12), 0.5, np.float32)
    probabilities[:, 3, 3] = (1, 0)
    probabilities[:, 8, 9] = (0, 1)
    found = dense_crf(image, probabilities)  # log(0) would be infinite
    assert not found[:, :5].any() and found[:, 7:].all()


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_processes_make_no_difference(dataset, processes):
    grids = [noisy_grid(dataset[index]['labels'], seed=index) for index in range(len(dataset))]
    with CrfPool(dataset, processes) as pool:
        jobs = [pool.submit(index, grid, (40, 32)) for index, grid in enumerate(grids)]
        for index, job in enumerate(jobs):
            assert np.array_equal(pool.result(job), refine(dataset[index]['image'], grids[index], (40, 32)))
    assert CrfPool(dataset).processes == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_an_unreadable_image_and_a_killed_process(tmp_path, dataset):
    folder = tmp_path / 'Shapes'
    for part in ('images', 'sets'):
        (folder / part).mkdir(parents=True)
    (folder / 'sets' / 'val.txt').write_text('one\n')
    (folder / 'images' / 'one.jpg').write_bytes(b'no image')
    broken = SegmentationDataset(folder, 'val')
    with CrfPool(broken, 1) as pool, pytest.raises(UserError, match=f'^{folder}/images/one.jpg is not a complete image'):
        pool.result(pool.submit(0, torch.zeros(3, 4, 4), (32, 32)))
    for seconds in (0, 1):  # noticed by the job that waits, or by the one that is submitted
        with CrfPool(dataset, 1) as pool:
            pool.result(pool.submit(0, torch.zeros(3, 4, 4), (32, 32)))
            os.kill(next(iter(pool.pool._processes)), signal.SIGKILL)
            time.sleep(seconds)
            with pytest.raises(UserError, match='a process of the CRF was killed'):
                pool.result(pool.submit(1, torch.zeros(3, 4, 4), (32, 32)))
