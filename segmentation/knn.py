"""Segment the validation images by the nearest neighbours of their patches among those of labelled images (Balažević et al.,
arXiv 2306.01667): an evaluation of dense features without training.

    python knn.py --config_env configs/env.yml --config_exp configs/knn/knn_VOCSegmentation_supervised_saliency.yml

Results are under <root_dir>/<experiment file's name>/: results.json, predictions/, visualization/ and contact_sheet.png.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config.keys import KNN
from utils.errors import UserError

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none', seed='0')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, KNN)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from data.contents import Contents, merged, report
    from data.dataset import SegmentationDataset
    from evaluation.context import EvaluationContext
    from evaluation.inference import write_and_report
    from evaluation.metrics import class_iou
    from evaluation.model_loading import embedding_network
    from evaluation.nearest_patches import PatchMemory, remember, segment_by_memory
    from evaluation.results import print_iou, write_results
    from evaluation.splits import evaluation_split
    from utils.parallel import distributed
    from utils.parallel.ranks import is_main
    from utils.training.device import on_device

    run = EvaluationContext(args, KNN)
    p, output, settings = run.p, run.output, run.p.knn_kwargs
    run.fetch_files('pretraining')
    run.start_log()

    # Data
    folder, val_folder, space = run.data_folders()
    database = SegmentationDataset(folder, settings.train_split, labels=True, max_pixels=p.max_image_pixels)
    dataset = evaluation_split(val_folder, p.val_db_kwargs.split, max_pixels=p.max_image_pixels)
    most = settings.memory_size and settings.memory_size // len(database)
    if most == 0:
        raise UserError(f'{args.config_exp}: knn_kwargs.memory_size ({settings.memory_size}) must be at least the number of '
                        f'images in the memory ({len(database)}), since it holds at least one patch of each')
    log.info('%s: memory of %d images (%s), %s patches of each; %d images to segment, %d classes; weights: %s', folder,
             len(database), settings.train_split, f'at most {most}' if most else 'all', len(dataset), len(space), p.pretraining)

    # Model
    seed = p.seed if args.seed is None else args.seed
    seed = 0 if seed is None else seed
    torch.manual_seed(seed)  # of random weights
    with distributed.main_first():  # which may fetch weights
        network = on_device(embedding_network(p, p.pretraining), run.device).eval()
    run.write_config(seed=seed)

    # Neighbours
    seen = Contents()
    patches = remember(network, run.loader(database, len(space)), len(space), most, seed, run.device, run.precision, seen)
    parts = distributed.gather_objects(seen)
    if parts is not None:  # on rank 0
        report(merged(parts), database, f'memory, {database.split}', space)
    memory = PatchMemory(*patches, settings.k, settings.temperature, settings.block)
    loader = run.loader(dataset, len(space))
    seen = Contents()
    predictions = segment_by_memory(network, memory, loader, run.device, run.precision, seen)
    confusion = write_and_report(predictions, seen, loader, space, output, 'Neighbours', args.num_visualizations)

    # Report
    if not is_main():
        return
    log.info('Predictions and pictures are in %s', output)
    iou = None if confusion is None else class_iou(confusion) * 100
    write_results(output, KNN, p.pretraining, space.names, iou, database=str(folder), train_split=settings.train_split,
                  memory_patches=len(memory.features), k=memory.k, temperature=settings.temperature)
    if iou is not None:
        print_iou(log, space.names, iou)


if __name__ == '__main__':
    main()
