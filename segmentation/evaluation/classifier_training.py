"""A run that trains a classifier, linear or the whole network: its start or resumption, its epochs, and its results."""
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easydict import EasyDict
from torch.utils.data import DataLoader

from data import contents
from data.dataset import SegmentationDataset
from data.label_space import LabelSpace
from evaluation.context import EvaluationContext
from evaluation.feature_cache import FeatureCache
from evaluation.inference import evaluate
from evaluation.linear_training import LinearTrainer
from evaluation.metrics import class_iou
from evaluation.model_loading import finetuned_network
from evaluation.predictions import check_output
from evaluation.results import RESULTS, print_iou, write_results
from evaluation.training_views import view_figure
from utils.errors import UserError
from utils.parallel import distributed, ranks
from utils.parallel.preemption import deferred
from utils.parallel.ranks import is_main
from utils.storage.atomic import make_folder, remove_temporaries
from utils.training.device import on_device
from utils.training.metrics_writer import MetricsWriter
from utils.training.optimizer import learning_rate, set_learning_rate
from utils.training.resume import Start, earlier_state, resolve_start, start_run

log = logging.getLogger('maskcontrast')


def go_on_from(run: EvaluationContext, *files: str,
               check: Callable[[dict[str, Any]], object] = lambda state: None) -> tuple[dict[str, Any] | None, Start] | None:
    """Start the log of a training run. Returns its earlier checkpoint, None without one, and where it starts; None where the
    run had finished.

    files: keys of the initial weights, which are downloaded if there is no earlier checkpoint. check: called with an earlier
    one.
    """
    p, args, output = run.p, run.args, run.output
    if p.image_cache:
        make_folder(p.image_cache)  # a mistake there ends the run before any work
    start_run(output, args.fresh)
    state = earlier_state(p.checkpoint)
    start = resolve_start(p, state, args, run.device, p.script)
    run.precision = start.precision
    if state is None:
        run.fetch_files(*files)
    else:
        check(state)
    done = (state and state['epoch'] >= p.epochs and not start.changed
            and finished(output, state, args.crf_postprocess, p.script))
    if state and distributed.broadcast_object(done):  # only rank 0 needs the results
        log.info('This run has finished (%d epochs): %s. Start over with --fresh.', state['epoch'], output / RESULTS)
        if is_main():
            remove_temporaries(output)
        return None
    run.write_config(seed=start.seed, processes=ranks.world_size())
    return state, start


def resume_or(load: Callable[[], object], trainer: LinearTrainer, state: Mapping[str, Any] | None, start: Start,
              p: EasyDict) -> None:
    """Go on from the checkpoint's `state`, or without one call `load`, which fills the network. All processes get it."""
    if state:
        same_optimizer = {'optimizer', 'optimizer_kwargs.head_lr'}.isdisjoint(start.changed)  # which makes a second group
        trainer.resume(state, p.checkpoint, same_optimizer, same_batches=not start.changed)
        log.info('Resuming from %s, after %d epochs and %d steps', p.checkpoint, trainer.epoch, trainer.step)
    else:
        with distributed.main_first():
            load()
    distributed.broadcast_state(trainer.model)  # only rank 0 needs the checkpoint


def train_and_evaluate(trainer: LinearTrainer, val_loader: DataLoader, space: LabelSpace, run: EvaluationContext,
                       crf: bool) -> None:
    """The rest of the training, and the score of the best model. Raises `UserError` if no epoch had one."""
    if is_main():
        remove_temporaries(run.output)
        check_output(run.output)
    train(trainer, val_loader, space, run.p, run.output)
    if not trainer.best_iou:
        raise UserError(f'{run.args.config_exp}: no epoch had an mIoU above 0, so there is no best model: check the labels of '
                        f'{run.p.val_db_name}, and metrics.jsonl')
    final_evaluation(trainer, val_loader, space, run.p, run.output, crf)


def train(trainer: LinearTrainer, val_loader: DataLoader, space: LabelSpace, p: EasyDict, output: Path) -> None:
    """The remaining epochs, each (or each `eval_every`-th, and the last) scored on the validation images. p: configuration with
    the schedule."""
    keep = p.get('freeze_batchnorm') == 'all'  # the features of the validation images never change
    every = p.get('eval_every', 1)
    if trainer.epoch >= p.epochs:
        return
    with FeatureCache(trainer.model, val_loader, trainer.device, trainer.precision, p.transformation_kwargs.resolution,
                            output, keep) as validation, \
            MetricsWriter(output, trainer.epoch, functools.partial(view_figure, space)) as record, deferred(), trainer.writer:
        if keep:
            _report_validation(trainer, validation, space)  # before a classifier is trained for them
        while trainer.epoch < p.epochs:
            lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, trainer.epoch, p.epochs, **p.scheduler_kwargs)
            set_learning_rate(trainer.optimizer, lr)
            epoch = trainer.epoch + 1
            numbers = trainer.run_epoch(look_at=functools.partial(record.picture, epoch))
            scored = epoch % every == 0 or epoch == p.epochs
            if scored:
                numbers['mIoU'] = trainer.score(validation, len(space))
                _report_validation(trainer, validation, space)
            record.scalars(epoch, {'lr': lr, **numbers})
            trainer.save_epoch(numbers.get('mIoU', 0.0))
            log.info('Epoch %d/%d: loss %.4f, %slr %.5f, %.1f images/s', epoch, p.epochs, numbers['loss'],
                     f'online mIoU {numbers["mIoU"]:.2f} (best {trainer.best_iou:.2f}), ' if scored else '', lr,
                     numbers['images_per_second'])


def _report_validation(trainer: LinearTrainer, validation: FeatureCache, space: LabelSpace):
    """Log the summary of the validation images once all of them have been read. All processes call it."""
    images: Any = validation.loader.dataset  # `EvaluationImages`
    dataset: SegmentationDataset = images.dataset
    with distributed.watched():
        parts = distributed.gather_objects(validation.seen)
        if parts is not None and None not in parts and not trainer.validation_told:  # on rank 0
            trainer.validation_told = True
            contents.report(contents.merged(parts), dataset, dataset.split, space)


def final_evaluation(trainer: LinearTrainer, val_loader: DataLoader, space: LabelSpace, p: EasyDict, output: Path,
                     crf: bool) -> None:
    """Evaluate the best model at the images' own size, as eval.py does, and leave and print its results."""
    log.info('Best online mIoU %.2f in epoch %d; evaluating this model at full resolution%s', trainer.best_iou,
             trainer.best_epoch + 1, ', with CRF' if crf else '')
    network = on_device(finetuned_network(p, len(space), p.best_model), trainer.device)
    confusion = evaluate(network, val_loader, space, output, trainer.device, trainer.precision, crf, pictures=0,
                         told=trainer.validation_told)
    if not is_main() or confusion is None:
        return
    iou = class_iou(confusion) * 100
    write_results(output, p.script, p.best_model, space.names, iou, crf=crf, pretraining=p.pretraining,
                  epochs=trainer.epoch, online_mIoU=trainer.best_iou, best_epoch=trainer.best_epoch)
    print_iou(log, space.names, iou)


def finished(output: Path, state: dict[str, Any], crf: bool, script: str) -> bool:
    """Whether the results in `output` are those of the best model in `state`, the last checkpoint, with or without `crf`."""
    try:
        results = json.loads((output / RESULTS).read_text())
        wanted = {'script': script, 'crf': crf, 'epochs': state['epoch'], 'online_mIoU': state.get('best_iou')}
        return wanted.items() <= results.items()
    except (OSError, ValueError, AttributeError):
        return False
