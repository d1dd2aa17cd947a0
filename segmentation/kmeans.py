"""Cluster the object masks of the validation images and score the clusters as classes (arXiv 2102.06191, section 4).

    python kmeans.py --config_env configs/env.yml --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and of the first seed predictions/, visualization/ and
clusters.png. Without labels nothing is scored, and these are of the seed with the most compact clusters.
"""
import logging
from pathlib import Path

import numpy as np
import torch

from data.batches import split_loader
from data.dataset import VOID, class_names, dataset_folder
from evaluation import confusion as scoring
from evaluation.cluster_sheet import SHEET, cluster_names, save_cluster_sheet
from evaluation.clustering import METRICS, cluster_all, distances, most_compact, whiten
from evaluation.embedding import embed
from evaluation.folders import evaluation_split
from evaluation.images import EvaluationImages
from evaluation.report import add_pictures_flag, print_iou, write_predictions, write_results
from evaluation.weights import backbone_up_to, embedding_network, require_masks
from utils.command import join_processes, make_parser, parallel_command
from utils.config import create_config
from utils.config_keys import KMEANS, MAX_SEED
from utils.device import choose_precision
from utils.distributed import is_main, main_first
from utils.errors import UserError
from utils.log import start_log, write_config
from utils.progress import progress
from utils.sources import require_files

FIRST_SEED = 1234
EMBEDDING = 'embedding'  # what is clustered if nothing else is said


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
    _check_clusters(n_clusters, dataset)
    images = EvaluationImages(dataset, p.transformation_kwargs.resolution, len(classes))
    loader = split_loader(images, p.num_workers, device, p.val_db_kwargs.batch_size)

    # Model
    torch.manual_seed(first_seed)
    with main_first():  # which may fetch weights
        network = embedding_network(p, p.pretraining)
    if p.kmeans_kwargs.features != EMBEDDING:
        network = backbone_up_to(network, p.kmeans_kwargs.features)
    network = network.to(device, memory_format=torch.channels_last).eval()
    if is_main():
        write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': precision,
                                                         'num_seeds': args.num_seeds, 'n_clusters': n_clusters})
    log.info('%s: %d images, %s, %d clusters with background; masks: %s; weights: %s', folder, len(dataset),
             f'{len(classes)} classes' if classes else 'no labels', n_clusters,
             dataset.masks.name if dataset.masks else 'predicted', p.pretraining)

    # Clusters
    embedded = embed(network, loader, device, precision, len(classes), hide_background=p.val_db_kwargs.hide_background)
    if not is_main():
        return
    seeds = range(first_seed, first_seed + args.num_seeds)
    vectors = whiten(embedded.prototypes) if p.kmeans_kwargs.whiten else embedded.prototypes
    clusterings = cluster_all(vectors, embedded.histograms, n_clusters, seeds)
    iou, scores = _scores(clusterings, seeds, classes, args.metrics) if classes else (None, {})
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


def _check_clusters(n_clusters, dataset):
    if n_clusters is None:
        raise UserError(f'{dataset.folder} has no labels, so the number of clusters is yours to choose: give --n_clusters, or '
                        'kmeans_kwargs.n_clusters (background is one of them)')
    if n_clusters < 2:
        raise UserError(f'--n_clusters must be at least 2 (background is one of them), not {n_clusters}')
    if not dataset.labels and n_clusters > VOID:
        raise UserError(f'--n_clusters must be at most {VOID} without labels (predictions are 8-bit images), not {n_clusters}')
    if len(dataset) < n_clusters - 1:
        raise UserError(f'{dataset.split_file}: {len(dataset)} images are too few for {n_clusters - 1} clusters of objects: '
                        'set kmeans_kwargs.n_clusters or --n_clusters lower')


def _scores(clusterings, seeds, classes, metrics):
    """Print what each clustering scores. Returns the mean IoU of each class over the seeds (C values in percent), and what
    else belongs into the results."""
    log = logging.getLogger('maskcontrast')
    iou = np.stack([scoring.class_iou(clustering.confusion) for clustering in clusterings]) * 100
    for seed, row in zip(seeds, iou, strict=True):
        log.info('Seed %d', seed)
        print_iou(log, classes, row)
    more = {name: float(np.mean([metric(clustering) for clustering in clusterings])) * 100
            for name, metric in METRICS.items()} if metrics else {}
    for name, value in more.items():
        log.info('%s is %.2f', name, value)
    return iou.mean(0), {'mIoU_per_seed': iou.mean(1).tolist(), 'IoU_per_seed': iou.tolist(), **more}


def _first(*values):
    """The first that is not None: flags win over the YAML, which wins over the default."""
    return next((value for value in values if value is not None), None)


if __name__ == '__main__':
    main()
