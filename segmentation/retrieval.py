"""Retrieve for each validation segment its nearest neighbours in a database, and take over their class (arXiv 2102.06191,
section 4).

    python retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, and pictures of queries with their neighbours.
"""
from pathlib import Path

import torch

from data.batches import split_loader
from data.dataset import SegmentationDataset
from evaluation.confusion import class_iou, clustering_confusion
from evaluation.embedding import embed
from evaluation.folders import data_folders, ignored_classes, known_classes
from evaluation.images import EvaluationImages
from evaluation.neighbours import neighbour_picture
from evaluation.report import add_pictures_flag, print_iou, write_pictures, write_results
from evaluation.retrieval import mask_classes, nearest
from evaluation.weights import embedding_network, require_masks
from utils.command import join_processes, make_parser, parallel_command
from utils.config import create_config
from utils.config_keys import RETRIEVAL
from utils.device import choose_precision
from utils.distributed import is_main, main_first
from utils.errors import UserError
from utils.log import start_log, write_config
from utils.sources import require_files

NEIGHBOURS = 5  # in the pictures; the first gives its class


def parse_arguments(argv):
    parser = make_parser(__doc__, amp='none')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
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
        embedded[name] = embed(network, loader, device, precision, len(classes), at_resolution=True)
    if not is_main():
        return
    database, queries = embedded['database'], embedded['queries']

    # Neighbours
    labels = mask_classes(database.histograms)
    members = labels.nonzero()[0]
    if not len(members):
        raise UserError(f'{splits["database"].split_file}: no image has a labelled object of a class that counts inside its '
                        'mask, so there is nothing to retrieve')
    found = members[nearest(queries.prototypes, database.prototypes[members], NEIGHBOURS)]
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
