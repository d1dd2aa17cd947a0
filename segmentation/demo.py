"""The last step of the demo: a table of the results of the evaluations, and a picture of segmentations.

    make demo

Reads results.json of the runs named in RUNS below <root_dir>, and the predictions of K-means with the trained network.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from data.dataset import SegmentationDataset, dataset_folder
from data.decoding import read_labels
from data.label_space import label_space
from evaluation.visualization.pictures import contact_sheet, save_picture, side_by_side
from utils.cli.command import command
from utils.cli.flags import make_env_parser
from utils.cli.log import start_log
from utils.config import create_config
from utils.config.keys import EVAL, KMEANS, LINEAR, RETRIEVAL
from utils.errors import UserError

RUNS = (('untrained', "K-means, the data set's masks", KMEANS, 'demo_kmeans_untrained'),
        ('trained', "K-means, the data set's masks", KMEANS, 'demo_kmeans_given_masks'),
        ('trained', 'K-means, its own masks', KMEANS, 'demo_kmeans'),
        ('untrained', "retrieval, the data set's masks", RETRIEVAL, 'demo_retrieval_untrained'),
        ('trained', 'retrieval, its own masks', RETRIEVAL, 'demo_retrieval'),
        ('untrained', 'linear classifier', LINEAR, 'demo_linear_untrained'),
        ('trained', 'linear classifier', LINEAR, 'demo_linear'),
        ('trained', 'linear classifier, CRF', EVAL, 'demo_linear/eval/best_model.pth.tar_crf'))
PICTURES, COLUMNS, CELL = 24, 4, (110, 330)


def results_of(root: str | Path, run: str, script: str) -> dict[str, Any]:
    """The content of a run's results.json. Raises `UserError` if it is missing, or belongs to another script."""
    path = Path(root) / run / 'results.json'
    try:
        results = json.loads(path.read_text())
        if results['script'] != script:
            raise ValueError
        return results
    except FileNotFoundError:
        raise UserError(f'{path} does not exist: run `make demo`, which makes it') from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} was not written by {script}: run `make demo`, which makes it') from error


def score(results: Mapping[str, Any]) -> str:
    """mIoU in percent; of K-means the mean over its seeds, with the lowest and the highest."""
    seeds = results.get('mIoU_per_seed')
    return f'{results["mIoU"]:.1f}' + (f' ({min(seeds):.1f} to {max(seeds):.1f})' if seeds else '')


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = make_env_parser(__doc__).parse_args(argv)
    tree = Path(__file__).resolve().parent
    p = create_config(args.config_env, tree / 'configs' / 'demo' / 'demo_kmeans.yml')
    output = Path(p.root_dir) / 'demo'
    log = start_log(output / 'log_file.txt')

    log.info('')
    log.info('%-10s  %-31s  %s', 'network', 'evaluation', 'mIoU (K-means: mean of 5 seeds, lowest and highest)')
    for network, evaluation, script, run in RUNS:
        log.info('%-10s  %-31s  %s', network, evaluation, score(results_of(p.root_dir, run, script)))

    dataset = SegmentationDataset(dataset_folder(p.db_root, p.val_db_name), 'val', labels=True)
    space = label_space(dataset.folder)
    pictures = []
    for index in range(min(PICTURES, len(dataset))):
        sample = dataset[index]
        prediction = read_labels(Path(p.output_dir) / 'predictions' / f'{sample["id"]}.png')
        pictures.append(cv2.copyMakeBorder(side_by_side(sample['image'], space, sample['labels'], prediction), 2, 2, 2, 2,
                                           cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    save_picture(output / 'segmentations.png', contact_sheet(pictures, COLUMNS, CELL))
    log.info('')
    log.info('%s: validation images, their labels, and the clusters of K-means', output / 'segmentations.png')


if __name__ == '__main__':
    main()
