"""The picture of a learning curve: a panel for each score, over epochs, with the start as a line across."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.storage.atomic import atomic_file

PANELS = {'kmeans': 'K-means, mIoU (%)', 'retrieval': 'retrieval, mIoU (%)', 'linear': 'quick linear, mIoU (%)',
          'neighbours': 'neighbour of the same class (%)'}
LINES = (('network', '', 'C0', 'o-', 'network'), ('network', '_own_masks', 'C0', 'o:', "network, its own masks"),
         ('backbone', '', 'C1', 's-', 'backbone alone'))


def curve_figure(points: Sequence[Mapping[str, Any]], start: Mapping[str, float | None] | None, title: str) -> Figure:
    """points: of `Curve`, in order. start: the scores of the backbone alone at epoch 0, or None."""
    figure = Figure(figsize=(3.3 * len(PANELS), 3.2), dpi=100, layout='constrained')
    figure.suptitle(title, fontsize=9)
    for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for features, masks, colour, style, legend in LINES:
            known = [(point['epoch'], point['scores'][features].get(name + masks)) for point in points]
            known = [(epoch, score) for epoch, score in known if score is not None]
            if known:
                axes.plot(*zip(*known, strict=True), style, color=colour, markersize=4, label=legend)
        if start and start.get(name) is not None:
            axes.axhline(start[name], color='black', linestyle='--', linewidth=1, label='start: initial backbone alone')
        if not axes.lines:  # K-means, with fewer images than clusters
            axes.text(0.5, 0.5, 'no score', ha='center', va='center', transform=axes.transAxes)
        axes.set(xlabel='epoch', title=label)
        axes.title.set_fontsize(9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    shown = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(list(shown.values()), list(shown), loc='outside lower center', ncols=4, fontsize=8)
    return figure


def save_curve(path: str | Path, figure: Figure) -> None:
    """Write the figure as a PNG."""
    with atomic_file(path) as file:
        figure.savefig(file, format='png')
