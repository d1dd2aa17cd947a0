"""Convert COCO JSON, as exported by annotation tools, to a data set of this project: labels, masks and single objects.

    python convert_coco.py --annotations instances.json --images DIR --out ../datasets/NAME [--val_fraction 0.2]

Leaves images/, SegmentationClassAug/ (trainaug), SegmentationClass/ (val), saliency_<masks>/, instances_<masks>/, sets/,
classes.txt and conversion.json (counts, sources) in the folder --out, which appears only when it is complete. Crowds are void.
COCO itself takes two files: --annotations instances_train2017.json --images train2017 --val_annotations instances_val2017.json
--val_images val2017.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.new_data_set import TRAINAUG, VAL, new_data_set
from devkit.coco import choose_classes, class_numbers, read_coco
from devkit.convert_coco import choose_images, convert_coco
from utils.cli.command import command
from utils.cli.flags import fraction, make_plain_parser
from utils.cli.log import start_log
from utils.errors import UserError
from utils.storage.text import read_text

VOID, OBJECTS = 'void', 'objects'


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    parser.add_argument('--annotations', required=True, metavar='FILE', help='COCO JSON with masks of objects')
    parser.add_argument('--images', required=True, metavar='DIR', help='folder to which its file names are relative')
    parser.add_argument('--val_annotations', metavar='FILE', help='a second file, for the split val')
    parser.add_argument('--val_images', metavar='DIR', help='folder of the images of the second file (default: --images)')
    parser.add_argument('--val_fraction', type=fraction, metavar='F',
                        help='share of the images for val, without a second file (default: 0.2)')
    parser.add_argument('--categories', metavar='NAME,NAME or FILE',
                        help='classes in their order, separated by commas, or a text file with one per line; others are '
                             'background (default: all)')
    parser.add_argument('--masks', default='annotated', metavar='NAME',
                        help='name of the folders saliency_<NAME>/ and instances_<NAME>/ (default: annotated)')
    parser.add_argument('--crowds', choices=(VOID, OBJECTS), default=VOID,
                        help='meaning of annotations with `iscrowd`; use objects if a tool, such as CVAT, writes drawn masks '
                             f'as crowds (default: {VOID})')
    parser.add_argument('--keep_unannotated', action='store_true',
                        help='keep images without any annotation, as background (default: leave them out)')
    parser.add_argument('--out', required=True, metavar='DATASET_DIR', help='folder to make; must not exist')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    log, out = start_log(), Path(args.out)
    _check(args, out)

    # Annotations
    file = read_coco(args.annotations, args.images)
    wanted = _names(args.categories)
    classes = choose_classes(file, wanted)
    files = {TRAINAUG: (file, Path(args.images), class_numbers(file, classes, chosen=True))}
    if args.val_annotations:
        images = args.val_images or args.images
        val = read_coco(args.val_annotations, images)
        files[VAL] = (val, Path(images), class_numbers(val, classes, chosen=wanted is not None))
    splits, without = choose_images(files, 0.2 if args.val_fraction is None else args.val_fraction, args.keep_unannotated)
    log.info('without annotation%s: %d images, %s', '' if wanted is None else ' of these categories', without,
             'which are background' if args.keep_unannotated else 'left out (--keep_unannotated: they are background)')

    # Data set
    with new_data_set(out) as root:
        counts = convert_coco(files, splits, classes, root, args.masks, void_crowds=args.crowds == VOID)
        record = {'counts': {**counts, 'without_annotation': without}, 'classes': len(classes),
                  'sources': {split: [os.path.abspath(source.path), os.path.abspath(folder)]
                              for split, (source, folder, _) in files.items()}}
        (root / 'conversion.json').write_text(json.dumps(record, indent=2) + '\n')

    for key, words in (('turned', 'turned upright, to match their annotations: %d images'),
                       ('encoded', 'converted to JPEG: %d images'),
                       ('hidden', 'left out, hidden by smaller objects or without a pixel: %d objects')):
        if counts[key]:
            log.info(words, counts[key])
    log.info('%s: %d images (trainaug %d, val %d), %d objects of %d classes, %d crowds (void)', out, counts['images'],
             counts[TRAINAUG], counts[VAL], counts['objects'], len(classes), counts['crowds'])


def _check(args: argparse.Namespace, out: Path):
    if os.path.lexists(out):
        raise UserError(f'{out} exists already and was not changed: name another --out, or move it away')
    if args.val_images and not args.val_annotations:
        raise UserError('--val_images needs --val_annotations')
    if args.val_annotations and args.val_fraction is not None:
        raise UserError('--val_fraction and --val_annotations both select the images of val: give one of them')
    if not re.fullmatch(r'\w[\w.-]*', args.masks):
        raise UserError(f'--masks {args.masks}: use letters, digits, dots, hyphens and underscores, since it names folders')
    for folder in (args.images, args.val_images):
        if folder and not os.path.isdir(folder):
            raise UserError(f'{folder} is not a folder: name the folder of the images')


def _names(given: str | None):
    """The names after --categories, or None."""
    if given is None:
        return None
    names = read_text(given).split('\n') if os.path.isfile(given) else given.split(',')
    return [' '.join(name.split()) for name in names if name.strip()]


if __name__ == '__main__':
    main()
