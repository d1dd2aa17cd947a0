"""Settings of a clustering where nobody has chosen them."""
import math
from collections.abc import Mapping
from typing import Any

from models.backbones import find_backbone, grid_kwargs

FEW = 2000  # images: from here on the embedding itself is clustered, as published
MOST_CLUSTERS = 50


def clusters_for(images: int) -> int:
    """Clusters of objects, background not counted: the root of the number of images, 2 to 50."""
    return min(max(2, round(math.sqrt(images))), MOST_CLUSTERS)


def clustering_settings(p: Mapping[str, Any], checkpoint: str, images: int, clusters: int) -> tuple[dict[str, Any], str]:
    """The content of an experiment file for kmeans.py, and a line that says why.

    p: configuration of the pre-training. images: with masks. clusters: of objects, background not counted.
    With few images the contrast tells these apart, also by what is around the objects, so that is hidden here. It leaves the
    embedding little of what different objects have in common; the backbone's last stage but one still has it (as the layers
    before a contrastive head do, Chen et al., ICML 2020). Whitening would raise its noise to the size of what was learnt.
    """
    side = 2 * p['transformation_kwargs']['crop_size']
    few = images < FEW
    features = find_backbone(p['backbone']).stages[-2] if few else 'embedding'
    settings = {
        'val_db_name': p['train_db_name'],
        'val_db_kwargs': {'split': 'trainaug', 'saliency': p['train_db_kwargs']['saliency'], 'hide_background': few},
        'num_workers': p['num_workers'], 'transformation_kwargs': {'resolution': [side, side]},
        'backbone': p['backbone'], 'backbone_kwargs': grid_kwargs(p['backbone_kwargs']),
        'model_kwargs': p['model_kwargs'], 'head': p['head'],
        'pretraining': checkpoint, 'kmeans_eval': True,
        'kmeans_kwargs': {'n_clusters': clusters + 1, 'features': features, 'whiten': not few},
    }
    what = 'features of the backbone, background hidden' if few else 'embeddings'
    return settings, f'{images} images in {clusters} clusters of {what}'
