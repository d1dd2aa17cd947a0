"""What a clustering of photographs leaves for people: predictions, pictures, the sheet, the page and results.json."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.dataset import SegmentationDataset
from evaluation.cluster_names import named_space, one_label
from evaluation.clustering import Clustering
from evaluation.predictions import write_predictions
from evaluation.results import write_results
from evaluation.saved_clusters import SavedClusters
from evaluation.visualization.cluster_sheet import SHEET, save_cluster_sheet
from evaluation.visualization.clusters_page import PAGE, Row, save_clusters_page, thumbnail_jpeg, typical_and_doubtful
from utils.cli.progress import progress

SCRIPT = 'own_clusters.py'


class _Mask:
    """The mask of an image of a data set, read when it is asked for."""

    def __init__(self, dataset: SegmentationDataset, index: int):
        self.dataset, self.index = dataset, index

    def array(self) -> np.ndarray:
        return self.dataset[self.index]['saliency']


def report(output: Path, name: str, dataset: SegmentationDataset, found: SavedClusters, distances: np.ndarray,
           names: Mapping[int, str], weights: str, seeds: Sequence[int], shown_seed: int) -> None:
    """Write all of it to `output`. name: of the experiment. distances: M x K, of the images of `dataset` to the centres."""
    labels, space = one_label(names, len(found)), named_space(names, len(found))
    merged = labels[found.clusters]
    masks = [_Mask(dataset, index) for index in range(len(dataset))]
    predictions = (mask.array() * np.uint8(label + 1) for mask, label in zip(masks, merged, strict=True))
    write_predictions(output, dataset, progress(predictions, 'Pictures', len(dataset)), space, score=False)
    own = distances[np.arange(len(merged)), found.clusters]
    save_cluster_sheet(output / SHEET, dataset, masks, Clustering(merged, None, np.arange(len(found) + 1), None), own, space,
                       shown=set(labels.tolist()))
    rows = [Row(cluster + 1, names.get(cluster + 1, ''), space.colours[labels[cluster] + 1].tolist(),
                int((found.clusters == cluster).sum()), *typical_and_doubtful(distances, found.clusters, cluster))
            for cluster in progress(range(len(found)), 'Page')]

    def thumbnail(index: int, row: Row):
        sample = dataset[index]
        return thumbnail_jpeg(sample['image'], sample['saliency'], row.colour)
    save_clusters_page(output / PAGE, name, found.id, rows, dataset.ids, thumbnail,
                       f'make mine IMAGES=... NAME={name} NAMES=/path/to/names.yml')
    write_results(output, SCRIPT, weights, (), None, n_clusters=len(found) + 1, seeds=seeds, shown_seed=shown_seed,
                  clusters=dict(zip(dataset.ids, (found.clusters + 1).tolist(), strict=True)), names=dict(names))
