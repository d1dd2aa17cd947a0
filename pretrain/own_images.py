"""From a folder of photographs to a pre-trained network: masks, settings for so many images, pre-training.

    python own_images.py --config_env configs/env.yml --images DIR [--name mine] [--model robust_background]

Makes the data set <db_root>/<name> (see generate_masks.py) and the experiment <root_dir>/<name>/<name>.yml, and runs main.py on
it. Given again, it goes on where it stopped; where photographs have been added or changed, the training starts over, and the
earlier run's folder is renamed. `make mine` runs this and then own_clusters.py in segmentation/.
"""
import utils.cli.packages  # noqa: F401 - first, so that a package that is missing ends the script in a line

# isort: split
import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

import generate_masks
import main as pretraining
from contrastive.own_images_config import IMAGENET, earlier_settings, fingerprint, initial_weights, training_settings
from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from data.label_space import VOC
from saliency.estimators import MODELS, ROBUST_BACKGROUND
from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.cli.log import start_log
from utils.config import read_env
from utils.config.keys import PRETRAIN
from utils.config.snapshot import require_own_folder
from utils.errors import UserError
from utils.storage.atomic import atomic_file
from utils.storage.run_folder import set_aside


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of photographs')
    parser.add_argument('--name', default='mine', help='of the data set and the experiment (default: mine)')
    parser.add_argument('--model', default=ROBUST_BACKGROUND, choices=MODELS,
                        help='what makes the masks, see generate_masks.py (default: %(default)s)')
    parser.add_argument('--weights', default='auto', choices=('auto', 'none', IMAGENET),
                        help='initial weights of the backbone (default: auto, those of ImageNet where they are on disk or can '
                             'be fetched, else none)')
    parser.add_argument('--clusters', type=int, metavar='N', help='clusters that are wanted afterwards; only checked here')
    add_machine_flags(parser, amp='auto')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    if not re.fullmatch(r'\w[\w.-]*', args.name) or args.name in (VOC, 'Shapes'):
        raise UserError(f'--name {args.name}: use letters, digits, dots, hyphens and underscores; {VOC} and Shapes are others')
    # Here, since PyTorch takes seconds that --help and a mistake in the configuration should not cost.
    from utils.training.device import choose_device

    device = choose_device(args.device)
    folder, output = Path(env.db_root) / args.name, Path(env.root_dir) / args.name
    require_own_folder(output, PRETRAIN, output / f'{args.name}.yml')
    photographs = len(ImageFolder(args.images, without=folder))
    if args.clusters is not None and not 1 <= args.clusters <= min(photographs, 254):
        raise UserError(f'--clusters must be from 1 to 254, and no more than there are images ({photographs}), not '
                        f'{args.clusters}')

    # Masks
    generate_masks.main(['--images', args.images, '--out', str(folder), '--model', args.model, '--device', args.device])
    dataset = SegmentationDataset(folder, 'trainaug', saliency=args.model, drop_missing=True)
    if args.clusters and args.clusters > len(dataset):
        raise UserError(f'--clusters {args.clusters}: only {len(dataset)} of the images have masks')

    # Settings
    log = start_log()
    experiment, seen = output / f'{args.name}.yml', output / 'images.sha256'
    earlier, trained_on = earlier_settings(experiment, seen)
    settings, reasons = training_settings(args.name, args.model, len(dataset), device)
    weights, why = initial_weights(args.weights, settings, earlier)
    settings |= weights
    images = fingerprint(dataset)
    if output.exists() and (earlier, trained_on) != (settings, images):
        log.info('Photographs or settings are others than those of the earlier run, which is now in %s', set_aside(output))
    log = start_log(output / 'log_file.txt')
    for reason in (*reasons, why):
        log.info('%s', reason)
    with atomic_file(experiment, 'w') as file:
        file.write(f'# Made by own_images.py from {len(dataset)} images. To train with other settings, copy this file\n'
                   '# and give the copy to main.py: what is changed here is not kept.\n')
        yaml.safe_dump(settings, file, sort_keys=False)
    with atomic_file(seen, 'w') as file:
        file.write(images + '\n')

    # Pre-training
    seed = [] if args.seed is None else ['--seed', str(args.seed)]
    pretraining.main(['--config_env', args.config_env, '--config_exp', str(experiment), '--device', args.device,
                      '--amp', args.amp, '--world-size', '1', *seed])


if __name__ == '__main__':
    main()
