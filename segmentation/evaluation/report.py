"""What an evaluation prints and leaves: IoU of each class, results.json, predictions and pictures."""
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from evaluation.pictures import save_picture, save_prediction, side_by_side
from utils.files import atomic_file, make_folder


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


def write_predictions(output, dataset, predict, pictures=None):
    """Write predictions/<id>.png of every image and visualization/<id>.png of the first `pictures` (None: all).

    dataset: a `SegmentationDataset` with labels. predict: gives image i's prediction, H x W uint8 classes.
    """
    pictures = len(dataset) if pictures is None else pictures

    def write(index):
        prediction = predict(index)
        name = f'{dataset.ids[index]}.png'
        save_prediction(Path(output) / 'predictions' / name, prediction)
        if index < pictures:
            sample = dataset[index]
            save_picture(Path(output) / 'visualization' / name, side_by_side(sample['image'], sample['labels'], prediction))

    for folder in ('predictions', 'visualization'):
        make_folder(Path(output) / folder)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(write, index) for index in range(len(dataset))]
        try:
            for job in tqdm(jobs, desc='Pictures', disable=None):
                job.result()
        except Exception:
            pool.shutdown(cancel_futures=True)  # what the first failed at, a full disk, say, the others would too
            raise
