"""Train a linear classifier on the frozen, pre-trained network and score it (arXiv 2102.06191, section 4).

    python linear_finetune.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml

A run whose checkpoint exists goes on from it. Results are under <root_dir>/<experiment file's name>/.
"""
import functools
import json
import logging
from pathlib import Path

import torch

from data.batches import epoch_loader, split_loader
from data.dataset import SegmentationDataset
from evaluation.confusion import class_iou
from evaluation.features import ValidationFeatures
from evaluation.folders import data_folders
from evaluation.images import EvaluationImages
from evaluation.linear import LinearTrainer
from evaluation.report import RESULTS, check_output, print_iou, write_results
from evaluation.segmenting import evaluate
from evaluation.training_views import TrainingViews, view_figure
from evaluation.weights import finetuned_network, load_frozen_weights, probe_network, refuse_other_weights
from utils.command import join_processes, make_parser, parallel_command
from utils.config import create_config, plain
from utils.config_keys import LINEAR
from utils.distributed import broadcast_object, broadcast_state, is_main, main_first, rank, require_same, world_size
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
    parser = make_parser(__doc__, amp='none', trains=True)
    parser.add_argument('--crf-postprocess', action='store_true',
                        help='refine the final predictions with a fully connected CRF (default: no)')
    return parser.parse_args(argv)


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
    device = join_processes(args)
    p = create_config(args.config_env, args.config_exp, LINEAR)
    output = Path(p.output_dir)
    if p.image_cache:
        make_folder(p.image_cache)  # a mistake there ends the run before any work
    start_run(output, args.fresh)

    # What to go on from
    state = earlier_state(p.checkpoint)
    start = resolve_start(p, state, args, device, LINEAR)
    if state is None:
        with main_first():  # which may fetch them
            require_files(p, args.config_exp, 'pretraining')
    else:
        refuse_other_weights(state['model'], p, p.checkpoint)
    done = state and state['epoch'] >= p.epochs and not start.changed and finished(output, state, args.crf_postprocess)
    if broadcast_object(done):  # only rank 0 needs the results
        log.info('This run had finished (%d epochs): %s. Start over with --fresh.', state['epoch'], output / RESULTS)
        if is_main():
            remove_temporaries(output)
        return
    if is_main():
        write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': start.precision,
                                                         'seed': start.seed, 'processes': world_size()})

    # Data
    with main_first():
        folder, val_folder, classes = data_folders(p, args.config_exp)
    dataset = SegmentationDataset(folder, p.train_db_kwargs.split, labels=True, cache=p.image_cache)
    batch_size, resolution = p.train_db_kwargs.batch_size, p.transformation_kwargs.resolution
    require_same('experiment file and images', (Path(args.config_exp).read_bytes(), dataset.ids))
    check_batch_size(f'{args.config_exp}: train_db_kwargs.batch_size', batch_size, dataset, world_size())
    views = TrainingViews(dataset, len(classes), start.seed, resolution, p.on_bad_image == 'skip')
    loader = epoch_loader(views, batch_size, start.seed, p.num_workers, device)
    images = EvaluationImages(SegmentationDataset(val_folder, 'val', labels=True), resolution, len(classes))
    val_loader = split_loader(images, p.num_workers, device, p.val_db_kwargs.batch_size)
    log.info('%s: %d images, %d steps an epoch; %d validation images, %d classes', folder, len(dataset),
             len(loader.batch_sampler), len(images), len(classes))

    # Model
    torch.manual_seed(start.seed)
    network = probe_network(p, len(classes)).to(device, memory_format=torch.channels_last)
    optimizer = get_optimizer(network.parameters(), p.optimizer, **p.optimizer_kwargs)
    trainer = LinearTrainer(network, optimizer, loader, RandomStreams(start.seed, rank(), 1, device), start.precision,
                            p.checkpoint, p.checkpoint_every,
                            extra={'seed': start.seed, 'precision': start.precision, 'config': plain(p)},
                            best_model=p.best_model)
    if state:
        trainer.resume(state, p.checkpoint, same_optimizer='optimizer' not in start.changed, same_batches=not start.changed)
        log.info('Going on from %s, after %d epochs and %d steps', p.checkpoint, trainer.epoch, trainer.step)
    else:
        with main_first():
            load_frozen_weights(network, p)
    del state
    broadcast_state(network)  # only rank 0 needs the checkpoint
    log.info('Training on %s, precision %s, seed %d, %s; frozen weights: %s', device, start.precision, start.seed,
             batches_text(batch_size, world_size()), p.pretraining)

    # Work
    if is_main():
        remove_temporaries(output)
        check_output(output)
    train(trainer, val_loader, len(classes), p, output)
    if not trainer.best_iou:
        raise UserError(f'{args.config_exp}: no epoch had an mIoU above 0, so there is no best model: look at the labels of '
                        f'{p.val_db_name}, and at metrics.jsonl')
    final_evaluation(trainer, val_loader, classes, p, output, args.crf_postprocess)


def train(trainer, val_loader, n_classes, p, output):
    """The epochs that are left, each scored on the validation images."""
    keep = p.freeze_batchnorm == 'all'  # the features of the validation images never change
    if trainer.epoch >= p.epochs:
        return
    with ValidationFeatures(trainer.model, val_loader, trainer.device, trainer.precision, p.transformation_kwargs.resolution,
                            output, keep) as validation, \
            Record(output, trainer.epoch, view_figure) as record, deferred():
        while trainer.epoch < p.epochs:
            lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, trainer.epoch, p.epochs, **p.scheduler_kwargs)
            set_learning_rate(trainer.optimizer, lr)
            epoch = trainer.epoch + 1
            numbers = trainer.run_epoch(look_at=functools.partial(record.picture, epoch))
            numbers['mIoU'] = trainer.score(validation, n_classes)
            record.scalars(epoch, {'lr': lr, **numbers})
            trainer.save_epoch(numbers['mIoU'])
            log.info('Epoch %d/%d: loss %.4f, online mIoU %.2f (best %.2f), lr %.5f, %.1f images/s', epoch, p.epochs,
                     numbers['loss'], numbers['mIoU'], trainer.best_iou, lr, numbers['images_per_second'])


def final_evaluation(trainer, val_loader, classes, p, output, crf):
    """Evaluate the best model at the images' own size, as eval.py does, and leave and print its results. classes: names."""
    log.info('Best online mIoU %.2f in epoch %d; evaluating this model at full resolution%s', trainer.best_iou,
             trainer.best_epoch + 1, ', with CRF' if crf else '')
    network = finetuned_network(p, len(classes), p.best_model).to(trainer.device, memory_format=torch.channels_last)
    confusion = evaluate(network, val_loader, classes, output, trainer.device, trainer.precision, crf, pictures=0)
    if not is_main():
        return
    iou = class_iou(confusion) * 100
    write_results(output, LINEAR, p.best_model, classes, iou, crf=crf, pretraining=p.pretraining,
                  epochs=trainer.epoch, online_mIoU=trainer.best_iou, best_epoch=trainer.best_epoch)
    print_iou(log, classes, iou)


def finished(output, state, crf):
    """Whether the results in `output` are those of the best model in `state`, the last checkpoint, with or without `crf`."""
    try:
        results = json.loads((output / RESULTS).read_text())
        wanted = {'script': LINEAR, 'crf': crf, 'epochs': state['epoch'], 'online_mIoU': state.get('best_iou')}
        return wanted.items() <= results.items()
    except (OSError, ValueError, AttributeError):
        return False


if __name__ == '__main__':
    main()
