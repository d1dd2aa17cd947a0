"""What an evaluation prints and leaves: IoU of each class, results.json, predictions and pictures."""
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from evaluation.confusion import confusion_matrix
from evaluation.pictures import contact_sheet, save_picture, save_prediction, side_by_side, thumbnail, with_legend
from utils.files import atomic_file, make_folder

SHEET = 24       # pictures on the contact sheet
COLUMNS = 3
CELL = (150, 420)  # height and width


def print_iou(log, classes, iou):
    """The published form. iou: C values in percent, in the order of the names `classes`."""
    log.info('mIoU is %.2f', iou.mean())
    for name, value in zip(classes, iou, strict=True):
        log.info('IoU class %s is %.2f', name, value)


def write_results(path, script, weights, classes, iou, crf=False, **more):
    """Write results.json. weights: path of the network's weights, or None for random ones. iou: C values in percent."""
    results = {'script': script, 'weights': weights and str(weights), 'crf': crf, 'mIoU': float(iou.mean()),
               'IoU': {name: float(value) for name, value in zip(classes, iou, strict=True)}, **more}
    with atomic_file(path, 'w') as file:
        json.dump(results, file, indent=1)


class PredictionWriter:
    """Writes predictions/<id>.png of every image, visualization/<id>.png of the first `pictures` (None: all), and the
    first of these on contact_sheet.png; counts the predictions against the labels. A context manager.

    output: folder. dataset: a `SegmentationDataset` or an `ImageFolder`; without labels pictures lack ground truth, and
    nothing is counted. classes: names. Once it has ended, `confusion` is the C x C int64 matrix of all images, or None.
    Raises `UserError` as `confusion_matrix` does, and when something can't be read or written.
    """

    def __init__(self, output, dataset, classes, pictures=None):
        self.output, self.dataset, self.classes = Path(output), dataset, classes
        self.pictures = len(dataset) if pictures is None else pictures
        self.confusion, self.thumbnails, self.jobs = None, [], deque()
        for folder in ('predictions', *(['visualization'] if self.pictures else [])):
            make_folder(self.output / folder)
        threads = len(os.sched_getaffinity(0))
        self.most = 4 * threads  # predictions in memory
        self.pool = ThreadPoolExecutor(threads)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            while self.jobs and kind is None:
                self._finish()
        finally:
            self.pool.shutdown(cancel_futures=True)  # what one failed at, a full disk, say, the others would too
        if kind is None and self.thumbnails:
            save_picture(self.output / 'contact_sheet.png', contact_sheet(self.thumbnails, COLUMNS, CELL))

    def write(self, index, prediction):
        """Take image `index`'s prediction, H x W uint8 classes at the image's own size. Images come in order."""
        self.jobs.append(self.pool.submit(self._write, index, prediction))
        if len(self.jobs) > self.most:
            self._finish()

    def _write(self, index, prediction):
        name, sample = self.dataset.ids[index], self.dataset[index]
        labels, small = sample.get('labels'), None
        save_prediction(self.output / 'predictions' / f'{name}.png', prediction)
        if index < self.pictures:
            shown = [prediction] if labels is None else [labels, prediction]
            picture = with_legend(side_by_side(sample['image'], *shown), self.classes, *shown)
            save_picture(self.output / 'visualization' / f'{name}.png', picture)
            small = thumbnail(picture, CELL) if index < SHEET else None
        confusion = None if labels is None else confusion_matrix(prediction, labels, len(self.classes), name)
        return confusion, small

    def _finish(self):
        confusion, small = self.jobs.popleft().result()
        if confusion is not None:
            self.confusion = confusion + (np.zeros_like(confusion) if self.confusion is None else self.confusion)
        if small is not None:
            self.thumbnails.append(small)
