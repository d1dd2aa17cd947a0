"""Make a data set from a folder of photographs: images, masks of their salient objects, and splits.

    python generate_masks.py --images DIR --out ../datasets/NAME [--model robust_background]

DIR is searched with its sub-folders, and not changed. The data set holds images/<id>.jpg, saliency_<model>/<id>.png and
sets/trainaug.txt. When run again, the command resumes where it stopped, and makes masks of new photographs. Where DIR is the
images/ of the data set --out itself, only masks are added. With --objects each mask's single objects are kept beside it, in
instances_<model>/<id>.png (16 bits, 0 background, 1 to n). --model auto takes the best available one and names it. tokencut and
the ONNX networks (u2net, isnet-general-use, birefnet-general, or your own with --onnx) need requirements-optional.txt.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from data.image_folder import ImageFolder
from saliency.estimators import (
    BACKBONE,
    CUTS,
    FEATURE_CUES,
    MODELS,
    ROBUST_BACKGROUND,
    TOKENCUT,
    VIT,
    WAYS,
    check_way,
    get_estimator,
)
from saliency.model_choice import AUTO, choose_model
from saliency.onnx_formats import add_format_flags, find_format, format_options, given_flags
from utils.cli.command import command
from utils.cli.flags import fraction, make_plain_parser
from utils.cli.log import start_log
from utils.cli.progress import progress
from utils.config.snapshot import write_config
from utils.errors import UserError
from utils.model_zoo.zoo import is_zoo, zoo_file
from utils.parallel.workers import cores
from utils.storage.atomic import atomic_file


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of photographs')
    parser.add_argument('--out', required=True, metavar='DATASET_DIR', help='folder of the data set, created if needed')
    parser.add_argument('--model', help=f'{AUTO}, or one of {", ".join(MODELS)}; with --onnx a name for its masks (default: '
                                        f"{ROBUST_BACKGROUND}; with --onnx the file's name)")
    parser.add_argument('--onnx', metavar='PATH', help='an ONNX file with a saliency network')
    add_format_flags(parser)
    parser.add_argument('--weights', metavar='PATH',
                        help=f"of {FEATURE_CUES}: weights of the backbone, a file or published ones (default: torchvision's of "
                             'ImageNet); of tokencut: a file with weights of the backbone (default: downloaded)')
    parser.add_argument('--backbone', metavar='NAME', help=f'of {FEATURE_CUES} (default: {BACKBONE})')
    parser.add_argument('--vit', metavar='NAME',
                        help=f"of tokencut: a backbone, by timm's name or as in experiment files (default: {VIT})")
    parser.add_argument('--objects', choices=WAYS,
                        help=f"also save single objects: connected parts of the mask, or normalised cuts of {FEATURE_CUES}' or "
                             "tokencut's backbone (default: as before, or none)")
    parser.add_argument('--val_fraction', type=fraction, metavar='F',
                        help='share of the images for the split val instead of trainaug (default: as before, or 0)')
    parser.add_argument('--max_side', type=_count, default=1024, metavar='PIXELS',
                        help='longer sides of copied images are shrunk to this many pixels; 0: never (default: 1024)')
    parser.add_argument('--num_workers', type=_count,
                        help=f'processes (default: one per core for {ROBUST_BACKGROUND} and, on a CPU, {FEATURE_CUES}; 0 for '
                             'other networks, which use all cores by themselves)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'mps'), default='auto',
                        help='device for networks (default: auto, the first available one of cuda, mps and cpu)')
    args = parser.parse_args(argv)
    if args.weights and is_zoo(args.weights):
        file = zoo_file(args.weights, '<root_dir>')
        raise UserError(f'--weights {args.weights}: name its file, {file}, or use `make mine WEIGHTS={args.weights}`')
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    out = Path(args.out).expanduser()
    photographs = ImageFolder(args.images, without=out)
    why = _choose(args) if args.model == AUTO and not args.onnx else None
    name, options = _options(args)
    # Imported here, so that --help and mistakes in the flags do not wait for PyTorch.
    from data.loaders import make_loader
    from saliency.mask_data_set import MaskDataSet, earlier_option, require_same_options
    from saliency.mask_generation import MaskGenerator
    from saliency.objects import get_finder
    from utils.training.device import choose_device

    device = choose_device(args.device)
    if args.num_workers and name != ROBUST_BACKGROUND and device.type != 'cpu':
        raise UserError('--num_workers: a network on a GPU runs in one process: omit the flag')
    config = out / f'config_{name}.yml'
    earlier = earlier_option(config, 'objects')
    way = args.objects or earlier
    changes_masks = name == TOKENCUT and CUTS in (way, earlier)
    require_same_options(config, {**options, 'objects': way} if changes_masks else options, out / f'saliency_{name}')
    data_set = MaskDataSet(out, photographs, name, args.max_side, args.val_fraction)
    require_same_options(config, {'objects': way}, data_set.target.instances)
    estimator = get_estimator(name, args.onnx, find_format(args), args.vit or VIT, args.weights, device,
                              args.backbone or BACKBONE)
    data_set.begin()
    log = start_log(out / 'log_file.txt')
    write_config(config, {'options': {**options, 'objects': way}, **vars(args)})
    if why:
        log.info('%s', why)
    others = ', '.join(f'{count} {suffix or "without suffix"}' for suffix, count in sorted(photographs.others.items()))
    log.info('%s: %d images%s; masks: %s%s', photographs.folder, len(photographs),
             f' (other files: {others})' if others else '', data_set.target.masks,
             f'; objects ({way}): {data_set.target.instances}' if way else '')

    # Masks
    workers = args.num_workers
    if workers is None:
        on_cores = name == ROBUST_BACKGROUND or name == FEATURE_CUES and device.type == 'cpu'
        workers = cores() if on_cores and cores() > 1 else 0
    start = time.monotonic()
    generator = MaskGenerator(photographs, estimator, data_set.target, get_finder(way, name, estimator))
    loader = make_loader(generator, workers, choose_device('cpu'), batch_size=1)
    results = [{key: values[0] for key, values in batch.items()} for batch in progress(loader, 'Masks')]
    seconds = time.monotonic() - start

    # Report
    skipped = {result['id']: result['skipped'] for result in results if result['skipped']}
    objects = {result['id']: result['objects'] for result in results if result['objects'] is not None}
    for reason in skipped.values():
        log.warning('skipped: %s', reason)
    with atomic_file(out / f'results_{name}.json', 'w') as file:
        json.dump({'script': 'generate_masks.py', 'model': name, 'photographs': len(results),
                   'masks': len(results) - len(skipped), 'skipped': skipped,
                   'cover': {result['id']: result['cover'] for result in results if result['cover'] is not None},
                   **({'objects': objects} if way else {}), 'seconds': seconds,
                   'images_per_second': len(results) / seconds}, file, indent=1)
    log.info('%s: %d masks%s, %d images skipped, %s; %.1f images/s', out, len(results) - len(skipped),
             f' of {sum(objects.values())} objects' if way else '', len(skipped), data_set.write_splits(),
             len(results) / seconds)


def _choose(args: argparse.Namespace):
    """Replace `auto` by the best available model, and return the reason."""
    args.model, why = choose_model(args.backbone or BACKBONE, args.weights)
    if args.model != FEATURE_CUES:
        args.weights = args.backbone = None  # they were for it
    return why


def _options(args: argparse.Namespace):
    """The name of the masks, and all settings on which they depend. Raises `UserError` for flags that don't fit together."""
    name = args.model or (Path(args.onnx).stem if args.onnx else ROBUST_BACKGROUND)
    if not re.fullmatch(r'\w[\w.-]*', name):
        raise UserError(f'--model {name}: use letters, digits, dots, hyphens and underscores, since it names a folder')
    if args.onnx and name in (AUTO, *MODELS):
        raise UserError(f'--model {name}: with --onnx choose another name for its masks')
    given = given_flags(args)
    if given and not args.onnx:
        raise UserError(f'--{given[0]}: this is only for a network given with --onnx')
    if args.vit and name != TOKENCUT or args.weights and name not in (TOKENCUT, FEATURE_CUES):
        raise UserError(f'--weights and --vit are for --model {TOKENCUT}, --weights and --backbone for --model {FEATURE_CUES}')
    if args.backbone and name != FEATURE_CUES:
        raise UserError(f'--backbone is for --model {FEATURE_CUES}')
    check_way(args.objects, name)
    weights = args.weights and (args.weights if '://' in args.weights else os.path.abspath(args.weights))
    return name, {'model': name, 'onnx': args.onnx and os.path.abspath(args.onnx), 'weights': weights, 'vit': args.vit,
                  'backbone': args.backbone, **format_options(args)}


def _count(text: str):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be an integer of at least 0, not {text}')
    return int(text)


if __name__ == '__main__':
    main()
