"""Cluster photographs of one's own: pictures with masks in the clusters' colours, and a sheet with a row for each cluster.

    python own_clusters.py --config_env configs/env.yml [--name mine] [--clusters N]

Comes after own_images.py in pretrain/ (`make mine` runs both), reads what that left in <root_dir>/<name>/, writes the
experiment <root_dir>/<name>_clusters/<name>_clusters.yml and runs kmeans.py on it.
"""
import utils.cli.packages  # noqa: F401 - first, so that a package that is missing ends the script in a line

# isort: split
import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

import kmeans
from data.dataset import SegmentationDataset
from evaluation.own_images_config import MOST_CLUSTERS, clustering_settings, clusters_for
from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.cli.log import start_log
from utils.config import path_text, read_env
from utils.config.keys import KMEANS
from utils.config.snapshot import require_own_folder
from utils.errors import UserError
from utils.storage.atomic import atomic_file


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--name', default='mine', help='of the experiment of own_images.py (default: mine)')
    parser.add_argument('--clusters', type=_clusters, metavar='N',
                        help=f'clusters of objects (default: the root of the number of images, {MOST_CLUSTERS} at most)')
    add_machine_flags(parser, amp='none')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    trained = Path(env.root_dir) / args.name
    try:
        p = yaml.safe_load((trained / 'config.yml').read_text(encoding='utf-8'))
        folder, saliency = Path(env.db_root) / p['train_db_name'], p['train_db_kwargs']['saliency']
        images = len(SegmentationDataset(folder, 'trainaug', saliency, drop_missing=True))
        settings, why = clustering_settings(p, path_text(trained / 'checkpoint.pth.tar'), images,
                                            args.clusters or clusters_for(images))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f'{trained / "config.yml"} could not be read ({error}): run own_images.py --name {args.name} '
                        'first') from error

    output = Path(env.root_dir) / f'{args.name}_clusters'
    experiment = output / f'{output.name}.yml'
    require_own_folder(output, KMEANS, experiment)
    start_log(output / 'log_file.txt').info('%s', why)
    with atomic_file(experiment, 'w') as file:
        file.write('# Made by own_clusters.py\n')
        yaml.safe_dump(settings, file, sort_keys=False)
    seed = [] if args.seed is None else ['--seed', str(args.seed)]
    kmeans.main(['--config_env', args.config_env, '--config_exp', str(experiment), '--device', args.device, '--amp', args.amp,
                 *seed])


def _clusters(text: str):
    if not text.isdecimal() or not 1 <= int(text) <= 254:
        raise argparse.ArgumentTypeError(f'must be an integer from 1 to 254, not {text}')
    return int(text)


if __name__ == '__main__':
    main()
