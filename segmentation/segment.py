"""Assign other photographs to existing clusters: predictions, overlays, and a table.

    python segment.py --config_env configs/env.yml --clusters mine_clusters --images DIR [--names names.yml]

Comes after the masks of DIR (`make segment NAME=mine IMAGES=DIR` makes both; DIR may also be a data set of generate_masks.py).
Results are in <root_dir>/<name>_segment/<the folder's name>/: segments.csv, predictions/ and overlays/. When run again, it
resumes where it stopped, and computes only new or changed photographs. The precision is that with which the clusters were made,
and nothing is drawn at random, so --amp and --seed change nothing.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.cli.log import start_log
from utils.config import read_env
from utils.config.snapshot import write_config
from utils.storage.run_folder import hold_folder

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--clusters', required=True, metavar='FOLDER',
                        help='output folder of own_clusters.py, or its name below root_dir')
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of photographs, or a data set')
    parser.add_argument('--names', metavar='FILE', help="names.yml (default: that of the clusters)")
    parser.add_argument('--out', metavar='FOLDER', help='folder of the results (default: <root_dir>/<name>_segment/<name of '
                                                        'DIR>)')
    parser.add_argument('--num_workers', type=int, default=2, help='processes that read images (default: 2)')
    add_machine_flags(parser, amp='none', seed='none')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    from data.image_folder import segmented_folder
    from evaluation.cluster_names import clusters_and_names
    from evaluation.mask_features import compute_missing, image_keys, object_keys
    from evaluation.objects import Objects
    from evaluation.prototype_cache import PrototypeCache, file_for
    from evaluation.segmentation import Photographs, draw_segments, write_table
    from utils.training.device import be_deterministic, choose_device

    # Clusters
    folder = next((path for path in (Path(args.clusters).expanduser(), Path(env.root_dir) / args.clusters) if path.is_dir()),
                  Path(args.clusters))
    found, names = clusters_and_names(folder, args.names)
    output = Path(args.out) if args.out else segmented_folder(env.root_dir, found.data['name'], args.images)

    # Data
    made = segmented_folder(env.db_root, found.data['name'], args.images)
    photographs = Photographs(args.images, made, found.data['saliency'], found.data.get('instances', False))
    device = choose_device(args.device)
    if args.deterministic:
        be_deterministic()
    hold_folder(output)
    start_log(output / 'log_file.txt')
    log.info('%s: %d photographs, %d with masks (%s); %d clusters of %s, %d of them named', photographs.folder,
             len(photographs), len(photographs.dataset), found.data['saliency'], len(found), folder, len(names))

    # Work
    begin = time.monotonic()
    objects = Objects(photographs.dataset)
    keys = object_keys(image_keys(photographs.dataset), objects)
    with PrototypeCache(file_for(output / 'features', found.settings)) as cache:
        new = compute_missing(cache, objects, keys, found.settings, device, args.num_workers)
        embedded = time.monotonic()
        drawn = draw_segments(output, objects, keys, cache, found, names)
        drew = time.monotonic()
        table = write_table(output, photographs, objects, keys, cache, found, names)

    # Report
    write_config(output / 'config.yml', vars(args), resolved={'device': str(device), **found.settings}, clustering=found.id,
                 n_clusters=len(found) + 1, names=names, data_set=os.path.abspath(photographs.dataset.folder), **found.data)
    log.info('features of %d new photographs %.1f s (%.1f/s), pictures of %d %.1f s', new, embedded - begin,
             new / max(embedded - begin, 1e-9), drawn, drew - embedded)
    log.info('The clusters of the photographs are in %s', table)


if __name__ == '__main__':
    main()
