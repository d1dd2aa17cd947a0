"""Cluster photographs of one's own: pictures with masks in the clusters' colours, and a sheet with a row for each cluster.

    python own_clusters.py --config_env configs/env.yml [--name mine] [--clusters N]

Comes after own_images.py in pretrain/ (`make mine` runs both), reads what that left in <root_dir>/<name>/, writes the
experiment <root_dir>/<name>_clusters/<name>_clusters.yml and runs kmeans.py on it.
"""
import argparse
import math
from pathlib import Path

import yaml

import kmeans
from data.dataset import SegmentationDataset
from utils.command import command, make_env_parser
from utils.config import read_env
from utils.errors import UserError
from utils.files import atomic_file
from utils.log import start_log

MOST_CLUSTERS = 50  # if nothing else is said
FEW = 2000  # images: from here on the embedding itself is clustered, as published


def parse_arguments(argv):
    parser = make_env_parser(__doc__)
    parser.add_argument('--name', default='mine', help='of the experiment of own_images.py (default: mine)')
    parser.add_argument('--clusters', type=_clusters, metavar='N',
                        help=f'clusters of objects (default: the root of the number of images, {MOST_CLUSTERS} at most)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'mps'), default='auto',
                        help='where to compute (default: auto, the first there is of cuda, mps and cpu)')
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    trained = Path(env.root_dir) / args.name
    try:
        p = yaml.safe_load((trained / 'config.yml').read_text())
        saliency, name = p['train_db_kwargs']['saliency'], p['train_db_name']
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f'{trained / "config.yml"} could not be read ({error}): run own_images.py --name {args.name} '
                        'first') from error
    images = len(SegmentationDataset(Path(env.db_root) / name, 'trainaug', saliency))
    clusters = args.clusters or min(max(2, round(math.sqrt(images))), MOST_CLUSTERS)
    settings = clustering_settings(p, str(trained / 'checkpoint.pth.tar'), images, clusters)

    output = Path(env.root_dir) / f'{args.name}_clusters'
    log = start_log(output / 'log_file.txt')
    log.info('%d images in %d clusters%s', images, clusters, '' if args.clusters else ', about the root of their number')
    experiment = output / f'{output.name}.yml'
    with atomic_file(experiment, 'w') as file:
        file.write('# Made by own_clusters.py\n')
        yaml.safe_dump(settings, file, sort_keys=False)
    kmeans.main(['--config_env', args.config_env, '--config_exp', str(experiment), '--device', args.device])


def clustering_settings(p, checkpoint, images, clusters):
    """The experiment for kmeans.py. p: configuration of the pre-training. clusters: of objects, background not counted.

    With few images the contrast tells these apart, also by what is around the objects, so that is hidden here. It leaves the
    embedding little of what their objects have in common; the backbone's third stage still has it (as the layers before a
    contrastive head do, Chen et al., ICML 2020). Whitening makes noise of all but a few of its components.
    """
    side = 2 * p['transformation_kwargs']['crop_size']
    few = images < FEW
    return {
        'val_db_name': p['train_db_name'],
        'val_db_kwargs': {'split': 'trainaug', 'saliency': p['train_db_kwargs']['saliency'], 'hide_background': few},
        'num_workers': p['num_workers'], 'transformation_kwargs': {'resolution': [side, side]},
        'backbone': p['backbone'], 'backbone_kwargs': {'dilated': p['backbone_kwargs']['dilated']},
        'model_kwargs': p['model_kwargs'], 'head': p['head'],
        'pretraining': checkpoint, 'kmeans_eval': True,
        'kmeans_kwargs': {'n_clusters': clusters + 1, 'features': 'layer3' if few else 'embedding',
                          'components': min(max(4, images // 8), 32)},
    }


def _clusters(text):
    if not text.isdecimal() or not 1 <= int(text) <= 254:
        raise argparse.ArgumentTypeError(f'must be an integer from 1 to 254, not {text}')
    return int(text)


if __name__ == '__main__':
    main()
