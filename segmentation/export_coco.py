"""Clusters and labels for other tools: COCO JSON, which CVAT, Label Studio and FiftyOne read, or a data set for training.

    python export_coco.py --config_env configs/env.yml --predictions mine_clusters --out ../output/mine.json
    python export_coco.py --config_env configs/env.yml --predictions mine_clusters --voc ../datasets/mine_named
    python export_coco.py --config_env configs/env.yml --labels NAME --split val --out ../output/NAME.json

The first two take the output of own_clusters.py or segment.py, with the names of names.yml, or the predictions of kmeans.py,
linear_finetune.py, finetune.py, knn.py or eval.py. The third takes the labels of a data set.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from utils.cli.command import command
from utils.cli.flags import fraction, make_env_parser
from utils.config import read_env
from utils.errors import UserError
from utils.storage.atomic import atomic_file

NONE = 'none'

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--predictions', metavar='FOLDER',
                        help="folder of a run with predictions/, or its name below root_dir")
    source.add_argument('--labels', metavar='NAME', help='a data set with labels: its name below db_root, or its folder')
    parser.add_argument('--split', default='val', help='split of --labels (default: val)')
    parser.add_argument('--names', metavar='FILE', help="names.yml with the names of the clusters (default: the one in the "
                                                        "folder)")
    parser.add_argument('--named_only', action='store_true', help='treat clusters without a name as void (default: call them '
                                                                  '`cluster N`)')
    parser.add_argument('--instances', metavar='MASKS',
                        help="read objects from instances_<MASKS>/, or none (default: the run's masks, if they have "
                             'any; with --labels none)')
    parser.add_argument('--out', metavar='FILE', help='JSON file to write')
    parser.add_argument('--rle', action='store_true', help='write masks as RLE, which keeps holes (default: polygons)')
    parser.add_argument('--parts', action='store_true',
                        help='without instances: one object for each connected part (default: one for each class in an image)')
    parser.add_argument('--tolerance', type=float, default=1.0, metavar='PIXELS',
                        help='maximum distance of polygons from the edge of a mask, with an IoU of at least 0.98; 0: follow '
                             'the edge (default: 1, which straightens the stairs of slanted edges)')
    parser.add_argument('--voc', metavar='DATASET_DIR', help='data set to make from --predictions; must not exist')
    parser.add_argument('--val_fraction', type=fraction, default=0.2, metavar='F',
                        help='share of its images for val (default: 0.2)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    _check(args)
    env = read_env(args.config_env)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    from data.dataset import dataset_folder
    from data.new_data_set import new_data_set
    from evaluation.annotations.coco import coco_document
    from evaluation.annotations.label_data_set import write_label_data_set
    from evaluation.annotations.labelled_images import labels_of_data_set
    from evaluation.annotations.predictions import SAME, predictions_of

    # Labels
    if args.labels is not None:
        folder = Path(args.labels).expanduser()
        folder = folder if folder.is_dir() else dataset_folder(env.db_root, args.labels)
        images = labels_of_data_set(folder, args.split, None if args.instances == NONE else args.instances)
    else:
        folder = Path(args.predictions).expanduser()
        folder = folder if folder.is_dir() else Path(env.root_dir) / args.predictions
        wanted = {None: SAME, NONE: None}.get(args.instances, args.instances)
        images = predictions_of(folder, Path(env.db_root), args.names, args.named_only, wanted)
    log.info('%s: %d images, %d categories; objects: %s', images.what, len(images), len(images.categories.names),
             images.instances or ('connected parts' if args.parts else 'one for each class in an image'))

    # Files
    if args.out:
        document, holes = coco_document(images, args.rle, args.parts, args.tolerance)
        with atomic_file(args.out, 'w') as file:
            json.dump(document, file)
        if holes:
            log.warning('%d objects have holes, which polygons cannot represent: --rle keeps them', holes)
        log.info('%s: %d objects. Its file names are relative to %s', args.out, len(document['annotations']), images.root)
    if args.voc:
        with new_data_set(args.voc) as root:
            train, val = write_label_data_set(images, root, args.val_fraction)
        log.info('%s: trainaug %d, val %d, %d classes with background', args.voc, train, val, len(images.categories.names) + 1)


def _check(args: argparse.Namespace):
    if not (args.out or args.voc):
        raise UserError('choose the output: --out FILE.json, --voc DATASET_DIR, or both')
    if args.out and os.path.isdir(args.out):
        raise UserError(f'--out {args.out} is a folder: name a file')
    if args.voc and os.path.lexists(args.voc):
        raise UserError(f'{args.voc} exists already and was not changed: name another --voc, or move it away')
    if args.labels is not None and (args.voc or args.names or args.named_only):
        raise UserError('--voc, --names and --named_only are only for --predictions: omit them')
    if not 0 <= args.tolerance < float('inf'):
        raise UserError(f'--tolerance must be a number of pixels of at least 0, not {args.tolerance}')


if __name__ == '__main__':
    main()
