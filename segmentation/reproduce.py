"""Run the rows of the paper's tables on PASCAL VOC, and print published and measured results side by side.

    make reproduce [ARGS="--fetch --rows kmeans_supervised"]

Weights come from the model zoo or, under the names of the zoo, from your own files. A row already measured with the same
weights and seeds is skipped (unless --again is given), and one that was stopped resumes. Each row's results are under
<root_dir>/reproduce_<row>/, the table's under <root_dir>/reproduce/, as results.json and table.png.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from data.label_space import VOC
from evaluation.published_rows import ROWS, UNPUBLISHED, Row
from utils.cli.command import command
from utils.cli.flags import make_env_parser
from utils.cli.log import start_log
from utils.config import path_text, read_env
from utils.config.keys import CLASSIFIERS, EVAL
from utils.errors import UserError
from utils.model_zoo.zoo import ZOO, local_file, zoo_file
from utils.storage.atomic import atomic_file

TREE = Path(__file__).resolve().parent


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--rows', nargs='+', metavar='ROW', default=list(ROWS), help=f'of {", ".join(ROWS)} (default: all)')
    parser.add_argument('--weights', nargs='+', metavar='NAME=PATH', default=[],
                        help=f'your own files for the names {", ".join((*ZOO, *UNPUBLISHED))} (default: none)')
    parser.add_argument('--fetch', action='store_true', help='download the weights in the zoo (default: use only those on '
                                                             'disk)')
    parser.add_argument('--seeds', type=int, default=1, metavar='N',
                        help='number of trainings of each row that trains a classifier, with the seeds 0, 1, ... (default: 1)')
    parser.add_argument('--again', action='store_true', help='also run rows that were already measured (default: no)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    own = own_files(args.weights)
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f'--rows: there is no row {name}, only {", ".join(ROWS)}')
    if args.seeds < 1:
        raise UserError(f'--seeds must be at least 1, not {args.seeds}')
    output = Path(env.root_dir) / 'reproduce'
    log = start_log(output / 'log_file.txt')

    measured = earlier_rows(output / 'results.json')
    for name in args.rows:
        log.info('%s', name)
        before, found = measured.get(name, {}), run(name, ROWS[name], env, own, args, measured.get(name, {}))
        earlier = before if 'measured' in before else before.get('earlier')
        if earlier and 'measured' not in found:
            found['earlier'] = earlier
        measured[name] = {'published': ROWS[name].published, **found}
        with atomic_file(output / 'results.json', 'w') as file:  # after each row: they take long
            json.dump(measured, file, indent=1)
    draw_table({name: measured[name] for name in ROWS if name in measured}, output / 'table.png')
    log.info('')
    log.info('%-30s  %9s  %14s', 'row', 'published', 'measured')
    for name in args.rows:
        found = measured[name]
        remarks = [f'{key}: {found[key]}' for key in ('missing', 'error') if key in found]
        if 'earlier' in found:
            remarks.insert(0, f'measured earlier: {found["earlier"]["measured"]:.2f};')
        log.info('%-30s  %9.1f  %14s  %s', name, found['published'], _figure_text(found), ' '.join(remarks))
    failed = [name for name in args.rows if 'error' in measured[name]]
    if failed:
        raise UserError(f'these rows failed: {", ".join(failed)} (see the table, and {output}/<row>.stderr)')


def _figure_text(found: Mapping[str, Any]):
    if 'measured' not in found:
        return '-'
    return f'{found["measured"]:.2f}' + (f' +- {found["spread"]:.2f}' if found.get('spread') is not None else '')


def draw_table(measured: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw measured and published results side by side."""
    from evaluation.visualization.published_table import table_figure
    with atomic_file(path) as file:
        table_figure(measured).savefig(file, format='png')


def earlier_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The results of earlier runs for the existing rows."""
    try:
        return {name: found for name, found in json.loads(path.read_text()).items() if name in ROWS}
    except (OSError, ValueError, AttributeError):
        return {}


def own_files(pairs: Iterable[str]) -> dict[str, str]:
    """{name: absolute path} of NAME=PATH arguments."""
    files, names = {}, (*ZOO, *UNPUBLISHED)
    for pair in pairs:
        name, _, path = pair.partition('=')
        if name in names and path and not Path(path).is_file():
            raise UserError(f'--weights {pair}: there is no file {path}')
        if name not in names or not path:
            raise UserError(f'--weights {pair}: must be NAME=PATH of a file, with one of the names {", ".join(names)}')
        files[name] = str(Path(path).resolve())
    return files


def run(name: str, row: Row, env: EasyDict, own: Mapping[str, str], args: argparse.Namespace,
        before: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one row, each of its seeds in a separate process.

    Returns {'measured': mean mIoU in percent, 'spread': standard deviation over seeds or None, 'seeds': how many, 'weights':
    path}; {'missing': what it needs}; or {'error': the last line of what went wrong}. before: the same of an earlier run.
    """
    if not (Path(env.db_root) / VOC).is_dir():
        return {'missing': f'the data set {Path(env.db_root) / VOC} (kmeans.py with a shipped file downloads it)'}
    weights = own.get(row.weights) if row.weights else None
    if row.weights and weights is None:
        if row.weights in UNPUBLISHED:
            return {'missing': f'a pre-training with pretrain/configs/{UNPUBLISHED[row.weights]}: give it as '
                               f'--weights {row.weights}=PATH'}
        if not (args.fetch or zoo_file(row.weights, env.root_dir).exists()):
            return {'missing': f'zoo://{row.weights}: give --fetch, or --weights {row.weights}=PATH'}
        try:
            weights = str(Path(local_file(f'zoo://{row.weights}', env.root_dir)).resolve())
        except UserError as error:
            return {'error': error.line()}
    seeds = args.seeds if row.script in CLASSIFIERS else 1
    if 'measured' in before and (before.get('weights'), before.get('seeds')) == (weights, seeds) and not args.again:
        return dict(before)
    scores: list[float] = []
    for seed in range(seeds):
        found = run_once(f'{name}_seed_{seed}' if seeds > 1 else name, row, env, weights, args, seed)
        if 'error' in found:
            return found
        scores += found.get('mIoU_per_seed') or [found['mIoU']]
    return {'measured': statistics.fmean(scores), 'spread': statistics.stdev(scores) if len(scores) > 1 else None,
            'seeds': seeds, 'weights': weights}


def run_once(name: str, row: Row, env: EasyDict, weights: str | None, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The content of results.json of one run, or {'error': the last line of what went wrong}."""
    experiment = Path(env.root_dir) / 'reproduce' / f'reproduce_{name}.yml'
    content = yaml.safe_load((TREE / 'configs' / row.config).read_text())
    if weights:
        content['pretraining'] = path_text(weights)
    with atomic_file(experiment, 'w') as file:
        yaml.safe_dump(content, file, sort_keys=False)
    words = [sys.executable, str(TREE / row.script), '--config_env', args.config_env, '--config_exp', str(experiment)]
    folder = Path(env.root_dir) / experiment.stem
    if row.script == EVAL:
        assert weights
        words += ['--state-dict', weights, *(['--crf-postprocess'] if row.crf else [])]
        folder = folder / 'eval' / (Path(weights).name + ('_crf' if row.crf else ''))
    if row.script in CLASSIFIERS:
        words += ['--seed', str(seed)]
    errors = Path(env.root_dir) / 'reproduce' / f'{name}.stderr'
    with open(errors, 'w') as stream:
        code = subprocess.run(words, stderr=stream, env={**os.environ, 'NO_COLOR': '1'}, check=False).returncode
    if code:
        return {'error': (errors.read_text().strip().splitlines() or [f'{row.script} ended with {code}'])[-1]}
    return json.loads((folder / 'results.json').read_text())


if __name__ == '__main__':
    main()
