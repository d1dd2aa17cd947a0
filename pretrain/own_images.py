"""Make masks for a folder of photographs, and choose the network that tells their objects apart.

    python own_images.py --config_env configs/env.yml --images DIR [--name mine] [--weights auto] [--train auto]

Makes the data set <db_root>/<name> (see generate_masks.py) and <root_dir>/<name>/network.yml, which own_clusters.py in
segmentation/ reads; `make mine` runs both. The network is a published one, used without training. With --train 1 it is
pre-trained on the photographs: the experiment <root_dir>/<name>/<name>.yml is written, and main.py runs on it. When run again,
the command resumes where it stopped; if photographs have been added, only their masks are made, but a training starts over, and
the earlier run's folder is renamed.

With --segment, only the masks of DIR are made, by the model that made those of <name>, for segment.py (`make segment`).
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import generate_masks
import main as pretraining
from contrastive.own_images_config import (
    earlier_settings,
    fingerprint,
    initial_settings,
    network_settings,
    trained_settings,
    training_settings,
    trains,
)
from contrastive.own_weights import AUTO, IMAGENET, NONE, Weights, choose_weights
from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder, segmented_folder
from data.label_space import VOC
from saliency.estimators import FEATURE_CUES, MODELS, ROBUST_BACKGROUND, WAYS, check_way
from saliency.model_choice import choose_model
from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.cli.log import start_log
from utils.config import read_env
from utils.config.keys import PRETRAIN
from utils.config.snapshot import require_own_folder
from utils.errors import UserError
from utils.storage.atomic import atomic_file
from utils.storage.run_folder import set_aside

NETWORK = 'network.yml'


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of photographs')
    parser.add_argument('--name', default='mine', help='name of the data set and the results (default: mine)')
    parser.add_argument('--model', choices=(AUTO, *MODELS),
                        help=f'model that makes the masks, see generate_masks.py (default: {FEATURE_CUES}, without weights '
                             f'{ROBUST_BACKGROUND})')
    parser.add_argument('--objects', choices=(NONE, *WAYS),
                        help=f'cluster single objects, see generate_masks.py; {NONE}: all objects of a photograph as one '
                             f'(default: as before, or {NONE})')
    parser.add_argument('--weights', metavar='WEIGHTS',
                        help=f'weights of the backbone: {AUTO} (those of ImageNet if on disk or available for download, '
                             f'otherwise none), {NONE}, {IMAGENET}, timm://<name>, torchvision://<name>-<weights>, '
                             'zoo://<name>, or a file with a state dict or a MoCo v2 checkpoint (default: as before, or '
                             f'{AUTO})')
    parser.add_argument('--train', default='auto', choices=('auto', '1', '0'),
                        help='whether to pre-train on the photographs (default: auto, if there are many, or no weights)')
    parser.add_argument('--clusters', metavar='N', help='number of clusters for the next step, or auto; only checked here '
                                                            '(default: chosen there)')
    parser.add_argument('--segment', action='store_true', help='only make masks, for photographs to be assigned to the '
                                                               'clusters of --name (default: no)')
    add_machine_flags(parser, amp='auto', seed='1')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    if not re.fullmatch(r'\w[\w.-]*', args.name) or args.name in (VOC, 'Shapes'):
        raise UserError(f'--name {args.name}: use letters, digits, dots, hyphens and underscores, but not {VOC} or Shapes')
    output = Path(env.root_dir) / args.name
    folder = segmented_folder(env.db_root, args.name, args.images) if args.segment else Path(env.db_root) / args.name
    photographs = len(ImageFolder(args.images, without=folder))
    if args.segment:
        _make_masks(args, folder, _masks_of(output / NETWORK))
        return
    way = _way(args.objects, output / NETWORK)
    if not way:  # otherwise there may be more objects than images
        _check_clusters(args.clusters, photographs, 'images')
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    from utils.training.device import choose_device

    # Weights
    log, device = start_log(), choose_device(args.device)
    require_own_folder(output, PRETRAIN, output / f'{args.name}.yml')
    args.weights = args.weights or _earlier(output / NETWORK).get('weights', AUTO)
    weights = choose_weights(args.weights, env.root_dir)
    log.info('%s', weights.why)
    trains(args.train, photographs, weights)  # for its error, before the masks

    # Masks
    masks, chosen = choose_masks(args.model, weights)
    log.info('%s', chosen)
    check_way(way, masks['model'])
    masks |= {'objects': way} if way else {}
    _make_masks(args, folder, masks)
    dataset = SegmentationDataset(folder, 'trainaug', saliency=masks['model'], drop_missing=True, instances=bool(way))
    if not way:
        _check_clusters(args.clusters, len(dataset), 'images with masks')

    # Network
    log = start_log(output / 'log_file.txt')
    training, why = trains(args.train, len(dataset), weights)
    log.info('%s', why)
    if training:
        settings = _pretrain(args, env, output, dataset, masks['model'], weights)
        network = trained_settings(settings, str(output / 'checkpoint.pth.tar'))
    else:
        network = network_settings(args.name, masks['model'], device, weights, dataset.instances)
    with atomic_file(output / NETWORK, 'w') as file:
        file.write('# Made by own_images.py, for own_clusters.py\n')
        yaml.safe_dump({**network, 'weights': args.weights, 'masks': masks}, file, sort_keys=False)


def choose_masks(model: str | None, weights: Weights) -> tuple[dict[str, str], str]:
    """The flags of generate_masks.py that choose the mask model, and a line with the reason. model: as requested, or None for
    one that needs only the weights."""
    if model == AUTO:
        name, why = choose_model(weights.backbone, weights.source) if weights.source else (ROBUST_BACKGROUND, '')
    else:
        name, why = model or (FEATURE_CUES if weights.source else ROBUST_BACKGROUND), ''
    if name != FEATURE_CUES:
        return {'model': name}, why or f'masks: {name}'
    if not weights.source:
        raise UserError(f'--model {FEATURE_CUES} needs weights: name them as --weights')
    masks = {'model': name, 'backbone': weights.backbone, 'weights': weights.source}
    return masks, why or f'masks: {name} of {weights.backbone}'


def _make_masks(args: argparse.Namespace, folder: Path, masks: Mapping[str, str]):
    """masks: the flags of generate_masks.py that choose their model."""
    flags = [part for flag, value in masks.items() for part in (f'--{flag}', value)]
    generate_masks.main(['--images', args.images, '--out', str(folder), *flags, '--device', args.device])


def _pretrain(args: argparse.Namespace, env: Any, output: Path, dataset: SegmentationDataset, model: str, weights: Weights):
    """Train a network on the photographs, or resume that training. Returns the content of its experiment file."""
    from utils.training.device import choose_device
    experiment, seen = output / f'{args.name}.yml', output / 'images.sha256'
    earlier, trained_on = earlier_settings(experiment, seen)
    given = args.weights not in (AUTO, NONE, IMAGENET)
    settings, reasons = training_settings(args.name, model, len(dataset), choose_device(args.device),
                                          weights.backbone if given else None, dataset.instances)
    if weights.backbone != settings['backbone']:
        weights = choose_weights(args.weights, env.root_dir, [settings['backbone']])
    more, why = initial_settings(weights, settings, earlier if args.weights == AUTO else None)
    settings |= more
    log, images = start_log(), fingerprint(dataset)
    if (output / 'checkpoint.pth.tar').exists() and (earlier, trained_on) != (settings, images):
        log.info('Photographs or settings have changed; the earlier run is now in %s', set_aside(output))
    log = start_log(output / 'log_file.txt')
    for reason in (*reasons, why):
        log.info('%s', reason)
    with atomic_file(experiment, 'w') as file:
        file.write(f'# Made by own_images.py from {len(dataset)} images. To train with other settings, copy this file\n'
                   '# and pass it to main.py: changes in this file are overwritten.\n')
        yaml.safe_dump(settings, file, sort_keys=False)
    with atomic_file(seen, 'w') as file:
        file.write(images + '\n')
    flags = [*([] if args.seed is None else ['--seed', str(args.seed)]), *(['--deterministic'] if args.deterministic else [])]
    pretraining.main(['--config_env', args.config_env, '--config_exp', str(experiment), '--device', args.device,
                      '--amp', args.amp, '--world-size', '1', *flags])
    return settings


def _earlier(network: Path) -> dict[str, Any]:
    """The content of network.yml of an earlier run; empty if there was none."""
    try:
        content = yaml.safe_load(network.read_text(encoding='utf-8'))
        return {'weights': str(content.get('weights', AUTO)),
                'masks': {str(flag): str(value) for flag, value in content['masks'].items()}}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f'{network} could not be read ({error}): make clusters first (make mine)') from error


def _masks_of(network: Path):
    """The mask model of the photographs from which the clusters were made."""
    earlier = _earlier(network)
    if not earlier:
        raise UserError(f'{network} does not exist: make clusters of this name first (make mine NAME={network.parent.name})')
    return earlier['masks']


def _way(asked: str | None, network: Path):
    """How single objects are found, or None. asked: as on the command line, None for as before."""
    if asked:
        return None if asked == NONE else asked
    return _earlier(network).get('masks', {}).get('objects')


def _check_clusters(clusters: str | None, images: int, what: str):
    if clusters not in (None, AUTO) and not (clusters.isdecimal() and 1 <= int(clusters) <= min(images, 254)):
        raise UserError(f'--clusters must be {AUTO} or from 1 to 254, and no more than there are {what} ({images}), not '
                        f'{clusters}')


if __name__ == '__main__':
    main()
