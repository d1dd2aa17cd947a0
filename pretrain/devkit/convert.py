"""Converts PASCAL VOC 2012 and SBD to a folder of this project's layout, and checks each file on the way.

Axis legend: H W space.
"""
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from data.decoding import read_image, read_labels
from data.label_space import VOC_CLASSES, VOID
from data.palette import save_labels
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel.threads import in_threads

OFFICIAL = {'trainaug': 10582, 'train': 1464, 'val': 1449}  # images
ID = re.compile(r'\w[\w.-]*')  # a file name's stem, so that no id leads out of a folder
WHAT_TO_DO = 'take this file from the official archive again'


def read_splits(voc: Path, sbd: Path) -> dict[str, list[str]]:
    """The ids of each split, a dict of lists: `trainaug` sorted, `train` and `val` in VOC's order.

    trainaug is the union of SBD's two lists and VOC's train, without VOC's val (10,582 images; the usual training set since
    Hariharan et al., ICCV 2011, and DeepLab). voc, sbd: folders as of `open_archives`.
    Raises `UserError` if a list can't be read, is empty, names an id twice or none, or VOC's two share one.
    """
    voc_lists = voc / 'ImageSets' / 'Segmentation'
    train, val = _ids(voc_lists / 'train.txt'), _ids(voc_lists / 'val.txt')
    both = sorted({*train} & {*val})
    if both:
        raise UserError(f'{voc_lists}: train.txt and val.txt both list {both[0]}: {WHAT_TO_DO}')
    trainaug = {*_ids(sbd / 'train.txt'), *_ids(sbd / 'val.txt'), *train} - {*val}
    return {'trainaug': sorted(trainaug), 'train': train, 'val': val}


def count_warnings(splits: Mapping[str, list[str]]) -> list[str]:
    """A line for each split whose number of images differs from the official one."""
    return [f'{name} has {len(splits[name]):,} images, the official split {count:,}'
            for name, count in OFFICIAL.items() if len(splits[name]) != count]


def convert(voc: Path, sbd: Path, splits: Mapping[str, list[str]], root: Path) -> tuple[dict[str, int], list[Path]]:
    """Write images, labels, lists and class names into the folder `root`, which is there and empty.

    voc, sbd: folders as of `open_archives`. splits: as of `read_splits`. Images are copies; labels are palette PNGs, H x W
    uint8, 0 background, 1 to 20 classes, 255 void: VOC's in SegmentationClass/ (train and val), and in
    SegmentationClassAug/ (trainaug) VOC's where it has some, otherwise SBD's, which have no void.
    Returns a dict of counts, and the paths of labels whose size is not their image's (they are resized when they are read).
    Raises `UserError` for the first image, in the order of the ids, whose image or labels are missing or broken, or hold
    another label.
    """
    for name in ('images', 'SegmentationClass', 'SegmentationClassAug', 'sets'):
        (root / name).mkdir()
    (root / 'classes.txt').write_text(''.join(f'{name}\n' for name in VOC_CLASSES))
    for name, ids in splits.items():
        (root / 'sets' / f'{name}.txt').write_text(''.join(f'{image_id}\n' for image_id in ids), encoding='utf-8')
    annotated, trainaug = {*splits['train'], *splits['val']}, {*splits['trainaug']}

    def convert_image(image_id: str):
        read: Callable[[Path], np.ndarray]
        image_path, sbd_image = voc / 'JPEGImages' / f'{image_id}.jpg', sbd / 'img' / f'{image_id}.jpg'
        if not os.path.isfile(image_path) and os.path.isfile(sbd_image):
            image_path = sbd_image
        if image_id in annotated:
            label_path, read, folders = voc / 'SegmentationClass' / f'{image_id}.png', read_labels, ['SegmentationClass']
        else:
            label_path, read, folders = sbd / 'cls' / f'{image_id}.mat', read_sbd_labels, []
        for path in (image_path, label_path):
            if not os.path.isfile(path):
                raise UserError(f'{path} is missing, and {image_id} is in a list: {WHAT_TO_DO}')
        labels, size = checked_labels(read(label_path), label_path), read_image(image_path).shape[:2]
        shutil.copyfile(image_path, root / 'images' / f'{image_id}.jpg')
        for folder in [*folders, *['SegmentationClassAug'] * (image_id in trainaug)]:
            save_labels(root / folder / f'{image_id}.png', labels)
        return image_path == sbd_image, None if labels.shape == size else label_path

    ids = sorted(annotated | trainaug)
    results = list(progress(in_threads(convert_image, ids), 'Images', len(ids)))
    counts = {**{name: len(ids) for name, ids in splits.items()}, 'images': len(ids),
              'images_from_sbd': sum(from_sbd for from_sbd, _ in results),
              'labels_from_voc': len(annotated), 'labels_from_sbd': len(trainaug - annotated)}
    return counts, [path for _, path in results if path]


def checked_labels(labels: np.ndarray, path: str | Path) -> np.ndarray:
    """`labels` (H x W, integers of any type) as uint8. path: for the message.

    Raises `UserError` if a label is not one of 0 to 20 and 255.
    """
    last = len(VOC_CLASSES) - 1
    others = labels[(labels < 0) | (labels > last) & (labels != VOID)]
    if others.size:
        raise UserError(f'{path} holds the label {others[0]}, which is not one of 0 to {last} and {VOID}: {WHAT_TO_DO}')
    return labels.astype(np.uint8)


def read_sbd_labels(path: Path) -> np.ndarray:
    """H x W integers from one of SBD's .mat files, where they are GTcls.Segmentation.

    Raises `UserError` if the file can't be read or has anything else there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path} could not be read ({error.strerror})') from error
    try:
        labels = loadmat(io.BytesIO(data), variable_names=['GTcls'])['GTcls']['Segmentation'].item()
    except Exception as error:  # whatever comes to scipy's reader in a broken file
        raise UserError(f'{path} is not a complete .mat file with GTcls.Segmentation ({type(error).__name__}: {error}): '
                        f'{WHAT_TO_DO}') from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in 'iu':
        what = f'{labels.ndim}-d {labels.dtype}' if isinstance(labels, np.ndarray) else type(labels).__name__
        raise UserError(f'{path}: GTcls.Segmentation must be a 2-d array of integers, not {what}: {WHAT_TO_DO}')
    return labels


def _ids(path: Path):
    """The ids that a list has, one a line."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(f'{path} could not be read ({reason}): {WHAT_TO_DO}') from error
    ids = [line.strip() for line in lines if line.strip()]
    seen = set()
    for image_id in ids:
        if not ID.fullmatch(image_id):
            raise UserError(f'{path}: {image_id!r} is not the id of an image: {WHAT_TO_DO}')
        if image_id in seen:
            raise UserError(f'{path} lists {image_id} twice: {WHAT_TO_DO}')
        seen.add(image_id)
    if not ids:
        raise UserError(f'{path} lists no image: {WHAT_TO_DO}')
    return ids
