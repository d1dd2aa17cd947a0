"""The demo's last step: one table of what the evaluations before it measured, and one picture of segmentations.

    make demo

Reads results.json of the runs named in RUNS below <root_dir>, and the predictions of the last of them.
"""
import argparse
import json
from pathlib import Path

import cv2

from data.dataset import SegmentationDataset, dataset_folder
from data.reading import read_labels
from evaluation.pictures import contact_sheet, save_picture, side_by_side
from utils.command import command
from utils.config import create_config
from utils.errors import UserError
from utils.log import start_log

RUNS = (('untrained', "data set's", 'demo_kmeans_untrained'),
        ('trained', "data set's", 'demo_kmeans_given_masks'),
        ('trained', 'its own', 'demo_kmeans'))
PICTURES, COLUMNS, CELL = 24, 4, (110, 330)


def results_of(root, run):
    path = Path(root) / run / 'results.json'
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path} could not be read: run `make demo`, which makes it first') from error


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config_env', required=True, help='YAML file with root_dir and db_root')
    args = parser.parse_args(argv)
    tree = Path(__file__).resolve().parent
    p = create_config(args.config_env, tree / 'configs' / 'demo' / 'demo_kmeans.yml')
    output = Path(p.root_dir) / 'demo'
    log = start_log(output / 'log_file.txt')

    log.info('')
    log.info('%-10s  %-10s  %s', 'network', 'masks', 'K-means mIoU (mean of 5 seeds, lowest and highest)')
    for network, masks, run in RUNS:
        seeds = results_of(p.root_dir, run)['mIoU_per_seed']
        log.info('%-10s  %-10s  %.1f (%.1f to %.1f)', network, masks, sum(seeds) / len(seeds), min(seeds), max(seeds))

    dataset = SegmentationDataset(dataset_folder(p.db_root, p.val_db_name), 'val', labels=True)
    pictures = []
    for index in range(min(PICTURES, len(dataset))):
        sample = dataset[index]
        prediction = read_labels(Path(p.output_dir) / 'predictions' / f'{sample["id"]}.png')
        pictures.append(cv2.copyMakeBorder(side_by_side(sample['image'], sample['labels'], prediction), 2, 2, 2, 2,
                                           cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    save_picture(output / 'segmentations.png', contact_sheet(pictures, COLUMNS, CELL))
    log.info('')
    log.info('%s: validation images, their labels, and what K-means makes of them', output / 'segmentations.png')


if __name__ == '__main__':
    main()
