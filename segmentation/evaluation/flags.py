"""Flags of the evaluations."""
import argparse


def add_pictures_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--num_visualizations', type=_count, help='pictures to draw (default: one for every image)')


def _count(text: str):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be an integer of at least 0, not {text}')
    return int(text)
