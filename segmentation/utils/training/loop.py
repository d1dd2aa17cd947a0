"""The training loop: steps, their numbers, and checkpoints from which a run goes on as if it had never stopped."""
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from utils.checkpoint import BackgroundWriter, load_exactly, save_checkpoint, snapshot
from utils.cli.log import warn_once
from utils.errors import UserError
from utils.parallel import distributed, preemption, ranks
from utils.parallel.random_streams import RandomStreams

REPORT_EVERY = 10  # steps between looks at the loss on a GPU, which makes the host wait, and between lines in the log

log = logging.getLogger('maskcontrast')


class _Split(Protocol):
    """The part of `SegmentationDataset` that is used here."""
    split_file: Path

    def __len__(self) -> int: ...


class _Contents(Protocol):
    """The part of `data.contents.Contents` that is used here."""

    def add(self, other: Any, /) -> None: ...


def check_batch_size(name: str, batch_size: int, dataset: _Split, processes: int) -> None:
    """Raise a `UserError` for a global batch that `dataset` can't fill, or that can't be divided over the processes. name: of
    the key, with its file."""
    if len(dataset) < batch_size:
        raise UserError(f'{name} is {batch_size}, but {dataset.split_file} has only {len(dataset)} usable images')
    if batch_size % processes:
        raise UserError(f'{name} is {batch_size}, which cannot be divided over {processes} processes: start fewer of them '
                        '(CUDA_VISIBLE_DEVICES selects the GPUs)')


def batches_text(batch_size: int, processes: int) -> str:
    """The global and the local batch, in words."""
    text = f'batches of {batch_size}'
    return f'{text}: {batch_size // processes} on each of {processes} processes' if processes > 1 else text


class Trainer:
    """Runs epochs of one model, optimiser and loader. A subclass defines the step, `train_step`.

    model: on its device. loader: of `EpochBatchSampler` and a data set whose items have `id`, `skipped` (a list of lines
    about files that were passed over) and `contents` (what was read for it, a `_Contents`). streams: the `RandomStreams` of
    this process. precision: 'none', 'bf16' or 'fp16'.
    checkpoint: path that is written every `checkpoint_every` steps (None: at the end of epochs only). extra: values that every
    checkpoint carries (seed, precision, configuration).

    With several processes, each has its share of every batch; rank 0 alone writes. It does so in the background, one file after
    the other: train inside the context of `writer`, at whose end all is on disk.
    """
    PREFIX = ''                           # of the model's keys in checkpoints
    NUMBERS: tuple[str, ...] = ('loss',)  # what a step reports
    SHOWN = {'loss': 'loss %.4f'}         # which of it is shown while an epoch runs

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: torch.utils.data.DataLoader,
                 streams: RandomStreams, precision: str, checkpoint: str | Path, checkpoint_every: int | None = None,
                 extra: Mapping[str, Any] | None = None):
        self.model, self.optimizer, self.loader, self.device = model, optimizer, loader, streams.device
        self.streams = streams
        self.precision, self.checkpoint, self.checkpoint_every = precision, checkpoint, checkpoint_every
        self.extra = extra or {}
        self.writer = BackgroundWriter()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == 'fp16')
        self.epoch = self.step = self.skipped = 0
        self.seen: _Contents | None = None  # of the images, in the first epoch that this process runs from its beginning
        self.reported = False
        self.totals = dict.fromkeys(self.NUMBERS, 0.0)

    def train_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Forward, backward and update. Returns the values of NUMBERS as one tensor."""
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """Additional content of a subclass's checkpoints, as a dict."""
        return {}

    def report_seen(self, seen: Sequence[Any]) -> None:
        """Log the summary of the images after the first whole epoch. seen: a `_Contents` of each process. Called on rank 0."""

    def resume(self, state: Mapping[str, Any], source: str | Path, same_optimizer: bool = True,
               same_batches: bool = True) -> None:
        """Go on from a checkpoint's `state`. source: its path, for messages.

        Without `same_optimizer` its optimiser starts anew; without `same_batches` its epoch does.
        Raises `UserError` if the state is not one of such a run.
        """
        try:
            model = {key.removeprefix(self.PREFIX): value for key, value in state['model'].items()}
            load_exactly(self.model, model, source)
            if same_optimizer:
                settings = [{key: value for key, value in group.items() if key != 'params'}
                            for group in self.optimizer.param_groups]
                self.optimizer.load_state_dict(state['optimizer'])
                for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                    group.update(own)  # the configuration's, where --override changed them
            if state.get('scaler') and self.scaler.is_enabled():
                self.scaler.load_state_dict(state['scaler'])
            self.epoch = state['epoch']
            if same_batches and state.get('step'):
                self.step, self.totals = state['step'], dict(state['totals'])
                self.skipped = state['skipped'] if ranks.is_main() else 0
            self._resume_random(state.get('random'))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UserError(f'{source}: a run cannot resume from it ({type(error).__name__}: {error}): move it away, or '
                            'start over with --fresh') from error

    def _resume_random(self, states: Sequence[dict[str, torch.Tensor]] | None):
        """states: of the random generators of all processes then, in rank order; None in published checkpoints."""
        if not states:
            return
        here = len(self.streams.states)
        if len(states) == here * ranks.world_size():
            self.streams.set(states[here * ranks.rank():][:here])
        else:
            warn_once('The number of processes changes from %d to %d: batch norm, in-batch prototypes and random numbers will '
                      'differ from a run that was never stopped (simulate_processes: %d would keep them)',
                      len(states), here * ranks.world_size(), len(states))

    def save(self, then: Callable[[], object] | None = None) -> None:
        """Write the checkpoint: the full state for resuming the run, loadable with weights_only=True. All processes call it. It
        is on disk when the next one begins, at the latest at the end of the epoch or of the context of `writer`. then: what
        rank 0 calls as soon as it sees that.

        Raises `UserError`, and leaves the one before, when the weights are not finite any more, and when the file before this
        could not be written; `run_epoch` and the end of the context raise it, too.
        """
        with distributed.watched():
            parts = distributed.gather_objects((self.streams.get(), self.skipped))
            if parts is not None:  # on rank 0
                self._write([state for states, _ in parts for state in states], sum(skipped for _, skipped in parts), then)

    def _write(self, random: list[dict[str, torch.Tensor]], skipped: int, then: Callable[[], object] | None):
        if not torch.isfinite(torch.nn.utils.get_total_norm(self.model.parameters())):
            raise UserError(f'the weights are not finite after epoch {self.epoch}, step {self.step}: '
                            f'{self._what_to_do()}')
        self.writer.finish()  # before the copy: there is one at a time
        state = snapshot({
            'model': {self.PREFIX + key: value for key, value in self.model.state_dict().items()},
            'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict(),
            'epoch': self.epoch, 'step': self.step, 'totals': self.totals, 'skipped': skipped, 'random': random,
            **self.own_state(), **self.extra})
        self.writer.start(functools.partial(save_checkpoint, state, self.checkpoint), then)

    def _what_to_do(self):
        self.writer.wait()
        exists = Path(self.checkpoint).exists()
        kept = f'{self.checkpoint} holds the last good state' if exists else 'no checkpoint was written yet'
        return f'lower optimizer_kwargs.lr, or try --amp none ({kept})'

    def run_epoch(self, look_at: Callable[[dict[str, Any]], object] | None = None) -> dict[str, float]:
        """Run the rest of the epoch and return its mean numbers, with `images_per_second` and `skipped_images`.

        look_at: called with the first batch, for pictures. `end_epoch` is left to the caller, after its reports.
        Raises `UserError` if a loss is not finite, naming step and image ids; nothing is saved then. When one of the processes
        is asked to stop, all write the checkpoint after the same step, and raise `Preempted`.
        """
        sampler: Any = self.loader.batch_sampler  # an `EpochBatchSampler`, which PyTorch doesn't know
        sampler.epoch, sampler.start = self.epoch, self.step
        self.model.train()
        unread, started, first_step = [], time.perf_counter(), self.step
        bar = tqdm(self.loader, desc=f'Epoch {self.epoch + 1}', initial=self.step, total=len(sampler), leave=False,
                   disable=None if ranks.is_main() else True)
        with distributed.watched():
            self._note_step(in_step=False)
            for batch in bar:
                self._note_step(in_step=True)
                if self.step == first_step and look_at:
                    look_at(batch)
                numbers = self.train_step(batch)
                unread.append((self.step, batch['id'], numbers))
                self._report_skipped(batch['skipped'])
                if first_step == 0:
                    self._look(batch)
                self.step += 1
                self._note_step(in_step=False)
                saves = self.checkpoint_every and self.step % self.checkpoint_every == 0 and self.step < len(sampler)
                reads = self.device.type == 'cpu' or saves or self.step % REPORT_EVERY == 0 or self.step == len(sampler)
                if reads:
                    numbers = self._read(unread)
                    shown = ', '.join(text % numbers[name] for name, text in self.SHOWN.items())
                    bar.set_postfix_str(shown)
                    if bar.disable and self.step % REPORT_EVERY == 0:
                        log.info('Epoch %d step %d/%d: %s', self.epoch + 1, self.step, len(sampler), shown)
                stop = self._asked_to_stop()
                if stop and unread:
                    self._read(unread)
                self.writer.check()
                if saves or stop:
                    self.save()
                if stop:
                    self.writer.finish()
                    raise preemption.Preempted(stop, agreed=True)
            self.writer.finish()  # before the numbers of another epoch are written
            if first_step == 0:  # the rest of an epoch may lack a class by chance
                self._report_seen()
        images = (self.step - first_step) * sampler.batch_size
        return self._epoch_report(images / max(time.perf_counter() - started, 1e-9))

    def end_epoch(self, then: Callable[[], object] | None = None) -> None:
        """Go on to the next epoch, and write the checkpoint, as `save` does."""
        self.epoch, self.step, self.skipped, self.totals = self.epoch + 1, 0, 0, dict.fromkeys(self.NUMBERS, 0.0)
        self.save(then)

    def _note_step(self, in_step: bool):
        distributed.note(f'epoch {self.epoch + 1}, step {self.step + 1}', in_step)

    def _asked_to_stop(self):
        """The name of the signal that asked any of the processes to stop, or None; the same on all of them."""
        stop = preemption.requested()
        if distributed.all_reduce(torch.tensor(float(stop is not None))):
            return stop or 'a signal to another process'
        return None

    def _read(self, unread: list[tuple[int, list[str], torch.Tensor]]):
        """Add the numbers of the steps in `unread` (steps, ids, values), means over the processes, to the epoch's totals, and
        return the last step's. Empties `unread`."""
        own = torch.stack([values for _, _, values in unread]).cpu().double()
        means = distributed.all_reduce(own.clone()) / ranks.world_size()
        if not torch.isfinite(means[:, 0]).all():
            bad = [self._not_finite(*row) for row in zip(unread, own.tolist(), strict=True) if not math.isfinite(row[1][0])]
            found = sum(distributed.gather_objects(bad[:1]) or [], [])
            raise UserError(distributed.broadcast_object(found and min(found)[1]))  # from one parameter, they spread to all
        for row in means.tolist():
            numbers = dict(zip(self.NUMBERS, row, strict=True))
            for name, value in numbers.items():
                self.totals[name] += value
        unread.clear()
        return numbers

    def _not_finite(self, step: tuple[int, list[str], torch.Tensor], values: list[float]):
        """The number of the step, and a message."""
        number, ids, _ = step
        who = f' of rank {ranks.rank()}' if ranks.world_size() > 1 else ''
        return number, (f'the loss is {values[0]} in epoch {self.epoch + 1}, step {number + 1}, images{who} {" ".join(ids)}: '
                        f'look at these images, {self._what_to_do()}')

    def _report_skipped(self, lines_of_items: Iterable[list[str]]):
        for lines in lines_of_items:
            for line in lines:
                log.warning('skipped: %s', line)
            self.skipped += len(lines)

    def _look(self, batch: dict[str, Any]):
        for contents in () if self.reported else batch.get('contents', ()):
            if self.seen is None:
                self.seen = contents
            else:
                self.seen.add(contents)

    def _report_seen(self):
        if self.reported:
            return
        parts = distributed.gather_objects(self.seen)
        self.reported, self.seen = True, None
        if parts is not None and any(part is not None for part in parts):  # on rank 0
            self.report_seen(parts)

    def _epoch_report(self, images_per_second: float):
        means = {name: total / self.step for name, total in self.totals.items()}
        skipped = int(distributed.all_reduce(torch.tensor(self.skipped)))
        return {**means, 'images_per_second': images_per_second, 'skipped_images': skipped}
