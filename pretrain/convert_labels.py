"""Convert Cityscapes or ADE20K to a data set of this project: their label files, with the ids of training and void.

    python convert_labels.py --cityscapes DIR --out ../datasets/Cityscapes
    python convert_labels.py --ade20k ADEChallengeData2016 --out ../datasets/ADE20K

Leaves images/, SegmentationClassAug/ (trainaug), SegmentationClass/ (val), sets/, dataset.yml and conversion.json in the folder
--out, which appears only when it is complete.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data.new_data_set import new_data_set
from devkit.ade20k import ADE20K
from devkit.cityscapes import CITYSCAPES
from devkit.label_files import convert_labels
from utils.cli.command import command
from utils.cli.flags import make_plain_parser
from utils.cli.log import start_log
from utils.errors import UserError


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--cityscapes', metavar='DIR', help='folder with leftImg8bit/ and gtFine/')
    source.add_argument('--ade20k', metavar='DIR', help='ADEChallengeData2016, with images/ and annotations/')
    parser.add_argument('--out', required=True, metavar='DATASET_DIR', help='folder to make; must not exist')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    log, out = start_log(), Path(args.out)
    if os.path.lexists(out):
        raise UserError(f'{out} exists already and was not changed: name another --out, or move it away')
    kind, folder = (CITYSCAPES, args.cityscapes) if args.cityscapes is not None else (ADE20K, args.ade20k)
    pairs = kind.pairs(Path(folder))
    with new_data_set(out) as root:
        convert_labels(kind, pairs, root)
        record = {'counts': {split: len(files) for split, files in pairs.items()}, 'source': os.path.abspath(folder)}
        (root / 'conversion.json').write_text(json.dumps(record, indent=2) + '\n')
    log.info('%s: %s, %d classes', out, ', '.join(f'{split} {len(files)}' for split, files in pairs.items()), len(kind.classes))


if __name__ == '__main__':
    main()
