"""One section of `make gpu`, in this process: rows of JSON on stdout.

    cd benchmarks && python -m gpu.section steps [--device cuda] [--small]
"""
import argparse
import importlib
import sys
from pathlib import Path

from gpu.sections import SECTIONS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'pretrain'))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=[section.name for section in SECTIONS])
    parser.add_argument('--device', choices=('auto', 'cuda', 'cpu'), default='auto')
    parser.add_argument('--small', action='store_true')
    args = parser.parse_args(argv)
    from utils.parallel.workers import prepare_threads
    prepare_threads()  # before PyTorch is loaded
    from gpu.common import make_settings, skip
    section = next(section for section in SECTIONS if section.name == args.name)
    settings = make_settings(args.device, args.small)
    if section.gpu and settings.device.type != 'cuda' and not args.small:
        skip(section.what, section.gpu)
        return
    importlib.import_module(f'gpu.{section.name}').run(settings)


if __name__ == '__main__':
    main()
