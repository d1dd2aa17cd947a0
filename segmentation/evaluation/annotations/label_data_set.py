"""Predictions as the labels of a data set, with which classifiers train."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.files import size_text
from data.label_space import VOID
from data.new_data_set import TRAINAUG, VAL, validation_ids, write_classes, write_image, write_labels, write_splits
from evaluation.annotations.labelled_images import LabelledImages
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel.threads import in_threads

BACKGROUND = 'background'


def write_label_data_set(images: LabelledImages, root: Path, fraction: float) -> tuple[int, int]:
    """Write images, labels, lists and class names into the empty folder `root`.

    fraction: share of the images that goes to `val`. Classes are background and the categories, in the order of their numbers.
    Labels are H x W uint8, 0 background, 1, 2, ... classes, 255 void. Returns the numbers of images of both splits.
    Raises `UserError` if no image is left for training, and for an image of another size than its labels.
    """
    numbers = sorted(images.categories.names)
    lookup = np.zeros(256, np.uint8)
    lookup[VOID] = VOID
    lookup[numbers] = np.arange(1, len(numbers) + 1)
    held_out = validation_ids(images.ids, fraction)
    splits: dict[str, Sequence[str]] = {TRAINAUG: [name for name in images.ids if name not in held_out], VAL: sorted(held_out)}
    if not splits[TRAINAUG]:
        raise UserError(f'{images.labels} holds {len(images)} images, so none is left for training: lower --val_fraction')
    write_classes(root, (BACKGROUND, *(images.categories.names[number] for number in numbers)))
    write_splits(root, {split: names for split, names in splits.items() if names})

    def write(item: tuple[str, str]):
        split, name = item
        labels, _ = images.read(name)
        content, size = images.jpeg(name)
        if size != labels.shape:
            raise UserError(f'{images.files[name]} is {size[1]} x {size[0]}, but its labels are {size_text(labels)}: run the '
                            'script that made them again')
        write_image(root, name, content)
        write_labels(root, split, name, lookup[labels])

    work = [(split, name) for split, names in splits.items() for name in names]
    for _ in progress(in_threads(write, work), 'Images', len(work)):
        pass
    return len(splits[TRAINAUG]), len(splits[VAL])
