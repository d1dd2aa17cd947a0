"""What the scripts' command lines have in common: flags, and how a run ends."""
import argparse
import functools
import logging
import os
import traceback

import torch

from utils import distributed, preemption
from utils.config_keys import MAX_SEED
from utils.device import choose_device, keep_freed_memory
from utils.errors import UserError
from utils.files import release_folders
from utils.log import log_error, start_log, stop_log

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells have it
EXIT_BUG = 1  # as Python has it

log = logging.getLogger('maskcontrast')


def command(main):
    """Decorate the `main(argv)` of a script that runs as one process: a `UserError` ends it with its line on stderr and exit
    code 2.

    Ctrl-C ends it with one line and exit code 130, SIGTERM and SIGUSR1 with one line and exit code 75.
    """
    @functools.wraps(main)
    def run(argv=None):
        return _run(_refuse_several, main, argv)
    return run


def parallel_command(main):
    """The same for a script that may be one of several processes, of which all end when one does.

    A process that was lost ends the others with exit code 3.
    """
    @functools.wraps(main)
    def run(argv=None):
        return _run(main, argv)
    return run


def _refuse_several(main, argv):
    if os.environ.get('WORLD_SIZE', '1') not in ('', '1'):
        raise UserError('this script runs as one process: start it without torchrun')
    return main(argv)


def _run(main, *arguments):
    with preemption.handled():
        try:
            start_log()  # the script adds its file
            return _run_to_its_end(main, *arguments)
        except UserError as error:
            code = _end(error.line(), EXIT_USER_ERROR)
            # Its frames hold the DataLoader. Left to the garbage collector, each worker would take 5 s to end.
            error.__traceback__ = None
        except KeyboardInterrupt:
            code = _end('interrupted', EXIT_INTERRUPTED)
        except preemption.Preempted as stop:
            code = _leave(stop)
        except Exception as error:
            if not distributed.peers():
                raise
            distributed.peers().wait_for_cause()
            traceback.print_exc()
            code = _end(f'{type(error).__name__}: {error}', EXIT_BUG)
        finally:
            stop_log()
            release_folders()
        raise SystemExit(code) from None


def _run_to_its_end(main, *arguments):
    try:
        result = main(*arguments)
        distributed.leave()
        return result
    except BaseException:
        preemption.ignore()  # a second signal would cut short what is done about this one
        raise


def _end(line, code):
    """Report why this process ends. With several, tell the others, which end too, and exit at once: leaving the group takes all
    of them."""
    if distributed.peers():
        _exit_now(distributed.peers().fail(line, code))
    log_error(line)
    return code


def _leave(stop):
    """End because of SIGTERM or SIGUSR1: with all processes when these have agreed to, else by ending the others."""
    stop.__traceback__ = None
    line = f'stopped by {stop}: give the same command again'
    if not stop.agreed:
        return _end(line, preemption.EXIT_PREEMPTED)
    if distributed.is_main():
        log.warning(line)
    if distributed.peers():
        distributed.leave()
        _exit_now(preemption.EXIT_PREEMPTED)  # torchrun sends SIGTERM to whoever is not the first
    return preemption.EXIT_PREEMPTED


def _exit_now(code):
    stop_log()
    release_folders()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def error(self, message):
        raise UserError(f'{message} (see --help)')


def make_plain_parser(description):
    """A parser without flags yet, for scripts that take no configuration. A mistake in the flags is a `UserError`."""
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def make_env_parser(description, **options):
    """A parser with --config_env alone. options: of its argument, `default`, say."""
    parser = make_plain_parser(description)
    parser.add_argument('--config_env', help='YAML file with root_dir and db_root', **(options or {'required': True}))
    return parser


def make_parser(description, amp, trains=False):
    """A parser with the flags that every script has, and those of training. amp: the default of --amp."""
    parser = make_env_parser(description)
    parser.add_argument('--config_exp', required=True, help='YAML file of the experiment')
    add_machine_flags(parser, amp)
    parser.add_argument('--dist-timeout', type=_seconds, default=distributed.TIMEOUT, metavar='SECONDS',
                        help='with several processes: how long they may stand still before the run ends, naming the one that '
                             f'hangs (default: {distributed.TIMEOUT})')
    if trains:
        parser.add_argument('--override', action='store_true',
                            help='go on although the experiment file has changed since the checkpoint (default: refuse)')
        parser.add_argument('--fresh', action='store_true',
                            help='start over; the folder of the earlier run is renamed, not deleted (default: go on)')
    return parser


def join_processes(args, **meeting):
    """The device that --device asks for, after this process has joined the others of its group, if there are any: on a GPU
    each takes its own. meeting: of `distributed.join`."""
    device = choose_device(args.device)
    if device.type == 'cpu':
        keep_freed_memory()
    distributed.join(device.type, patience=args.dist_timeout, **meeting)
    if device.type == 'cuda' and distributed.world_size() > 1:
        gpus, number = torch.cuda.device_count(), distributed.local_rank()
        if 1 < gpus <= number:  # a single one may be this process's own, as SLURM gives them
            raise UserError(f'there are more processes than the {gpus} GPUs of this machine: start fewer')
        device = torch.device('cuda', number % gpus)
        torch.cuda.set_device(device)
    return device


def add_machine_flags(parser, amp):
    """--device, --amp and --seed. amp: the default of --amp."""
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'mps'), default='auto',
                        help='where to compute (default: auto, the first there is of cuda, mps and cpu)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16', 'fp16'), default=amp,
                        help=f'precision of the networks (default: {amp}; auto is bf16 where the hardware is fast at it, '
                             'else none)')
    parser.add_argument('--seed', type=_seed, help="seed of everything random (default: the experiment's, if it has one)")


def _seed(text):
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f'must be an integer from 0 to {MAX_SEED}, not {text}')
    return int(text)


def _seconds(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'must be a whole number of seconds, at least 1, not {text}')
    return int(text)
