"""Cluster your own photographs: pictures with masks in the clusters' colours, and a page for naming the clusters.

    python own_clusters.py --config_env configs/env.yml [--name mine] [--clusters N|auto] [--names names.yml]

Comes after own_images.py in pretrain/ (`make mine` runs both), whose network.yml it reads. Results are in
<root_dir>/<name>_clusters/: clusters.html, clusters.png, predictions/, visualization/, results.json; clusters.npz, with which
segment.py assigns other photographs to the same clusters; and <name>_clusters.yml, with which kmeans.py makes the same ones.
When run again, only new photographs go through the network.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.cli.log import start_log
from utils.config import create_config, read_env
from utils.config.keys import KMEANS
from utils.config.snapshot import require_own_folder, write_config
from utils.errors import UserError
from utils.storage.atomic import atomic_file
from utils.storage.run_folder import hold_folder

AUTO = 'auto'
FIRST_SEED, SEEDS = 1234, 5  # as kmeans.py has them

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--name', default='mine', help='name given to own_images.py (default: mine)')
    parser.add_argument('--clusters', type=_clusters, metavar='N',
                        help='number of clusters of objects, or auto: the number with the best silhouette (default: the '
                             'square root of the number of images, at most 50)')
    parser.add_argument('--names', metavar='FILE', help='names.yml, as saved by clusters.html (default: as before)')
    add_machine_flags(parser, amp='none', seed=f'{FIRST_SEED}; of the first clustering')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    output = Path(env.root_dir) / f'{args.name}_clusters'
    require_own_folder(output, KMEANS, output / f'{output.name}.yml')
    network, folder, masks = _network(env, args.name)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import numpy as np

    from data.dataset import SegmentationDataset
    from evaluation.cluster_names import FILE as NAMES
    from evaluation.cluster_names import settle_names
    from evaluation.cluster_number import how_many
    from evaluation.cluster_report import report
    from evaluation.mask_features import compute_missing, feature_settings, image_keys, object_keys
    from evaluation.objects import Objects
    from evaluation.own_images_config import clustering_settings, clusters_for
    from evaluation.prototype_cache import PrototypeCache, file_for
    from evaluation.saved_clusters import FILE, Projection, earlier_clusters, most_compact_clusters
    from utils.training.device import be_deterministic, choose_device
    from utils.training.precision import choose_precision

    # Settings
    device = choose_device(args.device)
    if args.deterministic:
        be_deterministic()
    hold_folder(output)
    start_log(output / 'log_file.txt')
    objects = Objects(SegmentationDataset(folder, 'trainaug', drop_missing=True, **masks))
    if not len(objects):
        raise UserError(f'{objects.dataset.masks}: no image of trainaug contains an object')
    settings, what = clustering_settings(network, len(objects.dataset), clusters_for(len(objects)))
    experiment = _write_experiment(output, settings)
    p = create_config(args.config_env, experiment, KMEANS)
    log.info('%s', f'{len(objects)} objects of {what}' if masks['instances'] else what)

    # Features
    begin = time.monotonic()
    chosen, keys = feature_settings(p, choose_precision(args.amp, device)), object_keys(image_keys(objects.dataset), objects)
    with PrototypeCache(file_for(output / 'features', chosen)) as cache:
        new = compute_missing(cache, objects, keys, chosen, device, p.num_workers)
        vectors = np.stack([cache[key] for key in keys])
    embedded = time.monotonic()

    # Clusters
    projected = p.kmeans_kwargs.whiten or p.kmeans_kwargs.pca
    projection = Projection.fit(vectors, p.kmeans_kwargs.whiten) if projected else None
    points = projection(vectors) if projection else vectors
    seed = FIRST_SEED if args.seed is None else args.seed
    seeds, earlier = range(seed, seed + SEEDS), earlier_clusters(output / FILE)
    named = earlier if args.names or (output / NAMES).exists() else None
    clusters = how_many(args.clusters, len(named) if named else None, points, seeds, output, objects.unit)
    settings['kmeans_kwargs']['n_clusters'] = p.kmeans_kwargs.n_clusters = clusters + 1
    _write_experiment(output, settings)
    data = {'name': args.name, **masks}
    found, best = most_compact_clusters(points, clusters, seeds, projection, chosen, keys, data)
    names = settle_names(output / NAMES, found, earlier, args.names)
    found.save(output / FILE)
    clustered = time.monotonic()

    # Report
    write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': chosen['precision']})
    report(output, args.name, objects, found, found.distances(vectors), names, p.pretraining, list(seeds), best)
    log.info('features of %d new images %.1f s, clusters %.1f s, pictures %.1f s', new, embedded - begin, clustered - embedded,
             time.monotonic() - clustered)
    log.info('%d of %d clusters are named. Look at %s, and name the clusters there', len(names), clusters,
             output / 'clusters.html')
    if names:
        log.info('Other photographs get these names with: make segment NAME=%s IMAGES=DIR', args.name)


def _network(env: Any, name: str):
    """The content of network.yml, the data set's folder, and which of its masks: `saliency` and `instances`, as of
    `SegmentationDataset`."""
    path = Path(env.root_dir) / name / 'network.yml'
    try:
        network = yaml.safe_load(path.read_text(encoding='utf-8'))
        masks = {'saliency': network['train_db_kwargs']['saliency'],
                 'instances': network['train_db_kwargs'].get('instances', False)}
        return network, Path(env.db_root) / network['train_db_name'], masks
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f'{path} could not be read ({error}): run own_images.py --name {name} first') from error


def _write_experiment(output: Path, settings: dict[str, Any]):
    experiment = output / f'{output.name}.yml'
    with atomic_file(experiment, 'w') as file:
        file.write('# Made by own_clusters.py\n')
        yaml.safe_dump(settings, file, sort_keys=False)
    return experiment


def _clusters(text: str):
    if text == AUTO:
        return text
    if not text.isdecimal() or not 1 <= int(text) <= 254:
        raise argparse.ArgumentTypeError(f'must be {AUTO} or an integer from 1 to 254, not {text}')
    return int(text)


if __name__ == '__main__':
    main()
