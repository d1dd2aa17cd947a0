"""Segmentations of a split by a `LinearNetwork`, with or without CRF, and their score (paper section 4)."""
import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from data.label_space import LabelSpace
from evaluation.crf import CrfPool
from evaluation.evaluation_images import EvaluationImages, resize_labels
from evaluation.linear_probe import class_logits, frozen_features, predicted_classes
from evaluation.predictions import write_predictions
from models.networks import LinearNetwork
from utils.cli.progress import progress
from utils.parallel import distributed


def evaluate(network: LinearNetwork, loader: DataLoader, space: LabelSpace, output: str | Path, device: torch.device,
             precision: str, crf: bool = False, pictures: int | None = None) -> np.ndarray | None:
    """Segment images, write predictions/, visualization/ and contact_sheet.png below `output`, and score.

    loader: `split_loader` of `EvaluationImages`; all processes call this, each for its part. space: of the labels. pictures:
    how many (None: all). Returns the C x C confusion matrix of all images at their own size, or None where they have no
    labels.
    Raises `UserError` for unreadable files, labels that are no class, and a folder that can't be written.
    """
    network.eval()
    dataset, part = _images_of(loader).dataset, part_of(loader)
    with CrfPool(dataset) if crf else contextlib.nullcontext() as pool, distributed.watched():
        # Beside a GPU the processes of the CRF always have work. On a CPU they and the network would fight for the cores.
        ahead = 2 * pool.processes if pool and device.type != 'cpu' else 0
        predictions = segment(network, loader, device, precision, pool, ahead)
        return write_predictions(output, dataset, progress(predictions, 'CRF' if crf else 'Evaluation', len(part)),
                                 space, pictures, part=part)


def segment(network: LinearNetwork, loader: DataLoader, device: torch.device, precision: str, pool: CrfPool | None = None,
            ahead: int = 0) -> Iterator[np.ndarray]:
    """Predictions at the images' own size, H x W uint8 each, of this process's images in order.

    Without a `pool`: argmax at the network's resolution, then OpenCV nearest. With one, a `CrfPool`: CRF at the image's size;
    when the network goes on to the next batch, at most `ahead` images are still unfinished.
    """
    pending: deque[Future[np.ndarray]] = deque()
    index = part_of(loader).start
    for batch in loader:
        distributed.note(f'evaluation, image {batch["id"][0]}')
        grid = class_logits(network.classifier, frozen_features(network, batch['image'], device, precision), batch['id'])
        resolution = tuple(batch['image'].shape[1:3])
        if not pool:
            for size, prediction in zip(batch['size'], predicted_classes(grid, resolution), strict=True):
                yield resize_labels(prediction, size)
            continue
        for one in grid:
            pending.append(pool.submit(index, one, resolution))
            index += 1
        while len(pending) > ahead:
            yield pool.result(pending.popleft())
            distributed.note(f'evaluation, CRF, {len(pending)} images in work up to {batch["id"][-1]}')
    while pool and pending:
        yield pool.result(pending.popleft())


def _images_of(loader: DataLoader):
    assert isinstance(loader.dataset, EvaluationImages)
    return loader.dataset


def part_of(loader: DataLoader) -> range:
    """The range of images that a `split_loader` gives this process."""
    assert isinstance(loader.batch_sampler, BatchSampler) and isinstance(loader.batch_sampler.sampler, range)
    return loader.batch_sampler.sampler
