"""Converts images and annotations of COCO JSON to a folder of this project's layout, and checks each on the way.

Axis legend: H W space.
"""
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from data.decoding import JPEG_START, exif_turn, read_image, read_photograph
from data.files import SIDEWAYS, size_text
from data.instances import consecutive, write_instances
from data.label_space import VOID
from data.new_data_set import TRAINAUG, VAL, encode_jpeg, validation_ids, write_classes, write_image, write_labels, write_splits
from devkit.coco import BACKGROUND, CocoFile, CocoImage
from devkit.coco_masks import mask_of
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel.threads import in_threads

Split = tuple[CocoFile, Path, Mapping[int, int]]  # annotations, folder of the images, class of each category


def choose_images(files: Mapping[str, Split], fraction: float, keep: bool) -> tuple[dict[str, list[CocoImage]], int]:
    """The images of `trainaug` and `val`, by id, and how many have no annotation of any class.

    files: one for each split, or one for `trainaug` alone, of whose images the share `fraction` goes to `val`.
    keep: whether images without annotation stay, as background. Raises `UserError` if no image is left for training, and for an
    image in both splits.
    """
    splits, without = {}, 0
    for split, (file, _, numbers) in files.items():
        annotated = [image for image in file.images if any(item.category in numbers for item in image.annotations)]
        without += len(file.images) - len(annotated)
        splits[split] = sorted(file.images if keep else annotated, key=lambda image: image.id)
    if VAL not in splits:
        held_out = validation_ids([image.id for image in splits[TRAINAUG]], fraction)
        splits[VAL] = [image for image in splits[TRAINAUG] if image.id in held_out]
        splits[TRAINAUG] = [image for image in splits[TRAINAUG] if image.id not in held_out]
    for split in (TRAINAUG, VAL):
        if not splits[split] and (split == TRAINAUG or VAL in files):
            source = files.get(split, files[TRAINAUG])[0].path
            raise UserError(f'{source}: no image with annotations is left for {split}: annotate more, or lower --val_fraction')
    both = {image.id for image in splits[TRAINAUG]} & {image.id for image in splits[VAL]}
    if both:
        raise UserError(f'{files[VAL][0].path}: the image {min(both)} is in both splits: name each in one of them')
    return splits, without


def convert_coco(files: Mapping[str, Split], splits: Mapping[str, Sequence[CocoImage]], classes: Sequence[str], root: Path,
                 masks: str, void_crowds: bool = True) -> Counter[str]:
    """Write images, labels, masks, instances, lists and class names into the folder `root`, which is there and empty.

    files, splits: as in `choose_images`. classes: names, without background. masks: the name of the masks.
    void_crowds: whether crowds are void; False: objects like all others.
    Labels are H x W uint8: 0 background, 1, 2, ... classes, 255 void. Where objects overlap, the smaller is in front. Masks and
    instances have the objects, not what is void.
    Returns counts. Raises `UserError` for the first image with a fault, in the order of the splits.
    """
    write_classes(root, (BACKGROUND, *classes))
    write_splits(root, {split: [image.id for image in images] for split, images in splits.items() if images})

    def convert_image(item: tuple[str, CocoImage]):
        split, image = item
        file, folder, numbers = files.get(split, files[TRAINAUG])
        content, size, counts = _read_image(image, folder)
        write_image(root, image.id, content)
        labels, instances, objects = draw(image, size, numbers, file.path, void_crowds)
        write_labels(root, split, image.id, labels)
        path = root / f'instances_{masks}' / f'{image.id}.png'
        write_instances(path, instances)
        path = root / f'saliency_{masks}' / f'{image.id}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode('.png', (instances > 0).astype(np.uint8) * 255)[1].tobytes())
        return counts + objects

    work = [(split, image) for split, images in splits.items() for image in images]
    found = sum(progress(in_threads(convert_image, work), 'Images', len(work)), Counter[str]())
    return found + Counter({split: len(images) for split, images in splits.items()} | {'images': len(work)})


def draw(image: CocoImage, size: tuple[int, int], numbers: Mapping[int, int], source: Path,
         void_crowds: bool) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Labels, H x W uint8, instances, H x W int32, numbered in the order of the annotations, and counts of an image.

    numbers: the class of each category; the others are left out. source: the JSON, for messages.
    """
    counts, labels, instances = Counter[str](), np.zeros(size, np.uint8), np.zeros(size, np.int32)
    objects: list[tuple[int, int, int, np.ndarray]] = []
    for number, item in enumerate(image.annotations, 1):
        if item.category not in numbers:
            continue
        try:
            mask = mask_of(item.segmentation, *size)
        except ValueError as error:
            raise UserError(f'{source}: {item.name}, of {image.path.name}, {error}: correct or remove it') from error
        if item.crowd and void_crowds:
            counts['crowds'] += 1
            labels[mask] = VOID
        else:
            objects.append((-int(mask.sum()), number, numbers[item.category], mask))
    for _, number, label, mask in sorted(objects, key=lambda item: item[:2]):  # large ones first
        labels[mask], instances[mask] = label, number
    seen = len(np.unique(instances[instances > 0]))
    return labels, consecutive(instances), counts + Counter(objects=seen, hidden=len(objects) - seen)


def _read_image(image: CocoImage, folder: Path) -> tuple[bytes, tuple[int, int], Counter[str]]:
    """The JPEG of an image, its height and width, and counts. A JPEG is copied where its annotations are of the pixels as
    stored; other files are written as viewers show them."""
    if not os.path.isfile(image.path):
        raise UserError(f'{image.path} is missing, and is in the list of annotated images: --images {folder} is where its '
                        'path starts')
    stored = _is_jpeg(image.path)
    pixels = read_image(image.path) if stored else read_photograph(image.path)
    turned = stored and image.size == pixels.shape[1::-1] != pixels.shape[:2] and exif_turn(image.path) in SIDEWAYS
    if turned:  # as the annotating tool showed it
        pixels = read_photograph(image.path)
    if image.size and image.size != pixels.shape[:2]:
        raise UserError(f'{image.path} is {size_text(pixels)}, and its annotations are of {image.size[1]} x {image.size[0]}: '
                        'name the folder of the images that were annotated')
    content = image.path.read_bytes() if stored and not turned else encode_jpeg(pixels, image.path)
    height, width = pixels.shape[:2]
    return content, (height, width), Counter(turned=int(turned), encoded=int(not stored))


def _is_jpeg(path: Path):
    try:
        with open(path, 'rb') as file:
            return file.read(len(JPEG_START)) == JPEG_START
    except OSError:  # whoever reads it will say so
        return False
