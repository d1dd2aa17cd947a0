"""What the scripts' command lines have in common: flags, and how a run ends."""
import argparse
import functools
import os

from utils.config_keys import MAX_SEED
from utils.errors import UserError
from utils.log import log_error, start_log, stop_log

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells have it


def command(main):
    """Decorate a script's `main(argv)`: a `UserError` ends it with its line on stderr and exit code 2.

    Ctrl-C ends it with one line and exit code 130.
    """
    @functools.wraps(main)
    def run(argv=None):
        try:
            if os.environ.get('WORLD_SIZE', '1') not in ('', '1'):
                raise UserError('this script runs as one process: start it without torchrun')
            start_log()  # the script adds its file
            return main(argv)
        except UserError as error:
            log_error(error.line())
            # Its frames hold the DataLoader. Left to the garbage collector, each worker would take 5 s to end.
            error.__traceback__ = None
            raise SystemExit(EXIT_USER_ERROR) from None
        except KeyboardInterrupt:
            log_error('interrupted')
            raise SystemExit(EXIT_INTERRUPTED) from None
        finally:
            stop_log()
    return run


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
    if trains:
        parser.add_argument('--override', action='store_true',
                            help='go on although the experiment file has changed since the checkpoint (default: refuse)')
        parser.add_argument('--fresh', action='store_true',
                            help='start over; the folder of the earlier run is renamed, not deleted (default: go on)')
    return parser


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
