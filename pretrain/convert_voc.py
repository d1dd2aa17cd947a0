"""Convert the official PASCAL VOC 2012 and SBD to a data set of this project, without its saliency masks.

    python convert_voc.py --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out ../datasets/VOCSegmentation

Leaves images/, SegmentationClass/, SegmentationClassAug/, sets/, classes.txt and conversion.json (counts, sources, warnings)
in the folder --out, which appears only when it is complete.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data.new_data_set import new_data_set
from devkit.archives import open_archives
from devkit.convert import convert, count_warnings, read_splits
from utils.cli.command import command
from utils.cli.flags import make_plain_parser
from utils.cli.log import start_log
from utils.errors import UserError


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    parser.add_argument('--voc', required=True, metavar='PATH',
                        help='VOCtrainval_11-May-2012.tar, or the folder to which it unpacks (VOCdevkit or VOC2012)')
    parser.add_argument('--sbd', required=True, metavar='PATH',
                        help='benchmark.tgz, or the folder to which it unpacks (benchmark_RELEASE or its dataset)')
    parser.add_argument('--out', required=True, metavar='DATASET_DIR',
                        help='folder to make, for example ../datasets/VOCSegmentation; must not exist')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    log = start_log()
    out = Path(args.out)
    if os.path.lexists(out):
        raise UserError(f'{out} exists already and was not changed: name another --out, or move it away')

    with open_archives(args.voc, args.sbd, out) as (voc, sbd):
        splits = read_splits(voc, sbd)
        warnings = count_warnings(splits)
        for line in warnings:
            log.warning('%s', line)
        with new_data_set(out) as root:
            counts, other_sizes = convert(voc, sbd, splits, root)
            for path in other_sizes:
                warnings.append(f'{path.name} does not have the size of its image: it is resized when it is read')
                log.warning('%s', warnings[-1])
            record = {'counts': counts, 'warnings': warnings,
                      'sources': {'voc': os.path.abspath(args.voc), 'sbd': os.path.abspath(args.sbd)}}
            (root / 'conversion.json').write_text(json.dumps(record, indent=2) + '\n')

    log.info('%s: %d images (trainaug %d, train %d, val %d), labels of %d from VOC and of %d from SBD', out,
             counts['images'], counts['trainaug'], counts['train'], counts['val'],
             counts['labels_from_voc'], counts['labels_from_sbd'])
    log.info('These archives contain no saliency masks. To make them: '
             'python generate_masks.py --images %s --out %s --model NAME', out / 'images', out)


if __name__ == '__main__':
    main()
