"""A page for naming clusters: a single file that works without a server or a network.

External text, names of files and clusters, is only in attributes and text, escaped; the script reads it from there.
"""
import base64
import hashlib
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import cv2
import numpy as np

from evaluation.visualization.pictures import jpeg
from utils.storage.atomic import atomic_file

PAGE = 'clusters.html'
HEIGHT, QUALITY = 160, 80  # of a thumbnail
TYPICAL, DOUBTFUL = 8, 4  # images of a cluster
DIMMED = 0.55  # brightness of what is around the object


@dataclass(frozen=True)
class Row:
    """number: of the cluster, from 1. name: or ''. colour: RGB. images: their number. typical, doubtful: indices of the shown
    ones."""
    number: int
    name: str
    colour: Sequence[int]
    images: int
    typical: Sequence[int]
    doubtful: Sequence[int]


def typical_and_doubtful(distances: np.ndarray, clusters: np.ndarray, cluster: int) -> tuple[list[int], list[int]]:
    """Indices of the images of a cluster that are nearest to its centre, and of the rest those that are nearest to belonging
    elsewhere, the most doubtful last.

    distances: M x K, to the centres. clusters: M integers in [0, K).
    """
    members = np.flatnonzero(clusters == cluster)
    own = distances[members, cluster]
    others = np.delete(distances[members], cluster, axis=1)
    doubt = own / np.maximum(others.min(1), np.finfo(float).tiny) if others.shape[1] else own
    typical = members[np.argsort(own, kind='stable')][:TYPICAL]
    by_doubt = members[np.argsort(doubt, kind='stable')]
    return typical.tolist(), by_doubt[~np.isin(by_doubt, typical)][-DOUBTFUL:].tolist()


def thumbnail_jpeg(image: np.ndarray, mask: np.ndarray, colour: Sequence[int]) -> bytes:
    """A small JPEG with the object bright and outlined. image: H x W x 3 uint8 RGB. mask: H x W uint8, 1 = object."""
    scale = HEIGHT / image.shape[0]
    size = max(1, min(round(image.shape[1] * scale), 3 * HEIGHT)), HEIGHT
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    inside = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    picture = np.where(inside[..., None] > 0, small, (small * DIMMED).astype(np.uint8))
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, [int(value) for value in colour], 2)
    return jpeg(picture, QUALITY)


def save_clusters_page(path: str | Path, name: str, clustering: str, rows: Sequence[Row], names: Sequence[str],
                       thumbnail: Callable[[int, Row], bytes], command: str, unit: str = 'image') -> None:
    """Write the page.

    name: of the experiment. clustering: the value of `clustering` in names.yml. names: M file names. thumbnail: gives the JPEG
    of an image in a row. command: the command that passes names.yml on. unit: image or object.
    """
    folder = Path(__file__).parent
    template, style, script = ((folder / f'clusters_page.{kind}').read_text(encoding='utf-8') for kind in ('html', 'css', 'js'))
    images = sum(row.images for row in rows)
    page = Template(template).substitute(
        title=html.escape(f'{name}: clusters'), clustering=html.escape(clustering),
        summary=f'{images} {unit}s in {len(rows)} clusters', command=html.escape(command), style=style, script=script,
        style_hash=_hash(style), script_hash=_hash(script), rows='\n'.join(_row(row, names, thumbnail, unit) for row in rows))
    with atomic_file(path, 'w') as file:
        file.write(page)


def _hash(text: str):
    """The hash by which the page's policy allows its own style and script, and nothing else."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _row(row: Row, names: Sequence[str], thumbnail: Callable[[int, Row], bytes], unit: str):
    def pictures(indices: Iterable[int]):
        return ''.join(f'<img loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(thumbnail(index, row)).decode()}"'
                       f' alt="{_shown(names[index])}" title="{_shown(names[index])}">' for index in indices)
    doubtful = f'<div class="doubtful">{pictures(row.doubtful)}</div>' if row.doubtful else ''
    count = f'{row.images} {unit}{"" if row.images == 1 else "s"}'
    colour = '#' + ''.join(f'{value:02x}' for value in row.colour)
    return (f'<section><svg class="colour" viewBox="0 0 1 1" preserveAspectRatio="none"><rect width="1" height="1" '
            f'fill="{colour}"/></svg><div class="about"><h2>Cluster {row.number}</h2><p>{count}</p>'
            f'<input type="text" maxlength="60" autocomplete="off" list="known" data-cluster="{row.number}" '
            f'aria-label="name of cluster {row.number}" placeholder="name" value="{_shown(row.name)}">'
            f'<p class="same"></p></div>'
            f'<div class="pictures">{pictures(row.typical)}{doubtful}</div></section>')


def _shown(text: str):
    """Text for an attribute. Undecodable parts of file names are escaped."""
    return html.escape(text.encode(errors='backslashreplace').decode())
