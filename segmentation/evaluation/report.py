"""What an evaluation prints and leaves: IoU of each class, results.json, predictions and pictures."""
import argparse
import json
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from evaluation.confusion import confusion_matrix
from evaluation.pictures import contact_sheet, save_picture, save_prediction, side_by_side, thumbnail, with_legend
from utils.errors import UserError
from utils.files import atomic_file, make_folder

RESULTS, PREDICTIONS, PICTURES, SHEET = 'results.json', 'predictions', 'visualization', 'contact_sheet.png'
SHEET_PICTURES, COLUMNS, CELL = 24, 3, (150, 420)  # of the contact sheet; CELL: height and width
THREADS = len(os.sched_getaffinity(0))


def add_pictures_flag(parser):
    parser.add_argument('--num_visualizations', type=_count, help='pictures to draw (default: one for every image)')


def _count(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be an integer of at least 0, not {text}')
    return int(text)


def print_iou(log, classes, iou):
    """The published form. iou: C values in percent, in the order of the names `classes`."""
    log.info('mIoU is %.2f', iou.mean())
    for name, value in zip(classes, iou, strict=True):
        log.info('IoU class %s is %.2f', name, value)


def write_results(output, script, weights, classes, iou, crf=False, **more):
    """Write results.json. weights: path of the network's weights, or None for random ones. iou: C values in percent."""
    results = {'script': script, 'weights': weights and str(weights), 'crf': crf, 'mIoU': float(iou.mean()),
               'IoU': {name: float(value) for name, value in zip(classes, iou, strict=True)}, **more}
    with atomic_file(Path(output) / RESULTS, 'w') as file:
        json.dump(results, file, indent=1)


class PredictionWriter:
    """Writes predictions/<id>.png of every image, visualization/<id>.png of the first `pictures` (None: all), and the
    first of these on contact_sheet.png; counts the predictions against the labels. A context manager.

    They take the place of those of an earlier evaluation in `output`, and of its results.json, when all are there; when
    something fails before, the earlier ones stay.
    dataset: a `SegmentationDataset` or an `ImageFolder`; without labels pictures lack ground truth, and nothing is counted.
    classes: names. score: whether to count. At the end `confusion` is the C x C int64 matrix of all images, or None.
    Raises `UserError` as `confusion_matrix` does, and when something can't be read or written.
    """

    def __init__(self, output, dataset, classes, pictures=None, score=True):
        self.output, self.dataset, self.classes, self.score = Path(output), dataset, classes, score
        self.pictures = len(dataset) if pictures is None else pictures
        self.confusion, self.thumbnails, self.jobs = None, [], deque()
        check_output(self.output)
        self.fresh = self.output / '.evaluation.tmp'  # one at a time: each evaluation has its own output
        shutil.rmtree(self.fresh, ignore_errors=True)
        make_folder(self.fresh / PREDICTIONS)
        self.pool = ThreadPoolExecutor(THREADS)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                while self.jobs:
                    self._finish()
                self._replace()
        finally:
            self.pool.shutdown(cancel_futures=True)  # what one failed at, a full disk, say, the others would too
            shutil.rmtree(self.fresh, ignore_errors=True)

    def write(self, index, prediction):
        """Take image `index`'s prediction, H x W uint8 classes at the image's own size. Images come in order."""
        self.jobs.append(self.pool.submit(self._write, index, prediction))
        if len(self.jobs) > 4 * THREADS:  # predictions in memory
            self._finish()

    def _write(self, index, prediction):
        name, drawn = self.dataset.ids[index], index < self.pictures
        save_prediction(self.fresh / PREDICTIONS / f'{name}.png', prediction)
        if not (drawn or self.score):
            return None, None
        sample, confusion, thumb = self.dataset[index], None, None
        labels = sample.get('labels')
        if labels is not None and self.score:
            confusion = confusion_matrix(prediction, labels, len(self.classes), name)
        if drawn:
            shown = [prediction] if labels is None else [labels, prediction]
            picture = with_legend(side_by_side(sample['image'], *shown), self.classes, *shown)
            save_picture(self.fresh / PICTURES / f'{name}.png', picture)
            thumb = thumbnail(picture, CELL) if index < SHEET_PICTURES else None
        return confusion, thumb

    def _finish(self):
        confusion, thumb = self.jobs.popleft().result()
        if confusion is not None:
            self.confusion = confusion + (np.zeros_like(confusion) if self.confusion is None else self.confusion)
        if thumb is not None:
            self.thumbnails.append(thumb)

    def _replace(self):
        if self.thumbnails:
            save_picture(self.fresh / SHEET, contact_sheet(self.thumbnails, COLUMNS, CELL))
        try:
            for name in (RESULTS, PREDICTIONS, PICTURES, SHEET):  # the score first: it is that of what goes next
                path = self.output / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                if (self.fresh / name).exists():
                    os.rename(self.fresh / name, path)
        except OSError as error:
            raise UserError(f'{path} could not be replaced ({error.strerror}): move it away and start again') from error


def check_output(output):
    """Raise a `UserError` where the files of `PredictionWriter` could not go, which long work had better find out before."""
    for name in (PREDICTIONS, PICTURES):
        path = Path(output) / name
        if path.exists() and not path.is_dir():
            raise UserError(f'the folder {path} could not be made, as a file has this name: move it away')
