"""The flags of main.py for several processes, with the meaning that they have in MoCo's scripts."""
import argparse

from utils.parallel.network import check_url


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('several processes', 'By default all visible GPUs of the machine are used. Under '
                                                           'torchrun these flags are not needed.')
    group.add_argument('--world-size', type=int, default=-1, help='number of machines with --multiprocessing-distributed, '
                                                                  'otherwise of processes; 1 is one process, on one GPU '
                                                                  '(default: a process for each visible GPU)')
    group.add_argument('--rank', type=int, default=-1, help='index of this machine, or process, from 0 (default: 0)')
    group.add_argument('--dist-url', type=_url, default='env://',
                       help='address where the processes meet: tcp://HOST:PORT, where HOST is the machine of rank 0 (default: '
                            'env://, MASTER_ADDR and MASTER_PORT)')
    group.add_argument('--dist-backend', choices=('nccl', 'gloo'), help='default: nccl on GPUs, gloo on CPUs')
    group.add_argument('--multiprocessing-distributed', action='store_true',
                       help='start one process for each GPU of this machine (default: no)')


def _url(text: str):
    try:
        return check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
