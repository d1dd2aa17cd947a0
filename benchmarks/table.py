"""Run every benchmark of the CPU and write its figures into the performance page of the documentation.

    python benchmarks/table.py      (or: make bench)

Each benchmark's line of JSON is printed as it comes. The text between the two marks in docs/performance.md is replaced.
"""
import argparse
import datetime
import json
import os
import platform
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from measure import json_of

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / 'docs' / 'performance.md'
BEGIN, END = '<!-- written by make bench -->\n', '<!-- end of what make bench writes -->\n'
TIMES, RATE, MEMORY = '{:.3g} s', '{:.3g} a second', '{:.0f} MiB'  # how values are shown
PRECISIONS = {'none': 'float32', 'bf16': 'bfloat16'}
PACKAGES = ('torch', 'torchvision', 'opencv-python-headless', 'numpy', 'scikit-learn', 'pydensecrf2')


@dataclass(frozen=True)
class Row:
    """One line of the table, from keys of a benchmark's JSON. what, against: in words, with the JSON's values in braces."""
    what: str
    against: str
    ratio: str
    ours: str
    theirs: str
    shown: str = TIMES


PLAIN = 'the plain method in float32'
STEP = 'training step, {backbone} ({trained} trained), views of {size}, batch {batch}, {precision}'
WHOLE = (Row(STEP, PLAIN, 'speed_up', 'seconds', 'plain_seconds'),
         Row('the same', 'its bare networks: times as long', 'whole_over_bare', 'seconds', 'bare_seconds'))
LOSS = 'losses, {batch} x {grid} x {grid} embeddings to {size}, K {queue}'
BENCHMARKS = {
    ('pretrain_step.py', '--backbone', 'resnet18', '--size', '96', '--batch', '16'): WHOLE,
    ('pretrain_step.py', '--backbone', 'resnet50', '--size', '224', '--batch', '4', '--freeze', '--steps', '5'): WHOLE,
    ('pretrain_step.py', '--backbone', 'resnet18', '--size', '96', '--batch', '16', '--amp', 'none'): WHOLE[:1],
    ('pretrain_loss.py',): (
        Row(LOSS, 'plain losses', 'speed_up', 'seconds', 'plain_seconds'),
        Row('the same: peak memory', 'plain losses', 'plain_over_peak', 'peak_mib', 'plain_peak_mib', MEMORY)),
    ('pretrain_views.py',): (
        Row('two views of {size} from a JPEG of {width} x {height}, images a core', 'torchvision on PIL images', 'speed_up',
            'images_per_second', 'plain_images_per_second', RATE),
        Row('the same from `image_cache`', 'torchvision on PIL images', 'cached_speed_up', 'cached_images_per_second',
            'plain_images_per_second', RATE)),
    ('kmeans_scoring.py',): (
        Row('scoring K-means (network and clustering left out), {images} images of {width} x {height}, {seeds} seeds',
            '441 boolean passes a seed (one seed timed, x 5)', 'speed_up', 'seconds', 'plain_seconds'),
        Row('scoring retrieval, the same images', '21 x 3 boolean passes', 'retrieval_speed_up', 'retrieval_seconds',
            'plain_retrieval_seconds')),
    ('online_evaluation.py',): (
        Row('counting {batch} predictions at {size} x {size}', '21 x 3 boolean passes', 'counting_speed_up', 'counting_seconds',
            'plain_counting_seconds'),
        Row('the same from the features on', 'the batch at once, boolean passes', 'whole_speed_up', 'whole_seconds',
            'plain_whole_seconds')),
    ('linear_probe.py',): (
        Row('linear classifier, {backbone} at {size}: epoch of {images} images and its score, {precision}',
            'float32, network on the validation images each time', 'speed_up', 'seconds', 'plain_seconds'),),
    ('crf.py',): (
        Row('CRF, images of about {size} x {size}, {cores} processes', 'one process', 'speed_up', 'images_per_second_1_a_core',
            'images_per_second_1_process', RATE),),
}


def run(script, *flags):
    report = json_of(HERE / script, *flags)
    print(json.dumps(report), flush=True)
    return report


def table(benchmarks):
    """The rows of the table in Markdown, measured now."""
    lines = ['| what | against | ratio | ours | theirs |', '| --- | --- | --- | --- | --- |']
    for command, rows in benchmarks.items():
        report = run(*command)
        for row in rows:
            ours, theirs = (row.shown.format(report[key]) for key in (row.ours, row.theirs))
            times = _three_digits(report[row.ratio])
            what = row.what.format(**report | {'precision': PRECISIONS.get(report.get('precision'))})
            lines.append(f'| {what} | {row.against} | {times} | {ours} | {theirs} |')
    return lines


def _three_digits(value):
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def growth_tables(report):
    """Small tables from the JSON of growth.py."""
    lines = ['| ResNet-18: views of | batch | a step | peak memory of the process |', '| --- | --- | --- | --- |']
    lines += ['| {size} | {batch} | {seconds:.3g} s | {peak_mib} MiB |'.format(**row) for row in report['steps']]
    lines += ['', '| ResNet-50: views of | layers trained | memory an image of the batch |', '| --- | --- | --- |']
    lines += [f'| {row["size"]} | {"above layer2" if row["freeze"] else "all"} | {row["mib_an_image"]} MiB |'
              for row in report['images']]
    lines += ['', '| images | K-means, 5 seeds, scored | nearest neighbours of 1,449 queries | peak memory of the process |',
              '| --- | --- | --- | --- |']
    return lines + ['| {images:,} | {kmeans_seconds:.3g} s | {retrieval_seconds:.3g} s | {peak_mib} MiB |'.format(**row)
                    for row in report['splits']]


def machine():
    """Processor, versions and date, in words."""
    info = Path('/proc/cpuinfo').read_text()
    name = next(line.split(':')[1].strip() for line in info.splitlines() if line.startswith('model name')).replace('(R)', '')
    fast = ' with AVX512-BF16' if 'avx512_bf16' in info else ''
    packages = ', '.join(f'{package} {version(package)}' for package in PACKAGES)
    return textwrap.fill(f'Measured on {len(os.sched_getaffinity(0))} cores of an {name}{fast}, Python '
                         f'{platform.python_version()}, {packages}, on {datetime.date.today()}.', 128, break_on_hyphens=False)


def replace_block(text, lines):
    """`text` with these lines between the two marks. Raises ValueError if it lacks them."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + '\n'.join(['', *lines, '', END]) + after


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    lines = [*table(BENCHMARKS), '', machine(), '', 'How cost grows:', '', *growth_tables(run('growth.py'))]
    PAGE.write_text(replace_block(PAGE.read_text(), lines))
    print(f'The table in {PAGE} was updated.')


if __name__ == '__main__':
    main()
