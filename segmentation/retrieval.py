"""Retrieve for each validation segment its nearest neighbours in a database, and assign their class (arXiv 2102.06191, section
4).

    python retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and pictures of queries with their neighbours.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config.keys import RETRIEVAL
from utils.errors import UserError

log = logging.getLogger('maskcontrast')

NEIGHBOURS = 5  # in the pictures; the first gives its class


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none', seed='0')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, RETRIEVAL)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import numpy as np
    import torch

    from data.contents import report
    from data.dataset import SegmentationDataset
    from evaluation.context import EvaluationContext
    from evaluation.extraction import extract_prototypes
    from evaluation.metrics import class_iou, segment_confusion
    from evaluation.model_loading import embedding_network
    from evaluation.predictions import write_pictures
    from evaluation.results import print_iou, write_results
    from evaluation.retrieval import NO_CLASS, mask_classes, nearest_neighbours
    from evaluation.splits import ignored_classes, known_labels
    from evaluation.visualization.neighbours import neighbour_picture
    from utils.parallel.distributed import main_first
    from utils.training.device import on_device

    run = EvaluationContext(args, RETRIEVAL)
    p, output = run.p, run.output
    names = p.retrieval_kwargs.ignore_classes or ()
    known = known_labels(p)
    if known:
        ignored_classes(names, known, args.config_exp)  # a mistake there ends the run before any work
    run.fetch_files('pretraining')
    run.start_log()

    # Data
    folder, val_folder, space = run.data_folders()
    ignored = ignored_classes(names, space, args.config_exp)
    splits = {'database': SegmentationDataset(folder, p.retrieval_kwargs.train_split, p.retrieval_kwargs.saliency, labels=True,
                                              ignored=ignored, max_pixels=p.max_image_pixels),
              'queries': SegmentationDataset(val_folder, p.val_db_kwargs.split, p.val_db_kwargs.saliency, labels=True,
                                             ignored=ignored, max_pixels=p.max_image_pixels)}
    log.info('%s: database of %d images (%s), %d validation images, %d classes, %d ignored; weights: %s', folder,
             len(splits['database']), p.retrieval_kwargs.train_split, len(splits['queries']), len(space), len(ignored),
             p.pretraining)

    # Model
    seed = p.seed if args.seed is None else args.seed
    torch.manual_seed(0 if seed is None else seed)  # of random weights
    with main_first():  # which may fetch weights
        network = on_device(embedding_network(p, p.pretraining), run.device).eval()
    run.write_config(seed=seed)

    # Segments
    database, queries = (extract_prototypes(network, run.loader(dataset, len(space)), run.device, run.precision, len(space),
                                            at_resolution=True) for dataset in splits.values())
    if database is None or queries is None:  # all are on rank 0
        return

    for (part, dataset), segments in zip(splits.items(), (database, queries), strict=True):
        report(segments.contents, dataset, f'{part}, {dataset.split}', space, not dataset.masks, ignored)

    # Neighbours
    assert database.histograms is not None and queries.histograms is not None  # both have labels
    labels, truth = (mask_classes(histograms, space.background) for histograms in (database.histograms, queries.histograms))
    members = np.flatnonzero(labels != NO_CLASS)
    if not len(members):
        raise UserError(f'{splits["database"].split_file}: no image has a labelled object of a class that counts inside its '
                        'mask, so there is nothing to retrieve')
    found = members[nearest_neighbours(queries.prototypes, database.prototypes[members], NEIGHBOURS)]
    confusion = segment_confusion(queries.histograms, labels[found[:, 0]], space.outside, len(space))

    # Report
    iou = class_iou(confusion) * 100
    kept = [index for index in space.objects if index not in ignored] if ignored else list(range(len(space)))

    def draw(index: int):
        query = (splits['queries'][index]['image'], queries.masks[index].array(), truth[index])
        neighbours = [(splits['database'][i]['image'], database.masks[i].array(), labels[i]) for i in found[index]]
        return neighbour_picture(query, neighbours, space)

    write_pictures(output, queries.ids, draw, args.num_visualizations)
    kept_names = [space.names[index] for index in kept]
    write_results(output, RETRIEVAL, p.pretraining, kept_names, iou[kept], database=str(folder),
                  train_split=p.retrieval_kwargs.train_split, database_segments=len(members),
                  ignore_classes=[space.names[index] for index in ignored])
    print_iou(log, kept_names, iou[kept])


if __name__ == '__main__':
    main()
