"""The flags that several scripts have. Nothing here loads PyTorch, so that `--help` and mistakes in flags are fast."""
import argparse
from pathlib import Path
from typing import NoReturn

from utils.config import TREE, create_config
from utils.config.keys import MAX_SEED
from utils.config.snapshot import require_own_folder
from utils.errors import UserError
from utils.parallel.ranks import from_environment
from utils.parallel.watchdog import TIMEOUT


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (see --help)')


def make_plain_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser without flags yet, for scripts that take no configuration. A mistake in the flags is a `UserError`."""
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def make_env_parser(description: str | None, default: str | Path | None = None) -> argparse.ArgumentParser:
    """A parser with --config_env alone. default: a file below the script tree; None: the flag is required."""
    parser = make_plain_parser(description)
    text = 'YAML file with root_dir and db_root'
    if default is None:
        parser.add_argument('--config_env', required=True, help=text)
    else:
        parser.add_argument('--config_env', default=str(TREE / default), help=f'{text} (default: {default})')
    return parser


def make_parser(description: str | None, amp: str, trains: bool = False, seed: str | None = None) -> argparse.ArgumentParser:
    """A parser with the flags that every script has, and those of training. amp: the default of --amp. seed: that of --seed
    where the experiment has none, in words."""
    parser = make_env_parser(description)
    parser.add_argument('--config_exp', required=True, help='YAML file of the experiment')
    otherwise = seed or ('drawn' if trains else None)
    add_machine_flags(parser, amp, 'that of the experiment, ' + (f'otherwise {otherwise}' if otherwise else 'if any'))
    parser.add_argument('--dist-timeout', type=_seconds, default=TIMEOUT, metavar='SECONDS',
                        help='with several processes: how long they may be stuck before the run ends and names the stuck '
                             f'process (default: {TIMEOUT})')
    parser.add_argument('--share-gpus', action='store_true',
                        help='allow several processes on one GPU (default: an error)')
    if trains:
        parser.add_argument('--override', action='store_true',
                            help='resume although the experiment file has changed since the checkpoint (default: an error)')
        parser.add_argument('--fresh', action='store_true',
                            help='start over; the folder of the earlier run is renamed and kept (default: resume)')
    return parser


def check_early(args: argparse.Namespace, script: str) -> None:
    """Read the configuration for its mistakes alone, and look whose folder it names, before PyTorch is loaded. With several
    processes, each does it only after they have met, so that a mistake is reported once and ends all of them."""
    if from_environment('WORLD_SIZE', default=1) == 1 and getattr(args, 'world_size', 1) <= 1:
        p = create_config(args.config_env, args.config_exp, script)
        require_own_folder(p.output_dir, script, args.config_exp)


def add_machine_flags(parser: argparse.ArgumentParser, amp: str, seed: str) -> None:
    """--device, --amp, --deterministic and --seed. amp: the default of --amp. seed: that of --seed, in words."""
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda', 'mps'), default='auto',
                        help='device (default: auto, the first available one of cuda, mps and cpu)')
    parser.add_argument('--amp', choices=('auto', 'none', 'bf16', 'fp16'), default=amp,
                        help=f'precision of the networks (default: {amp}; auto is bf16 where the hardware is fast at it, '
                             'otherwise none)')
    parser.add_argument('--deterministic', action='store_true',
                        help='use algorithms that are reproducible bit for bit on a GPU, and may be slower (default: no; on a '
                             'CPU, runs with a seed are always reproducible)')
    parser.add_argument('--seed', type=_seed, help=f'seed of all random numbers (default: {seed})')


def fraction(text: str) -> float:
    """The value of a flag that takes a share: from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'must be a number of at least 0 and below 1, not {text}')
    return value


def _seed(text: str):
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f'must be an integer from 0 to {MAX_SEED}, not {text}')
    return int(text)


def _seconds(text: str):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1 (seconds), not {text}')
    return int(text)
