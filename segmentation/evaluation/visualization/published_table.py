"""A picture of the paper's tables: published and measured results."""
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def table_figure(measured: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Published and measured mIoU of each row. measured: of a row `published` and, where it ran, `measured` (percent) and
    `spread` (standard deviation over seeds)."""
    names = list(measured)
    figure = Figure(figsize=(7, 0.6 + 0.28 * len(names)), dpi=100, layout='constrained')
    axes = figure.subplots()
    places = np.arange(len(names))
    axes.scatter([measured[name]['published'] for name in names], places, marker='|', s=120, color='#2c6fbb', label='published')
    known = [place for place in places if 'measured' in measured[names[place]]]
    axes.errorbar([measured[names[place]]['measured'] for place in known], known, fmt='o', color='#c0392b', capsize=3,
                  xerr=[measured[names[place]].get('spread') or 0 for place in known], label='measured')
    axes.set(yticks=places, yticklabels=names, xlim=(0, 100), xlabel='mIoU (%) on PASCAL VOC 2012 val')
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.legend()
    return figure
