"""Train the whole network on a share of the labels and score it (arXiv 2102.06191, section 4).

    python finetune.py --config_env configs/env.yml \\
        --config_exp configs/finetune/finetune_VOCSegmentation_supervised_saliency_1_percent.yml

It starts from a pre-training (`pretraining`), from the backbone's own weights (`backbone_kwargs`), or from none. The ids used
for training are saved as train_ids.txt. A run whose checkpoint exists resumes from it. Results are under <root_dir>/<experiment
file's name>/.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
from pathlib import Path

from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config.keys import FINETUNE

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none', trains=True)
    parser.add_argument('--crf-postprocess', action='store_true',
                        help='refine the final predictions with a fully connected CRF (default: no)')
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, FINETUNE)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from data.dataset import SegmentationDataset
    from data.loaders import epoch_loader
    from evaluation.classifier_training import go_on_from, resume_or, train_and_evaluate
    from evaluation.context import EvaluationContext
    from evaluation.finetune_views import FinetuneViews, labelled_ids
    from evaluation.linear_training import FinetuneTrainer
    from evaluation.model_loading import linear_network, load_starting_weights
    from models.networks import fresh_parameters
    from utils.parallel.distributed import require_same
    from utils.parallel.random_streams import RandomStreams
    from utils.parallel.ranks import is_main, rank, world_size
    from utils.storage.atomic import atomic_file
    from utils.training.device import on_device, time_convolutions
    from utils.training.loop import batches_text, check_batch_size
    from utils.training.optimizer import get_optimizer

    run = EvaluationContext(args, FINETUNE)
    p, device = run.p, run.device

    # What to go on from
    earlier = go_on_from(run, 'pretraining', 'backbone_kwargs.moco_state_dict', 'backbone_kwargs.state_dict')
    if earlier is None:
        return
    state, start = earlier

    # Data
    folder, val_folder, space = run.data_folders()
    dataset = SegmentationDataset(folder, p.train_db_kwargs.split, labels=True, cache=p.image_cache,
                                  max_pixels=p.max_image_pixels)
    listed = len(dataset)
    dataset.ids = labelled_ids(dataset, p.train_db_kwargs.share, start.seed, p.train_db_kwargs.ids)
    if is_main():
        with atomic_file(run.output / 'train_ids.txt', 'w') as file:
            file.writelines(f'{name}\n' for name in dataset.ids)
    batch_size = p.train_db_kwargs.batch_size
    require_same('experiment file and images', (Path(args.config_exp).read_bytes(), dataset.ids))
    views = FinetuneViews(dataset, space, start.seed, p.transformation_kwargs.resolution, p.on_bad_image == 'skip',
                          batch_size=batch_size)
    check_batch_size(f'{args.config_exp}: train_db_kwargs.batch_size', batch_size, views, world_size())
    loader = epoch_loader(views, batch_size, start.seed, p.num_workers, device)
    validation = SegmentationDataset(val_folder, 'val', labels=True, max_pixels=p.max_image_pixels)
    val_loader = run.loader(validation, len(space))
    log.info('%s: %d of %d labelled images, %d steps an epoch; %d validation images, %d classes', folder, len(dataset), listed,
             len(views) // batch_size, len(validation), len(space))

    # Model
    torch.manual_seed(start.seed)
    network = on_device(linear_network(p, len(space)), device)
    time_convolutions(device)
    optimizer = get_optimizer(network.parameters(), p.optimizer, heads=fresh_parameters(network), **p.optimizer_kwargs)
    trainer = FinetuneTrainer(network, optimizer, loader, RandomStreams(start.seed, rank(), 1, device), start.precision,
                              p.checkpoint, p.checkpoint_every, extra=start.extra(p), best_model=p.best_model)
    resume_or(lambda: load_starting_weights(network, p), trainer, state, start, p)
    del state, earlier
    log.info('Training on %s, precision %s, seed %d, %s; from %s', device, start.precision, start.seed,
             batches_text(batch_size, world_size()), p.pretraining or p.backbone_kwargs.pretraining or 'the backbone alone')

    train_and_evaluate(trainer, val_loader, space, run, args.crf_postprocess)


if __name__ == '__main__':
    main()
