"""How main.py becomes several processes: by itself on a machine with several GPUs, or with the flags of MoCo's scripts."""
import argparse
import os
import signal
from collections.abc import Callable
from typing import Any

from torch import multiprocessing

from utils.errors import UserError
from utils.parallel.distributed import rendezvous_store
from utils.parallel.preemption import EXIT_PREEMPTED, SIGNALS
from utils.parallel.ranks import world_size
from utils.parallel.workers import end_with_parent
from utils.training.gpus import count_gpus

LAUNCHED = 'MASKCONTRAST_LAUNCHED'  # marks the environment of processes that are started here
TORCHRUN = 'TORCHELASTIC_RUN_ID'  # set by torchrun
LEFT_BEHIND = ('LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'RANK', 'WORLD_SIZE')
GRACE = 20  # seconds that the others get to end by themselves when one has failed


def launch(args: argparse.Namespace, main: Callable[[list[str] | None], None], argv: list[str] | None) -> bool:
    """Start the processes of this machine, each with `main(argv)`, and wait for them, if there are several.

    args: with the flags of `contrastive.flags` and --device. Returns whether it did; then nothing is left for the caller. Where
    this process is one of several by itself, the environment says so afterwards. Raises `SystemExit` when a process has failed,
    with the first positive exit code in rank order, and `UserError` for flags that don't fit together.
    """
    if LAUNCHED in os.environ:  # started from here
        return False
    typed = args.world_size > 0 or args.rank >= 0 or args.multiprocessing_distributed
    if typed and TORCHRUN in os.environ:
        raise UserError('torchrun sets the rank and the number of processes: omit --world-size, --rank and '
                        '--multiprocessing-distributed, or start main.py without torchrun')
    if not typed and 'LOCAL_RANK' in os.environ:  # started by torchrun or another launcher
        return False
    if typed:  # it wins over what another launcher has left behind
        for name in LEFT_BEHIND:
            os.environ.pop(name, None)
    if args.world_size < 1 and 'WORLD_SIZE' in os.environ and args.dist_url == 'env://':  # as MoCo's scripts have it
        args.world_size, args.rank = int(os.environ['WORLD_SIZE']), int(os.environ.get('RANK', -1))
    if args.rank > 0 and args.world_size < 2:
        raise UserError(f'--rank {args.rank} needs --world-size, of 2 or more')
    if args.world_size > 1:
        _check_meeting(args)
    by_hand = args.world_size > 0 and not args.multiprocessing_distributed  # whoever started this starts the others
    gpus = count_gpus() if args.device in ('auto', 'cuda') else 0
    here, others = 1 if by_hand else max(gpus, 1), max(args.world_size, 1)
    count, first = here * others, max(args.rank, 0) * here
    if here == 1 and count > 1:
        os.environ.update(_environment(first, count))
        if not by_hand:  # the only one on its machine
            os.environ.update(LOCAL_RANK='0', LOCAL_WORLD_SIZE='1')
        os.environ[LAUNCHED] = 'True'
    if here == 1:
        return False
    environments = [{**_environment(first + local, count), 'LOCAL_RANK': str(local), 'LOCAL_WORLD_SIZE': str(here),
                     LAUNCHED: 'True'}
                    for local in range(here)]
    if others == 1:
        store, way = rendezvous_store()  # noqa: F841 - it is there until all have ended
        environments = [{**environment, **way} for environment in environments]
    code = _run(main, argv, environments)
    if code:
        raise SystemExit(code)
    return True


def _environment(rank: int, count: int):
    return {'RANK': str(rank), 'WORLD_SIZE': str(count)}


def _check_meeting(args: argparse.Namespace):
    if not 0 <= args.rank < args.world_size:
        raise UserError(f'--world-size {args.world_size} needs a --rank from 0 to {args.world_size - 1}')
    if args.dist_url == 'env://' and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise UserError('--world-size needs --dist-url tcp://HOST:PORT, the address where the processes meet')


def _run(main: Callable[[list[str] | None], None], argv: list[str] | None, environments: list[dict[str, str]]):
    """Run a process for each of the environments, to which signals go on. Returns 0, or the exit code of one that says why."""
    processes: list[Any] = []
    signals: list[int] = []

    def forward(number: int, _: Any):
        signals.append(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches them by itself
    try:
        context = multiprocessing.start_processes(_child, (main, argv, environments), len(environments), join=False)
        processes += context.processes
        if signals:  # while they were being started
            forward(signals[0], None)
        while not context.join(grace_period=GRACE):
            pass
        return 0
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException):
        otherwise = EXIT_PREEMPTED if signals else 1  # the signal may have come before they could handle it
        return next((process.exitcode for process in processes if process.exitcode > 0), otherwise)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(local: int, main: Callable[[list[str] | None], None], argv: list[str] | None,
           environments: list[dict[str, str]]):
    os.environ.update(environments[local])
    end_with_parent()
    main(argv)


def number_of_processes(simulated: int | None, exp_file: str) -> int:
    """The number of processes whose result this run computes. simulated: the key `simulate_processes`, or None.

    Raises `UserError` if this can't be divided over the real processes."""
    processes = simulated or world_size()
    if processes % world_size():
        raise UserError(f'{exp_file}: simulate_processes is {processes}, which is not a multiple of the {world_size()} '
                        'processes there are: choose fewer GPUs with CUDA_VISIBLE_DEVICES, or one with --world-size 1')
    return processes
