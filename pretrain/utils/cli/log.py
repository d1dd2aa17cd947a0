"""The log: on the console, and in the file log_file.txt of a run."""
import logging
import os
import sys
from pathlib import Path

from termcolor import colored
from tqdm import tqdm

from utils.errors import UserError
from utils.parallel.ranks import is_main, rank
from utils.storage.atomic import make_folder

COLOURS = {logging.WARNING: 'yellow', logging.ERROR: 'red'}


class _Formatter(logging.Formatter):
    """Escapes undecodable parts of file names, so that every terminal and file accepts them."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode(errors='backslashreplace').decode()


class _Console(logging.Handler):
    """Prints beside tqdm's bars: messages to stdout, errors to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno in COLOURS:
            text = colored(text, COLOURS[record.levelno])
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        encoding = getattr(stream, 'encoding', None) or 'utf-8'  # ascii, for example, where no language is set
        text = text.encode(encoding, 'backslashreplace').decode(encoding)
        try:
            tqdm.write(text, file=stream)
            stream.flush()
        except BrokenPipeError:  # as after `| head`: the work goes on, and so does the log file
            with open(os.devnull, 'w') as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def start_log(log_file: str | Path | None = None) -> logging.Logger:
    """Send the logger 'maskcontrast' to the console, and append it to `log_file`, whose folder is made. Returns it.

    With several processes, rank 0 says everything, the others only what went wrong.
    """
    log = logging.getLogger('maskcontrast')
    stop_log()
    log.setLevel(logging.INFO if is_main() else logging.WARNING)
    log.propagate = False
    console = _Console()
    who = '' if is_main() else f'rank {rank()}: '
    console.setFormatter(_Formatter(f'{who}%(message)s'))
    log.addHandler(console)
    if log_file is None:
        return log
    make_folder(Path(log_file).parent)
    try:
        file = logging.FileHandler(log_file, encoding='utf-8')
    except OSError as error:
        raise UserError(f'{log_file} could not be written ({error.strerror})') from error
    file.setFormatter(_Formatter(f'%(asctime)s {who}%(message)s', datefmt='%Y-%m-%d %H:%M:%S'))
    log.addHandler(file)
    return log


def stop_log() -> None:
    """Close what `start_log` opened."""
    log = logging.getLogger('maskcontrast')
    for handler in list(log.handlers):
        if isinstance(handler, (_Console, logging.FileHandler)):
            log.removeHandler(handler)
            handler.close()


def warn_once(text: str, *values: object) -> None:
    """Log a warning that all processes share, on rank 0 only. text, values: as for a logger."""
    if is_main():
        logging.getLogger('maskcontrast').warning(text, *values)


def log_error(line: str) -> None:
    """Report an error: through the log once that was started, before that on stderr."""
    log = logging.getLogger('maskcontrast')
    if any(isinstance(handler, _Console) for handler in log.handlers):
        log.error('error: %s', line)
    else:
        print(f'error: {line}', file=sys.stderr)
