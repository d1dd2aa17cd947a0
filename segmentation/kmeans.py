"""Cluster the object masks of the validation images, or single objects, and score the clusters as classes (arXiv 2102.06191,
section 4).

    python kmeans.py --config_env configs/env.yml --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and of the first seed predictions/, visualization/ and
clusters.png. Without labels there is no score, and these come from the seed with the most compact clusters.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.cli.progress import progress
from utils.config.keys import EMBEDDING, KMEANS, MAX_SEED
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

FIRST_SEED = 1234


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none', seed=f'{FIRST_SEED}; of the first clustering')
    parser.add_argument('--num_seeds', type=int, default=5, help='number of clusterings to average over (default: 5)')
    parser.add_argument('--n_clusters', type=int, help='number of clusters, including background (default: that of the '
                                                       'experiment, otherwise the number of classes)')
    parser.add_argument('--metrics', action='store_true', help='also report accuracy, NMI and ARI (default: no)')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, KMEANS)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from data.contents import report
    from data.dataset import dataset_folder
    from data.label_space import label_space
    from evaluation.cluster_names import named_space
    from evaluation.clustering import (
        check_clusters,
        check_enough,
        cluster_all,
        distances,
        most_compact,
        reduced,
        seed_scores,
    )
    from evaluation.context import EvaluationContext
    from evaluation.extraction import extract_prototypes
    from evaluation.model_loading import StageNetwork, embedding_network
    from evaluation.objects import Objects
    from evaluation.predictions import write_predictions
    from evaluation.results import write_results
    from evaluation.splits import evaluation_split
    from evaluation.visualization.cluster_sheet import SHEET, save_cluster_sheet
    from utils.parallel.distributed import main_first
    from utils.training.device import on_device

    run = EvaluationContext(args, KMEANS)
    p, output = run.p, run.output
    p.seed = first_seed = _first(args.seed, p.seed, FIRST_SEED)
    if args.num_seeds < 1 or first_seed + args.num_seeds - 1 > MAX_SEED:
        raise UserError(f'--num_seeds must be at least 1, and all seeds integers from 0 to {MAX_SEED}')
    run.fetch_files('pretraining')
    run.start_log()

    # Data
    with main_first():
        folder = dataset_folder(p.db_root, p.val_db_name)
    dataset = evaluation_split(folder, p.val_db_kwargs.split, p.val_db_kwargs.saliency,
                               max_pixels=p.max_image_pixels, instances=p.val_db_kwargs.instances)
    space = label_space(folder) if dataset.labels else None
    classes = len(space) if space else 0
    has_background = space is None or space.background is not None
    n_clusters = _first(args.n_clusters, p.kmeans_kwargs.n_clusters, space.n_clusters if space else None)
    check_clusters(n_clusters, dataset)
    loader = run.loader(dataset, classes)

    # Model
    torch.manual_seed(first_seed)
    with main_first():  # which may fetch weights
        network = embedding_network(p, p.pretraining)
    if p.kmeans_kwargs.features != EMBEDDING:
        network = StageNetwork(network, p.kmeans_kwargs.features)
    network = on_device(network, run.device).eval()
    run.write_config(num_seeds=args.num_seeds, n_clusters=n_clusters)
    log.info('%s: %d images, %s, %d clusters with background; masks: %s; weights: %s', folder, len(dataset),
             f'{classes} classes' if classes else 'no labels', n_clusters,
             dataset.masks.name if dataset.masks else 'predicted', p.pretraining)

    # Clusters
    found = extract_prototypes(network, loader, run.device, run.precision, classes,
                               hide_background=p.val_db_kwargs.hide_background)
    if found is None:  # all are on rank 0
        return
    report(found.contents, dataset, dataset.split, space, predicted=not dataset.masks)
    objects = Objects(dataset, found.counts, found.masks)
    check_enough(n_clusters, len(objects), dataset)
    seeds = range(first_seed, first_seed + args.num_seeds)
    vectors = reduced(found.prototypes, p.kmeans_kwargs.whiten, p.kmeans_kwargs.pca)
    clusterings = cluster_all(vectors, found.histograms, n_clusters, seeds, has_background)
    iou, scores = seed_scores(clusterings, seeds, space.names, args.metrics) if space else (None, {})
    chosen = 0 if space else most_compact(vectors, clusterings)
    shown, shown_space = clusterings[chosen], space or named_space({}, n_clusters - 1)

    # Report
    predictions = (shown.prediction(objects.of_image(index), mask.array()) for index, mask in enumerate(found.masks))
    write_predictions(output, dataset, progress(predictions, 'Pictures', len(dataset)), shown_space, args.num_visualizations,
                      score=False)
    save_cluster_sheet(output / SHEET, objects, shown, distances(vectors, shown.clusters), shown_space)
    clusters = dict(zip(objects.ids, (shown.clusters + 1).tolist(), strict=True))
    write_results(output, KMEANS, p.pretraining, space.names if space else (), iou, n_clusters=n_clusters, seeds=list(seeds),
                  **scores, shown_seed=seeds[chosen], clusters=clusters)
    log.info('Clusters are shown in %s', output / SHEET)
    if iou is not None:
        log.info('Average mIoU is %.1f', iou.mean())


def _first(*values: int | None):
    """The first that is not None: flags win over the YAML, which wins over the default."""
    return next((value for value in values if value is not None), None)


if __name__ == '__main__':
    main()
