"""How a script ends: its exit codes, and the output for a mistake, a signal or a lost process."""
import functools
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from utils.cli.log import log_error, start_log, stop_log
from utils.cli.packages import missing_package
from utils.errors import UserError, one_line
from utils.parallel import preemption, watchdog
from utils.parallel.ranks import is_main
from utils.parallel.workers import prepare_threads
from utils.storage.run_folder import release_folders

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells have it
EXIT_BUG = 1  # as Python has it
# How PyTorch's messages begin about a worker process that was killed, and about more open files than the system allows
LOST_WORKER, MANY_FILES = 'DataLoader worker', 'Too many open files'
ALLOCATOR = "can't allocate memory"  # in PyTorch's message of memory on a CPU that has run out

log = logging.getLogger('maskcontrast')

T = TypeVar('T')


def command(main: Callable[[list[str] | None], T]) -> Callable[..., T]:
    """Decorate the `main(argv)` of a script that runs as one process: a `UserError` ends it with its line on stderr and exit
    code 2.

    Ctrl-C ends it with one line and exit code 130, SIGTERM and SIGUSR1 with one line and exit code 75.
    """
    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        return _run(_refuse_several, main, argv)
    return run


def parallel_command(main: Callable[[list[str] | None], T]) -> Callable[..., T]:
    """The same for a script that may be one of several processes, of which all end when one does.

    A process that was lost ends the others with exit code 3.
    """
    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        return _run(main, argv)
    return run


def _refuse_several(main: Callable[[list[str] | None], T], argv: list[str] | None):
    if os.environ.get('WORLD_SIZE', '1') not in ('', '1'):
        raise UserError('this script runs as one process: start it without torchrun')
    return main(argv)


def _run(main: Callable[..., T], *arguments: Any):
    with preemption.handled():
        try:
            prepare_threads()
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
            if not watchdog.current:
                raise
            watchdog.current.wait_for_cause()
            traceback.print_exc()
            code = _end(f'{type(error).__name__}: {error}', EXIT_BUG)
        finally:
            stop_log()
            release_folders()
        raise SystemExit(code) from None


def _run_to_its_end(main: Callable[..., T], *arguments: Any):
    try:
        result = main(*arguments)
        _leave_group()
        return result
    except Exception as error:
        preemption.ignore()
        line = _mistake(error)
        if line:
            raise UserError(line) from error
        raise
    except BaseException:
        preemption.ignore()  # a second signal would interrupt the handling of this one
        raise


def _mistake(error: Exception):
    """The message for an error of Python or PyTorch that only the user can fix; None for others."""
    text = one_line(error)
    if isinstance(error, ImportError):
        return missing_package(error)
    if isinstance(error, RuntimeError) and text.startswith(LOST_WORKER):
        what = text.partition(' Details are lost')[0].partition(' It is possible')[0].rstrip('. ')
        return (f'{what}: memory or the space in /dev/shm has probably run out: lower num_workers or the batch size, or make '
                'room (docker run: --memory, --shm-size)')
    if isinstance(error, RuntimeError) and text.startswith(MANY_FILES):
        return 'too many open files for the workers: lower num_workers, or raise the limit (ulimit -n)'
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError' or ALLOCATOR in text:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        words = lines[-1 if lines[0].startswith('Caught ') else 0]  # below a worker's traceback, or above one of C++
        return f'memory has run out ({words}): lower the batch size or num_workers, or use a machine with more'
    return None


def _leave_group():
    if watchdog.current:
        from utils.parallel import distributed  # here, as a process without a group may end before it has loaded PyTorch
        distributed.leave()


def _end(line: str, code: int):
    """Report why this process ends. With several, tell the others, which end too, and exit at once: leaving the group takes all
    of them."""
    if watchdog.current:
        _exit_now(watchdog.current.fail(line, code))
    log_error(line)
    return code


def _leave(stop: preemption.Preempted):
    """End because of SIGTERM or SIGUSR1: with all processes when these have agreed to, otherwise by ending the others."""
    stop.__traceback__ = None
    line = f'stopped by {stop}: repeat the command'
    if not stop.agreed:
        return _end(line, preemption.EXIT_PREEMPTED)
    if is_main():
        log.warning(line)
    if watchdog.current:
        _leave_group()
        _exit_now(preemption.EXIT_PREEMPTED)  # torchrun sends SIGTERM to whoever is not the first
    return preemption.EXIT_PREEMPTED


def _exit_now(code: int):
    stop_log()
    release_folders()
    os._exit(code)
