"""Retrieve for each validation segment its nearest neighbours in a database, and take over their class (arXiv 2102.06191,
section 4).

    python retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and pictures of queries with their neighbours.
"""
from pathlib import Path

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.cli.log import start_log
from utils.config import create_config
from utils.config.keys import RETRIEVAL
from utils.config.snapshot import write_config
from utils.errors import UserError

NEIGHBOURS = 5  # in the pictures; the first gives its class


def parse_arguments(argv):
    parser = make_parser(__doc__, amp='none')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
    check_early(args, RETRIEVAL)
    # Here, since PyTorch takes seconds that --help and a mistake in the configuration should not cost.
    import torch

    from data.dataset import SegmentationDataset
    from data.loaders import split_loader
    from evaluation.dataset import EvaluationImages
    from evaluation.extraction import extract_prototypes
    from evaluation.metrics import class_iou, clustering_confusion
    from evaluation.model_loading import embedding_network, require_masks
    from evaluation.predictions import write_pictures
    from evaluation.results import print_iou, write_results
    from evaluation.retrieval import mask_classes, nearest_neighbours
    from evaluation.splits import data_folders, ignored_classes, known_classes
    from evaluation.visualization.neighbours import neighbour_picture
    from utils.model_zoo.sources import require_files
    from utils.parallel.distributed import main_first
    from utils.parallel.ranks import is_main
    from utils.training.device import join_processes
    from utils.training.precision import choose_precision

    device = join_processes(args)
    p = create_config(args.config_env, args.config_exp, RETRIEVAL)
    precision = choose_precision(args.amp, device)
    require_masks(p, args.config_exp, 'val_db_kwargs.saliency', 'retrieval_kwargs.saliency')
    names = p.retrieval_kwargs.ignore_classes or ()
    if known_classes(p):
        ignored_classes(names, known_classes(p), args.config_exp)  # a mistake there ends the run before any work
    with main_first():  # which may fetch them
        require_files(p, args.config_exp, 'pretraining')
    output = Path(p.output_dir)
    log = start_log(output / 'log_file.txt')

    # Data
    with main_first():
        folder, val_folder, classes = data_folders(p, args.config_exp)
    ignored = ignored_classes(names, classes, args.config_exp)
    splits = {'database': SegmentationDataset(folder, p.retrieval_kwargs.train_split, p.retrieval_kwargs.saliency, labels=True,
                                              ignored=ignored),
              'queries': SegmentationDataset(val_folder, p.val_db_kwargs.split, p.val_db_kwargs.saliency, labels=True,
                                             ignored=ignored)}
    log.info('%s: database of %d images (%s), %d validation images, %d classes, %d ignored; weights: %s', folder,
             len(splits['database']), p.retrieval_kwargs.train_split, len(splits['queries']), len(classes), len(ignored),
             p.pretraining)

    # Model
    seed = p.seed if args.seed is None else args.seed
    torch.manual_seed(0 if seed is None else seed)  # of random weights
    with main_first():  # which may fetch weights
        network = embedding_network(p, p.pretraining)
    network = network.to(device, memory_format=torch.channels_last).eval()
    if is_main():
        write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': precision, 'seed': seed})

    # Segments
    embedded = {}
    for name, dataset in splits.items():
        images = EvaluationImages(dataset, p.transformation_kwargs.resolution, len(classes))
        loader = split_loader(images, p.num_workers, device, p.val_db_kwargs.batch_size)
        embedded[name] = extract_prototypes(network, loader, device, precision, len(classes), at_resolution=True)
    if not is_main():
        return
    database, queries = embedded['database'], embedded['queries']

    # Neighbours
    labels = mask_classes(database.histograms)
    members = labels.nonzero()[0]
    if not len(members):
        raise UserError(f'{splits["database"].split_file}: no image has a labelled object of a class that counts inside its '
                        'mask, so there is nothing to retrieve')
    found = members[nearest_neighbours(queries.prototypes, database.prototypes[members], NEIGHBOURS)]
    confusion = clustering_confusion(queries.histograms, labels[found[:, 0]] - 1, len(classes) - 1)

    # Report
    iou = class_iou(confusion) * 100
    kept = [c for c in range(len(classes)) if not ignored or c and c not in ignored]
    truth = mask_classes(queries.histograms)

    def draw(index):
        query = (splits['queries'][index]['image'], queries.masks[index].array(), truth[index])
        neighbours = [(splits['database'][i]['image'], database.masks[i].array(), labels[i]) for i in found[index]]
        return neighbour_picture(query, neighbours, classes)

    write_pictures(output, queries.ids, draw, args.num_visualizations)
    write_results(output, RETRIEVAL, p.pretraining, [classes[c] for c in kept], iou[kept], database=str(folder),
                  train_split=p.retrieval_kwargs.train_split, database_segments=len(members),
                  ignore_classes=[classes[c] for c in ignored])
    print_iou(log, [classes[c] for c in kept], iou[kept])


if __name__ == '__main__':
    main()
