"""From a folder of photographs to a pre-trained network: masks, settings for so many images, pre-training.

    python own_images.py --config_env configs/env.yml --images DIR [--name mine] [--model robust_background]

Makes the data set <db_root>/<name> (see generate_masks.py) and the experiment <root_dir>/<name>/<name>.yml, and runs main.py on
it. Given again, it goes on where it stopped; where photographs have been added, the training starts over, and the earlier
run's folder is renamed. `make mine` runs this and then own_clusters.py in segmentation/.
"""
from pathlib import Path

import yaml

import generate_masks
import main as pretraining
from contrastive.settings import IMAGENET, backbone_for, training_settings, weights_at_hand
from data.dataset import SegmentationDataset
from saliency.estimators import MODELS, ROBUST_BACKGROUND
from utils.command import command, make_env_parser
from utils.config import read_env
from utils.device import choose_device
from utils.errors import UserError
from utils.files import atomic_file, set_aside
from utils.log import start_log


def parse_arguments(argv):
    parser = make_env_parser(__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of photographs')
    parser.add_argument('--name', default='mine', help='of the data set and the experiment (default: mine)')
    parser.add_argument('--model', default=ROBUST_BACKGROUND, choices=MODELS,
                        help='what makes the masks, see generate_masks.py (default: %(default)s)')
    parser.add_argument('--weights', default='auto', choices=('auto', 'none', IMAGENET),
                        help='initial weights of the backbone (default: auto, those of ImageNet where they are on disk or can '
                             'be fetched, else none)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'mps'), default='auto',
                        help='where to compute (default: auto, the first there is of cuda, mps and cpu)')
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    if Path(args.name).name != args.name:
        raise UserError(f'--name {args.name}: a name without folders is needed, as it is that of a folder')
    device = choose_device(args.device)
    folder, output = Path(env.db_root) / args.name, Path(env.root_dir) / args.name
    experiment = output / f'{args.name}.yml'

    # Masks
    generate_masks.main(['--images', args.images, '--out', str(folder), '--model', args.model, '--device', args.device])
    images = len(SegmentationDataset(folder, 'trainaug', saliency=args.model, drop_missing=True))

    # Settings
    log = start_log()
    earlier = yaml.safe_load(experiment.read_text()) if experiment.is_file() else None
    weights, why = {'none': None, 'auto': None}.get(args.weights, args.weights), None
    if args.weights == 'auto' and earlier:  # a run that goes on keeps what it began with
        weights = earlier['backbone_kwargs']['pretraining']
    elif args.weights == 'auto':
        weights, why = weights_at_hand(backbone_for(images, device))
    settings, reasons = training_settings(args.name, args.model, images, device, weights)
    if earlier not in (None, settings):
        log.info('The settings are others than those of the earlier run, which is now in %s', set_aside(output))
    log = start_log(output / 'log_file.txt')
    for reason in [*reasons, *([why] if why else [])]:
        log.info('%s', reason)
    with atomic_file(experiment, 'w') as file:
        file.write(f'# Made by own_images.py from {images} images of {args.images}\n')
        yaml.safe_dump(settings, file, sort_keys=False)

    # Pre-training
    pretraining.main(['--config_env', args.config_env, '--config_exp', str(experiment), '--device', args.device])


if __name__ == '__main__':
    main()
