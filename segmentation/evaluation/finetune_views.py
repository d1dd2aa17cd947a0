"""The training views for the whole network, and the share of the labelled images for training (paper section 4)."""
import cv2
import numpy as np
import torch

from data.dataset import SegmentationDataset
from data.label_space import VOID
from evaluation.evaluation_images import resize_image, resize_labels
from evaluation.training_views import P_FLIP, TrainingViews
from utils.errors import UserError
from utils.storage.text import read_text

SCALE = (0.5, 2.0)  # of the side, as DeepLab has it (arXiv 1706.05587)


class FinetuneViews(TrainingViews):
    """Random crops at a random scale; pixels outside the image are black and void.

    At scale 1 an image has the network's resolution, as in the evaluation. A data set that is smaller than `batch_size` is
    repeated, each time with other views, until it fills a batch. Everything else is as in `TrainingViews`.
    """

    def __init__(self, dataset: SegmentationDataset, *arguments: object, batch_size: int, **named: object):
        super().__init__(dataset, *arguments, **named)  # type: ignore[arg-type]  # as they come
        self.length = max(len(dataset), batch_size)
        self.split_file = dataset.split_file

    def __len__(self):
        return self.length

    def view(self, rng: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = float(np.exp(rng.uniform(*np.log(SCALE))))
        flip, place = bool(rng.random() < P_FLIP), rng.random(2)
        return render_crop(image, labels, scale, flip, place, self.resolution)


def render_crop(image: np.ndarray, labels: np.ndarray, scale: float, flip: bool, place: np.ndarray,
                size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A view of (height, width) = size: the image resized to `scale` times that, then cropped, or padded to it.

    image: H x W x 3 uint8. labels: H x W uint8. place: two numbers in [0, 1), where in the room that there is, downwards and to
    the right, the crop begins (or the image, where it is the smaller one). Returns image and labels.
    """
    if flip:
        image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
    scaled = tuple(max(1, round(scale * side)) for side in size)
    image, labels = resize_image(image, scaled), resize_labels(labels, scaled)
    view, view_labels = np.zeros((*size, 3), np.uint8), np.full(size, VOID, np.uint8)
    source, target = [], []
    for full, side, share in zip(scaled, size, place, strict=True):
        first = int(share * (abs(full - side) + 1))
        length = min(full, side)
        inside, whole = slice(first, first + length), slice(0, length)
        source.append(inside if full > side else whole)
        target.append(whole if full > side else inside)
    view[tuple(target)], view_labels[tuple(target)] = image[tuple(source)], labels[tuple(source)]
    return view, view_labels


def labelled_ids(dataset: SegmentationDataset, share: float, seed: int, file: str | None = None) -> list[str]:
    """The ids for training, in the order of the split: those that `file` lists (one per line), or a share of all, drawn by the
    seed: of the same seed, a smaller share is part of a larger one.

    Raises `UserError` for a file that can't be read, and for an id that the split doesn't have.
    """
    if file:
        listed = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        unknown = sorted(set(listed) - set(dataset.ids))
        if unknown or not listed:
            raise UserError(f'{file}: ' + (f'{unknown[0]} is not in {dataset.split_file}' if unknown else 'it lists no ids'))
        chosen = set(listed)
    else:
        count = max(1, round(share * len(dataset)))
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        chosen = {dataset.ids[index] for index in order[:count].tolist()}
    return [name for name in dataset.ids if name in chosen]
