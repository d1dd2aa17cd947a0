"""A data set of real photographs with exact labels: photographed objects, put on photographs.

    python benchmarks/photographs.py --root datasets --images 400 --val 80

makes datasets/Photographs, in the layout of docs/data-sets.md, from Debian's packages of stamps for Tux Paint and of
wallpapers. There are 20 classes, in turn the first object of a picture; every fourth picture has a second object, of another
class. With --objects N each has N, of different classes, side by side. The same seed and packages give the same files, whatever
the number of processes, and a picture doesn't depend on their number. `val` and `trainaug` have different wallpapers, so that
no object appears twice on the same one; half of `trainaug` is `train`. `saliency_supervised_model` holds clean masks,
`saliency_unsupervised_model` noisier ones, and `instances_*` the object of each of their pixels. composites.json lists the
sources of each picture. The folder appears only when it is complete.
"""
import argparse
import functools
import json
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from compositing import clean_mask, composite, find_sources, noisy_mask, numbered  # noqa: E402
from data.instances import write_instances  # noqa: E402
from data.palette import save_labels  # noqa: E402
from utils.cli.command import command  # noqa: E402
from utils.cli.flags import make_plain_parser  # noqa: E402
from utils.cli.progress import progress  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.parallel.workers import cores  # noqa: E402
from utils.storage.atomic import atomic_folder  # noqa: E402

STAMPS = Path('/usr/share/tuxpaint/stamps')
STAMPS_PACKAGE = 'tuxpaint-stamps-default'
BACKGROUNDS = {'gnome-backgrounds': Path('/usr/share/backgrounds/gnome'),
               'mate-backgrounds': Path('/usr/share/backgrounds/mate'),
               'plasma-workspace-wallpapers': Path('/usr/share/wallpapers')}
SECOND = 0.25  # share of the pictures with a second object
HELD_OUT = 0.2  # share of the scenes, for val
SMALLEST_SIZE = 96
FORMATS = (4 / 3, 4 / 3, 2 ** 0.5, 3 / 4, 4 / 5)  # width to height, as cameras have them
MASKS = 'saliency_supervised_model', 'saliency_unsupervised_model'
INSTANCES = 'instances_supervised_model', 'instances_unsupervised_model'

log = logging.getLogger('maskcontrast')


@dataclass(frozen=True)
class Recipe:
    """All settings of the pictures. scenes: of trainaug and of val, each a list of versions. objects: a picture, or None: one
    or two. size: of the longer side, in pixels."""
    folder: Path
    stamps: dict[str, list[Path]]
    scenes: tuple[list[list[Path]], list[list[Path]]]
    objects: int | None
    size: int
    seed: int

    def names(self, split: int, count: int):
        return [f'{("train", "val")[split]}_{index:05d}' for index in range(count)]


def parse_arguments(argv):
    parser = make_plain_parser(__doc__)
    parser.add_argument('--root', default=str(ROOT / 'datasets'), help='db_root, the parent folder of the data set (default: '
                                                                       'datasets/ of this repository)')
    parser.add_argument('--name', default='Photographs', help='name of the data set (default: Photographs)')
    parser.add_argument('--images', type=_positive, default=400, help='pictures of trainaug (default: 400)')
    parser.add_argument('--val', type=_positive, default=80, help='pictures of val (default: 80)')
    parser.add_argument('--size', type=_positive, default=320, help='longer side of a picture in pixels (default: 320)')
    parser.add_argument('--objects', type=_positive, help='objects in each picture, of different classes and side by side '
                                                          '(default: one, and in every fourth picture two, wherever there is '
                                                          'room)')
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument('--workers', type=_positive, default=cores(), help='processes (default: one per core)')
    parser.add_argument('--stamps', type=Path, help=f'folder of objects, arranged as {STAMPS_PACKAGE} has them (default: the '
                                                    "package's)")
    parser.add_argument('--backgrounds', type=Path, nargs='+', help="folders of photographs (default: the packages')")
    return parser.parse_args(argv)


def _positive(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1, not {text}')
    return int(text)


@command
def main(argv=None):
    args = parse_arguments(argv)
    folder = Path(args.root) / args.name
    if os.path.lexists(folder):
        raise UserError(f'{folder} exists already: remove it, or give another --root or --name')
    if args.size < SMALLEST_SIZE or args.seed < 0:
        raise UserError(f'--size must be at least {SMALLEST_SIZE}, and --seed at least 0')
    sources = find_sources(*_source_folders(args))
    stamps, scenes, least = sources.stamps, sources.backgrounds, max(2, args.objects or 2)
    log.info('%d stamps of %d classes, %d wallpapers of %d scenes%s', sum(map(len, stamps.values())), len(stamps),
             sum(map(len, scenes.values())), len(scenes),
             ''.join(f'; skipped {count} {reason}' for reason, count in sorted(sources.skipped.items())))
    if len(stamps) < least or len(scenes) < 2:
        raise UserError(f'{len(stamps)} classes of stamps and {len(scenes)} scenes were found: there must be at least {least} '
                        'classes (--objects) and 2 scenes, one of them for val')
    with atomic_folder(folder) as root:
        recipe = Recipe(root, stamps, _split_scenes(scenes, args.seed), args.objects, args.size, args.seed)
        pictures = write(recipe, args.images, args.val, args.workers)
        about = {'seed': args.seed, 'size': args.size, 'objects': args.objects, 'skipped': sources.skipped}
        (root / 'composites.json').write_text(json.dumps({**about, 'pictures': pictures}, indent=1))
    log.info('%s: %d pictures of trainaug, %d of val', folder, args.images, args.val)


def _source_folders(args):
    """Where the stamps and the wallpapers are."""
    missing = [] if args.stamps or STAMPS.is_dir() else [STAMPS_PACKAGE]
    if not args.backgrounds:
        missing += [package for package, path in BACKGROUNDS.items() if not path.is_dir()]
    if missing:
        raise UserError(f'Debian packages with the source pictures are missing: apt install {" ".join(missing)} (or name your '
                        'own folders: --stamps, --backgrounds)')
    for path in (args.stamps, *(args.backgrounds or ())):
        if path and not path.is_dir():
            raise UserError(f'{path}: this folder does not exist')
    return args.stamps or STAMPS, args.backgrounds or list(BACKGROUNDS.values())


def _split_scenes(backgrounds, seed):
    order = np.random.default_rng([seed, 2]).permutation(sorted(backgrounds)).tolist()
    held_out = max(1, round(HELD_OUT * len(order)))
    return [backgrounds[name] for name in order[held_out:]], [backgrounds[name] for name in order[:held_out]]


def write(recipe, train, val, workers):
    """Write all files of the data set into `recipe.folder`. Returns what each picture is made of, by id."""
    names = recipe.names(0, train), recipe.names(1, val)
    splits = {'trainaug': names[0], 'train': names[0][:max(1, train // 2)], 'val': names[1]}
    for part in ('images', 'sets', 'SegmentationClass', 'SegmentationClassAug', *MASKS, *INSTANCES):
        (recipe.folder / part).mkdir()
    (recipe.folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in ('background', *recipe.stamps)))
    for split, listed in splits.items():
        (recipe.folder / 'sets' / f'{split}.txt').write_text(''.join(f'{name}\n' for name in listed))
    jobs = [(split, index, name, ['SegmentationClassAug'] * (split == 0) + ['SegmentationClass'] * (split or name in trained))
            for trained in [set(splits['train'])] for split in (0, 1) for index, name in enumerate(names[split])]
    draw = functools.partial(draw_picture, recipe)
    if workers == 1:
        return dict(progress(map(draw, jobs), 'Pictures', len(jobs)))
    spawn = multiprocessing.get_context('spawn')  # a fork may hang where OpenCV has started threads
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_one_thread) as pool:
        return dict(progress(pool.map(draw, jobs, chunksize=8), 'Pictures', len(jobs)))


def _one_thread():
    cv2.setNumThreads(1)


def draw_picture(recipe, job):
    """Write one picture with its labels and masks. job: split (0 trainaug, 1 val), index, id, folders of labels. Its random
    numbers depend on the seed, split and index alone. Returns its id and its sources."""
    split, index, name, label_folders = job
    rng = np.random.default_rng([recipe.seed, split, index])
    ratio = FORMATS[rng.integers(len(FORMATS))]
    shape = (round(recipe.size / max(1, ratio)), round(recipe.size * min(1, ratio)))
    versions = recipe.scenes[split][rng.integers(len(recipe.scenes[split]))]
    background = versions[rng.integers(len(versions))]
    classes = list(recipe.stamps)
    chosen = [_class_in_turn(recipe.seed, split, index, len(classes))]
    others = rng.permutation([number for number in range(len(classes)) if number != chosen[0]]).tolist()
    chosen += others[:(recipe.objects or 1 + int(rng.random() < SECOND)) - 1]
    stamps = [paths[rng.integers(len(paths))] for paths in (recipe.stamps[classes[number]] for number in chosen)]
    image, labels, objects = composite(rng, background, stamps, [number + 1 for number in chosen], shape,
                                       apart=recipe.objects is not None)
    Image.fromarray(image).save(recipe.folder / 'images' / f'{name}.jpg', quality=92)
    for folder in label_folders:
        save_labels(recipe.folder / folder / f'{name}.png', labels)
    for folder, instances, mask in zip(MASKS, INSTANCES, (clean_mask(objects), noisy_mask(rng, objects)), strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(recipe.folder / folder / f'{name}.png')
        write_instances(recipe.folder / instances / f'{name}.png', numbered(mask, objects))
    return name, {'background': str(background), 'stamps': [str(path) for path in stamps]}


def _class_in_turn(seed, split, index, classes):
    """Of a picture's first object: each run of as many pictures as classes has every class once, in an order of its own."""
    turn, position = divmod(index, classes)
    return int(np.random.default_rng([seed, 3 + split, turn]).permutation(classes)[position])


if __name__ == '__main__':
    main()
