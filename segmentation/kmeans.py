"""Cluster the object masks of the validation images and score the clusters as classes (arXiv 2102.06191, section 4).

    python kmeans.py --config_env configs/env.yml --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and of the first seed predictions/, visualization/ and
clusters.png. Without labels nothing is scored, and these are of the seed with the most compact clusters.
"""
from pathlib import Path

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.cli.log import start_log
from utils.cli.progress import progress
from utils.config import create_config
from utils.config.keys import EMBEDDING, KMEANS, MAX_SEED
from utils.config.snapshot import write_config
from utils.errors import UserError

FIRST_SEED = 1234


def parse_arguments(argv):
    parser = make_parser(__doc__, amp='none')
    parser.add_argument('--num_seeds', type=int, default=5, help='number of clusterings to average over (default: 5)')
    parser.add_argument('--n_clusters', type=int, help="clusters, background counted (default: the experiment's, else the "
                                                       'number of classes)')
    parser.add_argument('--metrics', action='store_true', help='also report accuracy, NMI and ARI (default: no)')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
    check_early(args, KMEANS)
    # Here, since PyTorch takes seconds that --help and a mistake in the configuration should not cost.
    import torch

    from data.dataset import class_names, dataset_folder
    from data.loaders import split_loader
    from evaluation.clustering import check_clusters, cluster_all, distances, most_compact, seed_scores, whiten
    from evaluation.dataset import EvaluationImages
    from evaluation.extraction import extract_prototypes
    from evaluation.model_loading import StageNetwork, embedding_network, require_masks
    from evaluation.predictions import write_predictions
    from evaluation.results import write_results
    from evaluation.splits import evaluation_split
    from evaluation.visualization.cluster_sheet import SHEET, cluster_names, save_cluster_sheet
    from utils.model_zoo.sources import require_files
    from utils.parallel.distributed import main_first
    from utils.parallel.ranks import is_main
    from utils.training.device import join_processes
    from utils.training.precision import choose_precision

    device = join_processes(args)
    p = create_config(args.config_env, args.config_exp, KMEANS)
    precision = choose_precision(args.amp, device)
    p.seed = first_seed = _first(args.seed, p.seed, FIRST_SEED)
    if args.num_seeds < 1 or first_seed + args.num_seeds - 1 > MAX_SEED:
        raise UserError(f'--num_seeds must be at least 1, and all seeds integers from 0 to {MAX_SEED}')
    require_masks(p, args.config_exp, 'val_db_kwargs.saliency')
    if (p.val_db_kwargs.hide_background or p.kmeans_kwargs.features != EMBEDDING) and not p.val_db_kwargs.saliency:
        raise UserError(f'{args.config_exp}: val_db_kwargs.hide_background and kmeans_kwargs.features need masks: name them as '
                        'val_db_kwargs.saliency')
    with main_first():  # which may fetch them
        require_files(p, args.config_exp, 'pretraining')
    output = Path(p.output_dir)
    log = start_log(output / 'log_file.txt')

    # Data
    with main_first():
        folder = dataset_folder(p.db_root, p.val_db_name)
    dataset = evaluation_split(folder, p.val_db_kwargs.split, p.val_db_kwargs.saliency)
    classes = class_names(folder) if dataset.labels else ()
    n_clusters = _first(args.n_clusters, p.kmeans_kwargs.n_clusters, len(classes) or None)
    check_clusters(n_clusters, dataset)
    images = EvaluationImages(dataset, p.transformation_kwargs.resolution, len(classes))
    loader = split_loader(images, p.num_workers, device, p.val_db_kwargs.batch_size)

    # Model
    torch.manual_seed(first_seed)
    with main_first():  # which may fetch weights
        network = embedding_network(p, p.pretraining)
    if p.kmeans_kwargs.features != EMBEDDING:
        network = StageNetwork(network, p.kmeans_kwargs.features)
    network = network.to(device, memory_format=torch.channels_last).eval()
    if is_main():
        write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': precision,
                                                         'num_seeds': args.num_seeds, 'n_clusters': n_clusters})
    log.info('%s: %d images, %s, %d clusters with background; masks: %s; weights: %s', folder, len(dataset),
             f'{len(classes)} classes' if classes else 'no labels', n_clusters,
             dataset.masks.name if dataset.masks else 'predicted', p.pretraining)

    # Clusters
    embedded = extract_prototypes(network, loader, device, precision, len(classes),
                                  hide_background=p.val_db_kwargs.hide_background)
    if not is_main():
        return
    seeds = range(first_seed, first_seed + args.num_seeds)
    vectors = whiten(embedded.prototypes) if p.kmeans_kwargs.whiten else embedded.prototypes
    clusterings = cluster_all(vectors, embedded.histograms, n_clusters, seeds)
    iou, scores = seed_scores(clusterings, seeds, classes, args.metrics) if classes else (None, {})
    chosen = 0 if classes else most_compact(vectors, clusterings)
    shown = clusterings[chosen]

    # Report
    names = classes or cluster_names(n_clusters)
    predictions = (shown.prediction(index, mask.array()) for index, mask in enumerate(embedded.masks))
    write_predictions(output, dataset, progress(predictions, 'Pictures', len(dataset)), names, args.num_visualizations,
                      score=False)
    save_cluster_sheet(output / SHEET, dataset, embedded.masks, shown, distances(vectors, shown.clusters), names)
    clusters = dict(zip(embedded.ids, (shown.clusters + 1).tolist(), strict=True))
    write_results(output, KMEANS, p.pretraining, classes, iou, n_clusters=n_clusters, seeds=list(seeds), **scores,
                  shown_seed=seeds[chosen], clusters=clusters)
    log.info('Clusters are shown in %s', output / SHEET)
    if classes:
        log.info('Average mIoU is %.1f', iou.mean())


def _first(*values):
    """The first that is not None: flags win over the YAML, which wins over the default."""
    return next((value for value in values if value is not None), None)


if __name__ == '__main__':
    main()
