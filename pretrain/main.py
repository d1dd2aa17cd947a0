"""Pre-train a network by contrasting object masks (arXiv 2102.06191, section 3).

    python main.py --config_env configs/env.yml --config_exp configs/VOCSegmentation_supervised_saliency_model.yml

It uses all GPUs of this machine; torchrun or the flags below spread it over several machines.
A run whose checkpoint exists goes on from it. Results are under <root_dir>/<experiment file's name>/.
"""
import copy
import functools
import logging
from pathlib import Path

import torch

from contrastive.builder import ContrastiveModel
from contrastive.launch import add_distributed_flags, launch
from contrastive.pairs import ViewPairs
from contrastive.training import ContrastiveTrainer, view_figure
from data.batches import epoch_loader
from data.dataset import SegmentationDataset, dataset_folder
from models.resnet import output_stride
from utils.command import join_processes, make_parser, parallel_command
from utils.config import create_config, plain
from utils.config_keys import PRETRAIN
from utils.distributed import is_main, main_first, rank, require_same, world_size
from utils.errors import UserError
from utils.files import make_folder, remove_temporaries
from utils.log import write_config
from utils.optim import get_optimizer, learning_rate, set_learning_rate
from utils.preemption import deferred
from utils.random_streams import RandomStreams
from utils.record import Record
from utils.resuming import earlier_state, resolve_start, start_run
from utils.sources import require_files
from utils.training import batches_text, check_batch_size

log = logging.getLogger('maskcontrast')


def parse_arguments(argv):
    parser = make_parser(__doc__, amp='auto', trains=True)
    parser.add_argument('--nvidia-apex', action='store_true', help='old name of --amp fp16')
    add_distributed_flags(parser)
    args = parser.parse_args(argv)
    if args.nvidia_apex:
        args.amp = 'fp16'
    return args


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
    if launch(args, main, argv):
        return
    device = join_processes(args, backend=args.dist_backend, url=args.dist_url)
    p = create_config(args.config_env, args.config_exp, PRETRAIN)
    processes = number_of_processes(p, args.config_exp)
    output = Path(p.output_dir)
    if p.image_cache:
        make_folder(p.image_cache)  # a mistake there ends the run before any work
    start_run(output, args.fresh)

    # What to go on from
    state = earlier_state(p.checkpoint)
    start = resolve_start(p, state, args, device, PRETRAIN)
    if state and state['epoch'] >= p.epochs and not start.changed:
        log.info('This run had finished (%d epochs): %s. Start over with --fresh.', state['epoch'], p.checkpoint)
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
                                  cache=p.image_cache)
    require_same('experiment file and images', (Path(args.config_exp).read_bytes(), dataset.ids))
    check_batch_size(f'{args.config_exp}: train_batch_size', p.train_batch_size, dataset, processes)
    stride = 1 if p.model_kwargs.upsample else output_stride(p.backbone_kwargs.dilated)
    pairs = ViewPairs(dataset, start.seed, p.transformation_kwargs.crop_size, stride, p.on_bad_image == 'skip')
    loader = epoch_loader(pairs, p.train_batch_size, start.seed, p.num_workers, device)
    log.info('%s: %d images with masks from %s (%d ids dropped for want of image or mask), %d steps an epoch', folder,
             len(dataset), dataset.masks.name, dataset.dropped, len(loader.batch_sampler))

    # Model
    torch.manual_seed(start.seed)
    settings = copy.deepcopy(p)
    if state:  # its weights take the place of initial ones, which need not be there any more
        settings.backbone_kwargs.update(pretraining=None, state_dict=None)
    with main_first():  # which may fetch weights
        model = ContrastiveModel(settings)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = get_optimizer(model.parameters(), p.optimizer, **p.optimizer_kwargs)
    streams = RandomStreams(start.seed, rank() * model.processes, model.processes, device)
    trainer = ContrastiveTrainer(model, optimizer, loader, streams, start.precision, p.checkpoint, p.checkpoint_every,
                                 extra={'seed': start.seed, 'precision': start.precision, 'config': plain(p)})
    if state:
        trainer.resume(state, p.checkpoint, same_optimizer='optimizer' not in start.changed, same_batches=not start.changed)
        log.info('Going on from %s, after %d epochs and %d steps', p.checkpoint, trainer.epoch, trainer.step)
    del state  # a model and an optimiser's worth of memory
    log.info('Training on %s, precision %s, seed %d, %s', device, start.precision, start.seed,
             batches_text(p.train_batch_size, processes))
    if processes != world_size():
        log.info('These %d processes are simulated by %d', processes, world_size())

    # Work
    if is_main():
        remove_temporaries(output)
    train(trainer, p, output)
    log.info('Finished: %s', p.checkpoint)


def train(trainer, p, output):
    """The epochs that are left."""
    with Record(output, trainer.epoch, view_figure) as record, deferred():
        while trainer.epoch < p.epochs:
            lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, trainer.epoch, p.epochs, **p.scheduler_kwargs)
            set_learning_rate(trainer.optimizer, lr)
            epoch = trainer.epoch + 1
            numbers = trainer.run_epoch(look_at=functools.partial(record.picture, epoch))
            record.scalars(epoch, {'lr': lr, **numbers})
            trainer.end_epoch()
            log.info('Epoch %d/%d: loss %.4f (contrastive %.4f, saliency %.4f), top-1 %.1f%%, top-5 %.1f%%, lr %.5f, '
                     '%.1f images/s', epoch, p.epochs, numbers['loss'], numbers['contrastive_loss'],
                     numbers['saliency_loss'], numbers['acc1'], numbers['acc5'], lr, numbers['images_per_second'])


def number_of_processes(p, exp_file):
    """How many processes this run computes as. Raises `UserError` when the real ones can't be so many."""
    processes = p.simulate_processes or world_size()
    if processes % world_size():
        raise UserError(f'{exp_file}: simulate_processes is {processes}, which is no multiple of the {world_size()} processes '
                        'there are: choose fewer GPUs with CUDA_VISIBLE_DEVICES, or one with --world-size 1')
    return processes


if __name__ == '__main__':
    main()
