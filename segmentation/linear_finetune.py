"""Train a linear classifier on the frozen, pre-trained network and score it (arXiv 2102.06191, section 4).

    python linear_finetune.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml

A run whose checkpoint exists resumes from it. Results are under <root_dir>/<experiment file's name>/.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
from pathlib import Path

from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config.keys import LINEAR

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none', trains=True)
    parser.add_argument('--crf-postprocess', action='store_true',
                        help='refine the final predictions with a fully connected CRF (default: no)')
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, LINEAR)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from data.dataset import SegmentationDataset
    from data.loaders import epoch_loader
    from evaluation.classifier_training import go_on_from, resume_or, train_and_evaluate
    from evaluation.context import EvaluationContext
    from evaluation.linear_training import LinearTrainer
    from evaluation.model_loading import load_frozen_weights, probe_network, refuse_other_weights
    from evaluation.training_views import TrainingViews
    from utils.parallel.distributed import require_same
    from utils.parallel.random_streams import RandomStreams
    from utils.parallel.ranks import rank, world_size
    from utils.training.device import on_device, time_convolutions
    from utils.training.loop import batches_text, check_batch_size
    from utils.training.optimizer import get_optimizer

    run = EvaluationContext(args, LINEAR)
    p, device = run.p, run.device

    # What to go on from
    earlier = go_on_from(run, 'pretraining', check=lambda state: refuse_other_weights(state['model'], p, p.checkpoint))
    if earlier is None:
        return
    state, start = earlier

    # Data
    folder, val_folder, space = run.data_folders()
    dataset = SegmentationDataset(folder, p.train_db_kwargs.split, labels=True, cache=p.image_cache,
                                  max_pixels=p.max_image_pixels)
    batch_size, resolution = p.train_db_kwargs.batch_size, p.transformation_kwargs.resolution
    require_same('experiment file and images', (Path(args.config_exp).read_bytes(), dataset.ids))
    check_batch_size(f'{args.config_exp}: train_db_kwargs.batch_size', batch_size, dataset, world_size())
    views = TrainingViews(dataset, space, start.seed, resolution, p.on_bad_image == 'skip')
    loader = epoch_loader(views, batch_size, start.seed, p.num_workers, device)
    validation = SegmentationDataset(val_folder, 'val', labels=True, max_pixels=p.max_image_pixels)
    val_loader = run.loader(validation, len(space))
    log.info('%s: %d images, %d steps an epoch; %d validation images, %d classes', folder, len(dataset),
             len(views) // batch_size, len(validation), len(space))

    # Model
    torch.manual_seed(start.seed)
    network = on_device(probe_network(p, len(space)), device)
    time_convolutions(device)
    optimizer = get_optimizer(network.parameters(), p.optimizer, **p.optimizer_kwargs)
    trainer = LinearTrainer(network, optimizer, loader, RandomStreams(start.seed, rank(), 1, device), start.precision,
                            p.checkpoint, p.checkpoint_every, extra=start.extra(p), best_model=p.best_model)
    resume_or(lambda: load_frozen_weights(network, p), trainer, state, start, p)
    del state, earlier
    log.info('Training on %s, precision %s, seed %d, %s; frozen weights: %s', device, start.precision, start.seed,
             batches_text(batch_size, world_size()), p.pretraining)

    train_and_evaluate(trainer, val_loader, space, run, args.crf_postprocess)


if __name__ == '__main__':
    main()
