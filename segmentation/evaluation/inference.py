"""Segmentations of a split by a `LinearNetwork`, with or without CRF, and their score (paper section 4)."""
import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from data.contents import Contents, merged, report
from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from data.label_space import LabelSpace
from evaluation.crf import CrfPool
from evaluation.evaluation_images import EvaluationImages, resize_labels
from evaluation.linear_probe import class_logits, frozen_features, predicted_classes
from evaluation.predictions import write_predictions
from models.networks import LinearNetwork
from utils.cli.progress import progress
from utils.parallel import distributed

log = logging.getLogger('maskcontrast')

ONLY_BACKGROUND = ('Every pixel of all %d predictions is background. Usually the classifier was trained too short or with a '
                   'learning rate that is too low or too high, its labels are nearly all background, or its frozen weights '
                   'differ from those that it was trained on')


def evaluate(network: LinearNetwork, loader: DataLoader, space: LabelSpace, output: str | Path, device: torch.device,
             precision: str, crf: bool, pictures: int | None, told: bool = False) -> np.ndarray | None:
    """Segment images, write predictions/, visualization/ and contact_sheet.png below `output`, and score.

    loader: `split_loader` of `EvaluationImages`; all processes call this, each for its part. space: of the labels. pictures:
    how many (None: all). told: whether the summary of the images was logged before. Returns the C x C confusion matrix of all
    images at their own size, or None where they have no labels.
    Raises `UserError` for unreadable files, labels that name no class or all void, and a folder that can't be written.
    """
    network.eval()
    seen = Contents()
    with CrfPool(_images_of(loader).dataset) if crf else contextlib.nullcontext() as pool:
        # Beside a GPU the processes of the CRF always have work. On a CPU they and the network would fight for the cores.
        ahead = 2 * pool.processes if pool and device.type != 'cpu' else 0
        predictions = segment(network, loader, device, precision, pool, ahead, seen)
        return write_and_report(predictions, seen, loader, space, output, 'CRF' if crf else 'Evaluation', pictures, told)


def write_and_report(predictions: Iterable[np.ndarray], seen: Contents, loader: DataLoader, space: LabelSpace,
                     output: str | Path, title: str, pictures: int | None, told: bool = False) -> np.ndarray | None:
    """Write `predictions`, which add the images read to `seen`, score them, and log anything unusual. title: of the progress
    bar. Everything else is as in `evaluate`."""
    dataset, part, found = _images_of(loader).dataset, part_of(loader), _Found()
    with distributed.watched():
        looked_at = progress(found.look(predictions, space), title, len(part))
        confusion = write_predictions(output, dataset, looked_at, space, pictures, part=part)
        parts = distributed.gather_objects((seen, found.objects))
    if parts is not None:  # on rank 0
        seen = merged(part for part, _ in parts)
        if not told:
            _report(seen, dataset, space)
        if not any(objects for _, objects in parts) and space.background is not None:
            log.warning(ONLY_BACKGROUND, len(seen.images))
    return confusion


class _Found:
    """Records whether any prediction that passes through `look` has an object."""
    objects = False

    def look(self, predictions: Iterable[np.ndarray], space: LabelSpace) -> Iterator[np.ndarray]:
        for prediction in predictions:
            self.objects = self.objects or bool((prediction != space.outside).any())
            yield prediction


def _report(seen: Contents, dataset: SegmentationDataset | ImageFolder, space: LabelSpace):
    if isinstance(dataset, SegmentationDataset):
        report(seen, dataset, dataset.split, space)
    else:
        log.info('%s: %s', dataset.folder, seen.line())


def segment(network: LinearNetwork, loader: DataLoader, device: torch.device, precision: str, pool: CrfPool | None = None,
            ahead: int = 0, seen: Contents | None = None) -> Iterator[np.ndarray]:
    """Predictions at the images' own size, H x W uint8 each, of this process's images in order.

    Without a `pool`: argmax at the network's resolution, then OpenCV nearest. With one, a `CrfPool`: CRF at the image's size;
    when the network goes on to the next batch, at most `ahead` images are still unfinished. Images read are added to `seen`.
    """
    pending: deque[Future[np.ndarray]] = deque()
    seen = Contents() if seen is None else seen
    index = part_of(loader).start
    for batch in loader:
        distributed.note(f'evaluation, image {batch["id"][0]}')
        for contents in batch['contents']:
            seen.add(contents)
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
