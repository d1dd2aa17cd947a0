"""Run the rows of the paper's tables on PASCAL VOC, and print what was published beside what is measured.

    make reproduce [ARGS="--fetch --rows kmeans_supervised"]

Weights come from the model zoo or, by the zoo's names, from files of one's own. Each row's results are under
<root_dir>/reproduce_<row>/, the table's under <root_dir>/reproduce/.
"""
import utils.cli.packages  # noqa: F401 - first, so that a package that is missing ends the script in a line

# isort: split
import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from data.label_space import VOC
from utils.cli.command import command
from utils.cli.flags import make_env_parser
from utils.cli.log import start_log
from utils.config import path_text, read_env
from utils.errors import UserError
from utils.model_zoo.zoo import ZOO, local_file, zoo_file
from utils.storage.atomic import atomic_file

TREE = Path(__file__).resolve().parent
MOCO_INITIALISED = 'voc_supervised_moco_pretrained'  # was never published, see MOCO_CONFIG
MOCO_CONFIG = 'pretrain/configs/VOCSegmentation_supervised_saliency_model_moco.yml'


@dataclass(frozen=True)
class Row:
    """script: what measures it. config: the experiment file below configs/. weights: their name. published: mIoU in percent."""
    script: str
    config: str
    weights: str
    published: float
    crf: bool = False


def _linear(kind: str):
    return f'linear_finetune/linear_finetune_VOCSegmentation_{kind}_saliency.yml'


def _retrieval(kind: str, classes: int):
    return f'retrieval/retrieval_VOCSegmentation_{kind}{"_21_classes" * (classes == 21)}.yml'


ROWS = {
    'linear_supervised': Row('eval.py', _linear('supervised'), 'voc_supervised_linear', 63.9),
    'linear_supervised_crf': Row('eval.py', _linear('supervised'), 'voc_supervised_linear', 65.5, crf=True),
    'linear_unsupervised': Row('eval.py', _linear('unsupervised'), 'voc_unsupervised_linear', 58.4),
    'linear_unsupervised_crf': Row('eval.py', _linear('unsupervised'), 'voc_unsupervised_linear', 59.5, crf=True),
    'kmeans_supervised': Row('kmeans.py', 'kmeans/kmeans_VOCSegmentation_supervised_saliency.yml',
                             'voc_supervised_pretrained', 44.2),
    'kmeans_unsupervised': Row('kmeans.py', 'kmeans/kmeans_VOCSegmentation_unsupervised_saliency.yml',
                               'voc_unsupervised_pretrained', 35.0),
    'retrieval_supervised_7': Row('retrieval.py', _retrieval('supervised_saliency', 7), MOCO_INITIALISED, 62.3),
    'retrieval_supervised_21': Row('retrieval.py', _retrieval('supervised_saliency', 21), MOCO_INITIALISED, 49.6),
    'retrieval_unsupervised_7': Row('retrieval.py', _retrieval('unsupervised_saliency', 7), 'voc_unsupervised_pretrained',
                                    53.4),
    'retrieval_unsupervised_21': Row('retrieval.py', _retrieval('unsupervised_saliency', 21), 'voc_unsupervised_pretrained',
                                     43.3),
    'retrieval_moco_v2_7': Row('retrieval.py', _retrieval('moco_v2', 7), 'moco_v2_800ep', 48.0),
    'retrieval_moco_v2_21': Row('retrieval.py', _retrieval('moco_v2', 21), 'moco_v2_800ep', 39.0),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--rows', nargs='+', metavar='ROW', default=list(ROWS), help=f'of {", ".join(ROWS)} (default: all)')
    parser.add_argument('--weights', nargs='+', metavar='NAME=PATH', default=[],
                        help=f'files of your own for the names {", ".join((*ZOO, MOCO_INITIALISED))}')
    parser.add_argument('--fetch', action='store_true', help='fetch the weights that the zoo has (default: only those on disk)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    own = own_files(args.weights)
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f'--rows: there is no row {name}, only {", ".join(ROWS)}')
    output = Path(env.root_dir) / 'reproduce'
    log = start_log(output / 'log_file.txt')

    measured = earlier_rows(output / 'results.json')
    for name in args.rows:
        log.info('%s', name)
        before, found = measured.get(name, {}), run(name, ROWS[name], env, own, args)
        earlier = before if 'measured' in before else before.get('earlier')
        if earlier and 'measured' not in found:
            found['earlier'] = earlier
        measured[name] = {'published': ROWS[name].published, **found}
        with atomic_file(output / 'results.json', 'w') as file:  # after each row: they take long
            json.dump(measured, file, indent=1)
    log.info('')
    log.info('%-26s  %9s  %8s', 'row', 'published', 'measured')
    for name in args.rows:
        found = measured[name]
        remarks = [f'{key}: {found[key]}' for key in ('missing', 'error') if key in found]
        if 'earlier' in found:
            remarks.insert(0, f'measured earlier: {found["earlier"]["measured"]:.2f};')
        log.info('%-26s  %9.1f  %8s  %s', name, found['published'],
                 f'{found["measured"]:.2f}' if 'measured' in found else '-', ' '.join(remarks))
    failed = [name for name in args.rows if 'error' in measured[name]]
    if failed:
        raise UserError(f'these rows failed: {", ".join(failed)} (see the table, and {output}/<row>.stderr)')


def earlier_rows(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs measured, of the rows that there are."""
    try:
        return {name: found for name, found in json.loads(path.read_text()).items() if name in ROWS}
    except (OSError, ValueError, AttributeError):
        return {}


def own_files(pairs: Iterable[str]) -> dict[str, str]:
    """{name: absolute path} of NAME=PATH arguments."""
    files = {}
    for pair in pairs:
        name, _, path = pair.partition('=')
        if name in (*ZOO, MOCO_INITIALISED) and path and not Path(path).is_file():
            raise UserError(f'--weights {pair}: there is no file {path}')
        if name not in (*ZOO, MOCO_INITIALISED) or not path:
            raise UserError(f'--weights {pair}: must be NAME=PATH of a file, with one of the names '
                            f'{", ".join((*ZOO, MOCO_INITIALISED))}')
        files[name] = str(Path(path).resolve())
    return files


def run(name: str, row: Row, env: EasyDict, own: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Measure one row in a process of its own: {'measured': mIoU in percent, 'weights': path}, {'missing': what it needs}, or
    {'error': the last line of what went wrong}."""
    if not (Path(env.db_root) / VOC).is_dir():
        return {'missing': f'the data set {Path(env.db_root) / VOC} (kmeans.py with a shipped file fetches it, say)'}
    weights = own.get(row.weights)
    if weights is None and row.weights not in ZOO:
        return {'missing': f'a pre-training with {MOCO_CONFIG}: give it as --weights {row.weights}=PATH'}
    if weights is None and not (args.fetch or zoo_file(row.weights, env.root_dir).exists()):
        return {'missing': f'zoo://{row.weights}: give --fetch, or --weights {row.weights}=PATH'}
    try:
        weights = weights or str(Path(local_file(f'zoo://{row.weights}', env.root_dir)).resolve())
    except UserError as error:
        return {'error': error.line()}
    experiment = Path(env.root_dir) / 'reproduce' / f'reproduce_{name}.yml'
    content = yaml.safe_load((TREE / 'configs' / row.config).read_text())
    with atomic_file(experiment, 'w') as file:
        yaml.safe_dump({**content, 'pretraining': path_text(weights)}, file, sort_keys=False)
    words = [sys.executable, str(TREE / row.script), '--config_env', args.config_env, '--config_exp', str(experiment)]
    folder = Path(env.root_dir) / experiment.stem
    if row.script == 'eval.py':
        words += ['--state-dict', weights, *(['--crf-postprocess'] if row.crf else [])]
        folder = folder / 'eval' / (Path(weights).name + ('_crf' if row.crf else ''))
    errors = Path(env.root_dir) / 'reproduce' / f'{name}.stderr'
    with open(errors, 'w') as stream:
        code = subprocess.run(words, stderr=stream, env={**os.environ, 'NO_COLOR': '1'}, check=False).returncode
    if code:
        return {'error': (errors.read_text().strip().splitlines() or [f'{row.script} ended with {code}'])[-1]}
    return {'measured': json.loads((folder / 'results.json').read_text())['mIoU'], 'weights': weights}


if __name__ == '__main__':
    main()
