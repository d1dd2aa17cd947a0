"""Draw the learning curves of several pre-trainings, from the curve.json that curve.py leaves in each: means over runs and
their range.

    .venv/bin/python images/learning_curves.py --runs '400 photographs' output/a output/b \
        --runs '4,000 photographs' output/c --out images/learning_curves.png

A row for each --runs (a title, then folders of runs that differ only in their seed), a column for each score, over steps.
"""
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'pretrain'), str(ROOT / 'segmentation')]

from evaluation.visualization.curve import PANELS  # noqa: E402
from utils.cli.command import command  # noqa: E402
from utils.cli.flags import make_plain_parser  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.storage.atomic import atomic_file  # noqa: E402

LINES = (('backbone', 'C1', 's-', 'backbone of the network, used alone'), ('network', 'C0', 'o-', 'whole network'))


def read_curve(run):
    """The content of a run's curve.json."""
    file = Path(run) / 'curve' / 'curve.json'
    try:
        content = json.loads(file.read_text())
        if not content['points'] or not content['start']:
            raise ValueError('no scores yet')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{file} could not be read ({error}): score the run with curve.py first') from error
    return content


def over_runs(curves, features, score):
    """(steps, mean, least, greatest) over the runs, at each step that all of them have scored."""
    tables = [{point['steps']: point['scores'][features][score] for point in curve['points']} for curve in curves]
    for steps in sorted(set.intersection(*map(set, tables))):
        values = [table[steps] for table in tables]
        if None not in values:
            yield steps, sum(values) / len(values), min(values), max(values)


def learning_curves(groups):
    """groups: title -> contents of curve.json."""
    figure = Figure(figsize=(3 * len(PANELS), 2.6 * len(groups)), dpi=100, layout='constrained')
    rows = figure.subplots(len(groups), len(PANELS), squeeze=False)
    for row, (title, curves) in zip(rows, groups.items(), strict=True):
        for axes, (score, label) in zip(row, PANELS.items(), strict=True):
            for features, colour, style, legend in LINES:
                found = list(over_runs(curves, features, score))
                if found:
                    steps, mean, least, greatest = zip(*found, strict=True)
                    axes.plot(steps, mean, style, color=colour, markersize=3, label=legend)
                    axes.fill_between(steps, least, greatest, color=colour, alpha=0.2, linewidth=0)
            axes.axhline(curves[0]['start'][score], color='black', linestyle='--', linewidth=1,
                         label='start: backbone with its initial weights')
            axes.set_title(label, fontsize=9)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(title, fontsize=9)
    for axes in rows[-1]:
        axes.set_xlabel('steps')
    shown = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(list(shown.values()), list(shown), loc='outside lower center', ncols=len(shown), fontsize=8)
    return figure


@command
def main(argv=None):
    parser = make_plain_parser(__doc__)
    parser.add_argument('--runs', nargs='+', action='append', required=True, metavar=('TITLE', 'FOLDER'),
                        help='a row: its title, and the folders of its runs')
    parser.add_argument('--out', type=Path, required=True, help='picture to write')
    args = parser.parse_args(argv)
    groups = {title: [read_curve(run) for run in runs] for title, *runs in args.runs}
    if not all(groups.values()):
        raise UserError('--runs takes a title and at least one folder')
    with atomic_file(args.out) as file:
        learning_curves(groups).savefig(file, format='png')
    print(args.out)


if __name__ == '__main__':
    main()
