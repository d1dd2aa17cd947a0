"""The output of a clustering of photographs: predictions, pictures, the sheet, the page and results.json."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.cluster_names import named_space, one_label
from evaluation.clustering import Clustering
from evaluation.objects import Objects
from evaluation.predictions import write_predictions
from evaluation.results import write_results
from evaluation.saved_clusters import SavedClusters
from evaluation.visualization.cluster_sheet import SHEET, save_cluster_sheet
from evaluation.visualization.clusters_page import PAGE, Row, save_clusters_page, thumbnail_jpeg, typical_and_doubtful
from utils.cli.progress import progress

SCRIPT = 'own_clusters.py'


def report(output: Path, name: str, objects: Objects, found: SavedClusters, distances: np.ndarray, names: Mapping[int, str],
           weights: str, seeds: Sequence[int], shown_seed: int) -> None:
    """Write all of it to `output`. name: of the experiment. distances: N x K, of the objects to the centres."""
    labels, space = one_label(names, len(found)), named_space(names, len(found))
    merged, dataset = labels[found.clusters], objects.dataset
    predictions = (objects.label_map(index, merged[objects.of_image(index)] + 1) for index in range(len(dataset)))
    write_predictions(output, dataset, progress(predictions, 'Pictures', len(dataset)), space, score=False)
    own = distances[np.arange(len(merged)), found.clusters]
    save_cluster_sheet(output / SHEET, objects, Clustering(merged, None, np.arange(len(found) + 1), None), own, space,
                       shown=set(labels.tolist()))
    rows = [Row(cluster + 1, names.get(cluster + 1, ''), space.colours[labels[cluster] + 1].tolist(),
                int((found.clusters == cluster).sum()), *typical_and_doubtful(distances, found.clusters, cluster))
            for cluster in progress(range(len(found)), 'Page')]

    def thumbnail(index: int, row: Row):
        sample = objects[index]
        return thumbnail_jpeg(sample['image'], sample['saliency'], row.colour)
    save_clusters_page(output / PAGE, name, found.id, rows, objects.ids, thumbnail,
                       f'make mine IMAGES=... NAME={name} NAMES=/path/to/names.yml', objects.unit)
    write_results(output, SCRIPT, weights, (), None, n_clusters=len(found) + 1, seeds=seeds, shown_seed=shown_seed,
                  clusters=dict(zip(objects.ids, (found.clusters + 1).tolist(), strict=True)), names=dict(names))
