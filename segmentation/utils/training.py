"""The training loop: steps, their numbers, and checkpoints from which a run goes on as if it had never stopped."""
import logging
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from utils.checkpoint import load_exactly, save_checkpoint
from utils.errors import UserError

REPORT_EVERY = 10  # steps between looks at the loss on a GPU, which makes the host wait, and between lines in the log

log = logging.getLogger('maskcontrast')


class Trainer:
    """Runs epochs of one model, optimiser and loader. What a step computes is the subclass's: it defines `train_step`.

    model: on its device. loader: of `EpochBatches` and a data set whose items have `id` and `skipped` (a list of lines about
    files that were passed over). precision: 'none', 'bf16' or 'fp16'. checkpoint: path that is written every `checkpoint_every`
    steps (None: at the end of epochs only). extra: values that every checkpoint carries (seed, precision, configuration).
    """
    PREFIX = ''                       # of the model's keys in checkpoints
    NUMBERS = ('loss',)               # what a step reports
    SHOWN = {'loss': 'loss %.4f'}     # which of it is shown while an epoch runs

    def __init__(self, model, optimizer, loader, device, precision, checkpoint, checkpoint_every=None, extra=None):
        self.model, self.optimizer, self.loader, self.device = model, optimizer, loader, device
        self.precision, self.checkpoint, self.checkpoint_every = precision, checkpoint, checkpoint_every
        self.extra = extra or {}
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == 'fp16')
        self.epoch = self.step = self.skipped = 0
        self.totals = dict.fromkeys(self.NUMBERS, 0.0)

    def train_step(self, batch):
        """Forward, backward and update. Returns the values of NUMBERS as one tensor."""
        raise NotImplementedError

    def own_state(self):
        """What a subclass's checkpoints hold besides, as a dict."""
        return {}

    def resume(self, state, source, same_optimizer=True, same_batches=True):
        """Go on from a checkpoint's `state`. source: its path, for messages.

        Without `same_optimizer` its optimiser starts anew; without `same_batches` its epoch does.
        Raises `UserError` when the state is not one of such a run.
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
                self.step, self.skipped, self.totals = state['step'], state['skipped'], dict(state['totals'])
            random = state.get('random', {})  # published checkpoints have none
            if 'cpu' in random:
                torch.set_rng_state(random['cpu'])
            if 'cuda' in random and self.device.type == 'cuda':
                torch.cuda.set_rng_state(random['cuda'], self.device)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UserError(f'{source}: a run can not go on from it ({type(error).__name__}: {error}): move it away, or '
                            'start over with --fresh') from error

    def save(self):
        """Write the checkpoint: all that the run needs to go on, loadable with weights_only=True.

        Raises `UserError`, and leaves the one before, when the weights are not finite any more.
        """
        random = {'cpu': torch.get_rng_state()}
        if self.device.type == 'cuda':
            random['cuda'] = torch.cuda.get_rng_state(self.device)
        if not torch.isfinite(torch.nn.utils.get_total_norm(self.model.parameters())):
            raise UserError(f'the weights are not finite after epoch {self.epoch}, step {self.step}: '
                            f'{self._what_to_do()}')
        save_checkpoint({
            'model': {self.PREFIX + key: value for key, value in self.model.state_dict().items()},
            'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict(),
            'epoch': self.epoch, 'step': self.step, 'totals': self.totals, 'skipped': self.skipped, 'random': random,
            **self.own_state(), **self.extra}, self.checkpoint)

    def _what_to_do(self):
        exists = Path(self.checkpoint).exists()
        kept = f'{self.checkpoint} holds the state before' if exists else 'no checkpoint was written yet'
        return f'lower optimizer_kwargs.lr, or try --amp none ({kept})'

    def run_epoch(self, look_at=None):
        """Run the rest of the epoch and return its mean numbers, with `images_per_second` and `skipped_images`.

        look_at: called with the first batch, for pictures. Raises `UserError` when a loss is not finite, naming step and
        image ids; nothing is saved then. The checkpoint at the epoch's end is left to the caller, after its reports.
        """
        sampler = self.loader.batch_sampler
        sampler.epoch, sampler.start = self.epoch, self.step
        self.model.train()
        unread, started, first_step = [], time.perf_counter(), self.step
        bar = tqdm(self.loader, desc=f'Epoch {self.epoch + 1}', initial=self.step, total=len(sampler), disable=None,
                   leave=False)
        for batch in bar:
            if self.step == first_step and look_at:
                look_at(batch)
            numbers = self.train_step(batch)
            unread.append((self.step, batch['id'], numbers))
            self._report_skipped(batch['skipped'])
            self.step += 1
            saves = self.checkpoint_every and self.step % self.checkpoint_every == 0 and self.step < len(sampler)
            if self.device.type == 'cpu' or saves or self.step % REPORT_EVERY == 0 or self.step == len(sampler):
                numbers = self._read(unread)
                shown = ', '.join(text % numbers[name] for name, text in self.SHOWN.items())
                bar.set_postfix_str(shown)
                if bar.disable and self.step % REPORT_EVERY == 0:
                    log.info('Epoch %d step %d/%d: %s', self.epoch + 1, self.step, len(sampler), shown)
            if saves:
                self.save()
        images = (self.step - first_step) * sampler.batch_size
        return self._finish_epoch(images / max(time.perf_counter() - started, 1e-9))

    def _read(self, unread):
        """Add the numbers of the steps in `unread` to the epoch's totals, and return the last step's."""
        values = torch.stack([numbers for _, _, numbers in unread]).tolist()
        for (step, ids, _), row in zip(unread, values, strict=True):
            numbers = dict(zip(self.NUMBERS, row, strict=True))
            if not math.isfinite(numbers['loss']):
                raise UserError(f'the loss is {numbers["loss"]} in epoch {self.epoch + 1}, step {step + 1}, images '
                                f'{" ".join(ids)}: look at these images, {self._what_to_do()}')
            for name, value in numbers.items():
                self.totals[name] += value
        unread.clear()
        return numbers

    def _report_skipped(self, lines_of_items):
        for lines in lines_of_items:
            for line in lines:
                log.warning('skipped: %s', line)
            self.skipped += len(lines)

    def _finish_epoch(self, images_per_second):
        means = {name: total / self.step for name, total in self.totals.items()}
        report = {**means, 'images_per_second': images_per_second, 'skipped_images': self.skipped}
        self.epoch, self.step, self.skipped, self.totals = self.epoch + 1, 0, 0, dict.fromkeys(self.NUMBERS, 0.0)
        return report
