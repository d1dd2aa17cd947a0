"""Default settings of a clustering."""
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.backbones import find_backbone, grid_kwargs
from utils.config.keys import EMBEDDING

FEW = 2000  # images: from this number on the embedding of a network trained from random weights is clustered, as published
MOST_CLUSTERS = 50


@dataclass(frozen=True)
class Features:
    """The vectors that are clustered: a network's output, pooled in the masks.

    stage: of the backbone, counted from the front or (negative) from the end; None: the embedding. hide_background: whether the
    network sees the object alone. side: of its square input in pixels; None: twice the side of the views that it learnt from.
    whiten: whether the vectors are whitened. pca: whether they are reduced to their main components and scaled to unit length.
    """
    stage: int | None
    hide_background: bool
    side: int | None
    whiten: bool
    pca: bool = False


# Weights that others trained on millions of images know objects in their surroundings, and their last stage knows most. After
# a training that began with such weights it still makes better clusters than the embedding (docs/learning-curves.md). Whitening
# would raise the noise of small components; of the main ones alone clusters are purer.
READY = Features(stage=-1, hide_background=False, side=320, whiten=False, pca=True)
# Trained from random weights on few images, the contrast tells these apart also by what is around the objects, so that is
# hidden. It leaves the embedding little of what different objects have in common; the backbone's last stage but one still has
# it (as the layers before a contrastive head do, Chen et al., ICML 2020). Whitening would raise its noise to the size of what
# was learnt.
SCRATCH = Features(stage=-2, hide_background=True, side=None, whiten=False)
PUBLISHED = Features(stage=None, hide_background=False, side=None, whiten=True)


def clusters_for(images: int) -> int:
    """The number of clusters of objects, without background: the square root of the number of images, 2 to 50, at most the
    number of images."""
    return min(max(2, round(math.sqrt(images))), MOST_CLUSTERS, images)


def features_for(network: Mapping[str, Any], images: int) -> Features:
    """network: the content of network.yml of own_images.py. images: with masks."""
    if network['head'] == 'none' or not network['from_random_weights']:
        return READY
    return SCRATCH if images < FEW else PUBLISHED


def clustering_settings(network: Mapping[str, Any], images: int, clusters: int) -> tuple[dict[str, Any], str]:
    """The content of an experiment file for kmeans.py, and a line that describes the features.

    network: the content of network.yml of own_images.py. images: with masks. clusters: of objects, background not counted.
    """
    chosen, backbone = features_for(network, images), network['backbone']
    side = chosen.side or 2 * network['transformation_kwargs']['crop_size']
    stage = EMBEDDING if chosen.stage is None else find_backbone(backbone).stages[chosen.stage]
    # Weights of others get the grid that they were trained with: it is no worse than a denser one, in a quarter of the time.
    grid = {'dilated': False} if network['head'] == 'none' else grid_kwargs(network['backbone_kwargs'])
    settings = {
        'val_db_name': network['train_db_name'],
        'val_db_kwargs': {'split': 'trainaug', **network['train_db_kwargs'], 'hide_background': chosen.hide_background},
        'num_workers': network['num_workers'], 'transformation_kwargs': {'resolution': [side, side]},
        'backbone': backbone, 'backbone_kwargs': grid, 'head': network['head'],
        **({'model_kwargs': network['model_kwargs']} if 'model_kwargs' in network else {}),
        'pretraining': network['pretraining'], 'kmeans_eval': True,
        'kmeans_kwargs': {'n_clusters': clusters + 1, 'features': stage, 'whiten': chosen.whiten, 'pca': chosen.pca},
    }
    background = 'hidden' if chosen.hide_background else 'visible'
    return settings, (f'{images} images with masks: {stage} of {backbone} ({network["pretraining"]}), background {background}, '
                      f'side {side}')
