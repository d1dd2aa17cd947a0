"""Pre-train a network by contrasting object masks (arXiv 2102.06191, section 3).

    python main.py --config_env configs/env.yml --config_exp configs/VOCSegmentation_supervised_saliency_model.yml

It uses all GPUs of this machine; use torchrun or the flags below for several machines.
A run whose checkpoint exists resumes from it. Results are under <root_dir>/<experiment file's name>/.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import copy
import logging
from pathlib import Path

from contrastive.flags import add_distributed_flags
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config import create_config
from utils.config.keys import PRETRAIN
from utils.config.snapshot import require_own_folder, write_config

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='auto', trains=True)
    parser.add_argument('--nvidia-apex', action='store_true', help='old name of --amp fp16 (default: no)')
    add_distributed_flags(parser)
    args = parser.parse_args(argv)
    if args.nvidia_apex:
        args.amp = 'fp16'
    return args


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, PRETRAIN)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from contrastive.advice import check_negatives, short_run
    from contrastive.augmentations import AUGMENTATIONS
    from contrastive.builder import ContrastiveModel
    from contrastive.launch import launch, number_of_processes
    from contrastive.trainer import ContrastiveTrainer, train
    from contrastive.view_pairs import ViewPairs
    from data.dataset import SegmentationDataset, dataset_folder
    from data.loaders import epoch_loader
    from models.backbones import output_stride
    from models.networks import fresh_parameters
    from utils.checkpoint.kept import KEPT_FOLDER
    from utils.cli.log import warn_once
    from utils.model_zoo.sources import require_files
    from utils.parallel.distributed import main_first, require_same
    from utils.parallel.random_streams import RandomStreams
    from utils.parallel.ranks import is_main, rank, world_size
    from utils.storage.atomic import make_folder, remove_temporaries
    from utils.training.device import join_processes, on_device, time_convolutions
    from utils.training.loop import batches_text, check_batch_size
    from utils.training.optimizer import get_optimizer
    from utils.training.resume import earlier_state, resolve_start, start_run

    if launch(args, main, argv):
        return
    device = join_processes(args, backend=args.dist_backend, url=args.dist_url)
    p = create_config(args.config_env, args.config_exp, PRETRAIN)
    processes = number_of_processes(p.simulate_processes, args.config_exp)
    check_negatives(args.config_exp, p.moco_kwargs.K, p.train_batch_size, processes)
    output = Path(p.output_dir)
    if is_main():
        require_own_folder(output, PRETRAIN, args.config_exp)
    if p.image_cache:
        make_folder(p.image_cache)  # a mistake there ends the run before any work
    start_run(output, args.fresh)

    # What to go on from
    state = earlier_state(p.checkpoint)
    start = resolve_start(p, state, args, device, PRETRAIN)
    if state and state['epoch'] >= p.epochs and not start.changed:
        log.info('This run has finished (%d epochs): %s. Start over with --fresh.', state['epoch'], p.checkpoint)
        return
    if state is None:
        with main_first():  # which may fetch them
            require_files(p, args.config_exp, 'backbone_kwargs.moco_state_dict', 'backbone_kwargs.state_dict')
    if is_main():
        write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': start.precision,
                                                         'seed': start.seed, 'processes': processes})

    # Data
    with main_first():
        folder = dataset_folder(p.db_root, p.train_db_name)
    dataset = SegmentationDataset(folder, 'trainaug', saliency=p.train_db_kwargs.saliency, drop_missing=True,
                                  cache=p.image_cache, max_pixels=p.max_image_pixels, instances=p.train_db_kwargs.instances)
    require_same('experiment file and images', (Path(args.config_exp).read_bytes(), dataset.ids))
    check_batch_size(f'{args.config_exp}: train_batch_size', p.train_batch_size, dataset, processes)
    stride = 1 if p.model_kwargs.upsample else output_stride(p.backbone, p.backbone_kwargs)
    left_out = [name for name in AUGMENTATIONS if not p.transformation_kwargs[name]]
    pairs = ViewPairs(dataset, start.seed, p.transformation_kwargs.crop_size, stride, p.on_bad_image == 'skip', left_out)
    loader = epoch_loader(pairs, p.train_batch_size, start.seed, p.num_workers, device)
    log.info('%s: %d images with %s (%d ids without image or mask dropped), %d steps per epoch', folder,
             len(dataset), f'masks from {dataset.masks.name}' if dataset.masks else 'the whole image as its object',
             dataset.dropped, len(pairs) // p.train_batch_size)
    if dataset.dropped:
        warn_once('%d ids of %s were dropped: %s', dataset.dropped, dataset.split_file, dataset.why_dropped())

    # Model
    torch.manual_seed(start.seed)
    settings = copy.deepcopy(p)
    if state:  # its weights take the place of initial ones, which need not be there any more
        settings.backbone_kwargs.update(pretraining=None, state_dict=None)
    with main_first():  # which may fetch weights
        model = ContrastiveModel(settings)
    model = on_device(model, device)
    time_convolutions(device)
    optimizer = get_optimizer(model.parameters(), p.optimizer, **p.optimizer_kwargs, heads=fresh_parameters(model.model_q))
    here = processes // world_size()  # computed by this process
    streams = RandomStreams(start.seed, rank() * here, here, device)
    trainer = ContrastiveTrainer(model, optimizer, loader, streams, start.precision, p.checkpoint, p.checkpoint_every,
                                 extra=start.extra(p))
    if state:
        same_optimizer = {'optimizer', 'optimizer_kwargs.head_lr'}.isdisjoint(start.changed)
        trainer.resume(state, p.checkpoint, same_optimizer, same_batches=not start.changed)
        log.info('Resuming from %s, after %d epochs and %d steps', p.checkpoint, trainer.epoch, trainer.step)
    del state  # a model and an optimiser's worth of memory
    log.info('Training on %s, precision %s, seed %d, %s', device, start.precision, start.seed,
             batches_text(p.train_batch_size, processes))
    weights = p.backbone_kwargs.pretraining or p.backbone_kwargs.state_dict
    if short := short_run(weights, p.epochs, len(loader), p.train_batch_size):
        warn_once('%s', short)
    if processes != world_size():
        log.info('%d processes are simulated by %d', processes, world_size())

    # Work
    if is_main():
        remove_temporaries(output)
        remove_temporaries(output / KEPT_FOLDER)
    train(trainer, p, output)
    log.info('Finished: %s', p.checkpoint)


if __name__ == '__main__':
    main()
