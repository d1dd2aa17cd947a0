"""Draw the curves of a run, from the metrics.jsonl that it leaves: an axis for each kind of number, over epochs.

    .venv/bin/python images/curves.py output/demo --out images/curves.png
"""
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from utils.cli.command import command  # noqa: E402
from utils.cli.flags import make_plain_parser  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.storage.atomic import atomic_file  # noqa: E402

PANELS = {'loss': ('loss', 'contrastive_loss', 'saliency_loss'), 'accuracy (%)': ('acc1', 'acc5'), 'online mIoU (%)': ('mIoU',),
          'learning rate': ('lr',)}


def read_metrics(file):
    """The lines of a metrics.jsonl as dicts. A last line that a kill cut off is left out."""
    try:
        lines = file.read_text().splitlines()
        if lines and not lines[-1].endswith('}'):
            lines.pop()
        metrics = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f'{file} could not be read ({error}): name the output folder of a training') from error
    if not metrics:
        raise UserError(f'{file} is empty: the run has not finished an epoch yet')
    return metrics


def curves(metrics):
    """A figure of the numbers of `PANELS` that a run has. metrics: a dict for each epoch."""
    panels = {title: [name for name in names if name in metrics[0]] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(3.4 * len(panels), 2.8), dpi=100, layout='constrained')
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            axes.plot([row['epoch'] for row in metrics], [row[name] for row in metrics], label=name)
        axes.set(xlabel='epoch', title=title, ylim=(0, None))
        if len(names) > 1:
            axes.legend(fontsize=8)
    return figure


@command
def main(argv=None):
    parser = make_plain_parser(__doc__)
    parser.add_argument('run', type=Path, help='output folder of main.py or linear_finetune.py')
    parser.add_argument('--out', type=Path, help='picture to write (default: curves.png in the run)')
    args = parser.parse_args(argv)
    figure, out = curves(read_metrics(args.run / 'metrics.jsonl')), args.out or args.run / 'curves.png'
    with atomic_file(out) as file:
        figure.savefig(file, format='png')
    print(out)


if __name__ == '__main__':
    main()
