"""The report of an evaluation: IoU of each class, and results.json."""
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.storage.atomic import atomic_file

RESULTS = 'results.json'


def print_iou(log: logging.Logger, classes: Sequence[str], iou: np.ndarray) -> None:
    """The published form. iou: C values in percent, in the order of the names `classes`."""
    log.info('mIoU is %.2f', iou.mean())
    for name, value in zip(classes, iou, strict=True):
        log.info('IoU class %s is %.2f', name, value)


def write_results(output: str | Path, script: str, weights: str | Path | None, classes: Sequence[str], iou: np.ndarray | None,
                  crf: bool = False, **more: Any) -> None:
    """Write results.json. weights: path of the network's weights, or None for random ones. iou: C values in percent, or None
    where there are no labels."""
    score = {} if iou is None else {'mIoU': float(iou.mean()),
                                    'IoU': {name: float(value) for name, value in zip(classes, iou, strict=True)}}
    results = {'script': script, 'weights': weights and str(weights), 'crf': crf, **score, **more}
    with atomic_file(Path(output) / RESULTS, 'w') as file:
        json.dump(results, file, indent=1)
