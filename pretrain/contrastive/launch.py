"""How main.py becomes several processes: by itself on a machine with several GPUs, or with the flags of MoCo's scripts."""
import multiprocessing
import os
import signal
import time
from multiprocessing import connection

import torch

from utils.distributed import meeting_place
from utils.errors import UserError
from utils.preemption import SIGNALS
from utils.processes import end_with_parent

LINGER = 40  # seconds that the others get to end by themselves when one has ended


def add_distributed_flags(parser):
    group = parser.add_argument_group('several processes', 'All visible GPUs of the machine are used if nothing else is said; '
                                                           'under torchrun none of these flags is needed.')
    group.add_argument('--world-size', type=int, default=-1, help='with --multiprocessing-distributed: of machines, else '
                                                                  'of processes')
    group.add_argument('--rank', type=int, default=-1, help='number of this machine, or process, from 0')
    group.add_argument('--dist-url', default='env://', help='where the processes meet: tcp://HOST:PORT, HOST being the machine '
                                                            'of rank 0 (default: env://, MASTER_ADDR and MASTER_PORT)')
    group.add_argument('--dist-backend', choices=('nccl', 'gloo'), help='default: nccl on GPUs, else gloo')
    group.add_argument('--multiprocessing-distributed', action='store_true',
                       help='start a process for each GPU of this machine')


def launch(args, main, argv):
    """Start the processes of this machine and wait for them, where there are several to start: `main(argv)` each.

    args: with the flags above and --device. Returns whether it did; the caller then has nothing left to do. Where this process
    is one of several by itself, the environment says so afterwards. Raises `SystemExit` with the exit code of the process that
    ended first when that was no success, and `UserError` for flags that don't fit together.
    """
    if 'RANK' in os.environ or args.world_size < 2 and args.rank > 0:
        if 'RANK' not in os.environ:
            raise UserError(f'--rank {args.rank} needs --world-size')
        return False
    gpus = torch.cuda.device_count() if args.device in ('auto', 'cuda') else 0
    everywhere = args.multiprocessing_distributed or args.world_size < 1
    here, machines = (max(gpus, 1), max(args.world_size, 1)) if everywhere else (1, args.world_size)
    if here * machines == 1:
        return False
    if machines > 1:
        _check_meeting(args, machines)
    first = max(args.rank, 0) * here
    environments = [{'RANK': str(first + local), 'WORLD_SIZE': str(here * machines), 'LOCAL_WORLD_SIZE': str(here),
                     'LOCAL_RANK': str(local)} for local in range(here)]
    if here == 1:
        if not everywhere:  # other processes may be on this machine, too
            del environments[0]['LOCAL_RANK'], environments[0]['LOCAL_WORLD_SIZE']
        os.environ.update(environments[0])
        return False
    if machines == 1:  # the meeting place lives in this process
        store, way = meeting_place()  # noqa: F841 - there until all have ended
        for environment in environments:
            environment.update(way)
    code = _run(main, argv, environments)
    if code:
        raise SystemExit(code)
    return True


def _check_meeting(args, machines):
    if not 0 <= args.rank < machines:
        raise UserError(f'--world-size {machines} needs a --rank from 0 to {machines - 1}, not {args.rank}')
    if args.dist_url == 'env://' and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise UserError('--world-size needs --dist-url tcp://HOST:PORT, where the processes meet')


def _run(main, argv, environments):
    """Run a process for each of the environments. Signals go to all. Returns the exit code of the first to end badly."""
    context = multiprocessing.get_context('spawn')
    processes = [context.Process(target=_child, args=(main, argv, environment)) for environment in environments]
    before = {number: signal.signal(number, lambda number, _: _signal(processes, number)) for number in SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches them by itself
    try:
        for process in processes:
            process.start()
        connection.wait([process.sentinel for process in processes])
        code = 0
        while not code and any(process.is_alive() for process in processes):
            connection.wait([process.sentinel for process in processes if process.is_alive()])
            code = next((process.exitcode for process in processes if process.exitcode), 0)
        end = time.monotonic() + LINGER
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in processes if process.exitcode and process.exitcode > 0]
        return codes[0] if codes else 1 if code else 0  # not of one that was killed: of one that says why
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(processes, number):
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


def _child(main, argv, environment):
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the starting process ignored it
    end_with_parent()
    main(argv)
