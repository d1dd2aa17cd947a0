"""The rows of the paper's tables: scripts, weights, and published results."""
from dataclasses import dataclass

from utils.config.keys import EVAL, FINETUNE, KMEANS, LINEAR, RETRIEVAL

# Weights that nobody published, by the configuration of pretrain/configs that makes them.
UNPUBLISHED = {'voc_supervised_moco_pretrained': 'VOCSegmentation_supervised_saliency_model_moco.yml',
               'voc_unsupervised_imagenet_pretrained': 'VOCSegmentation_unsupervised_saliency_model_imagenet.yml'}
SUPERVISED_MOCO, UNSUPERVISED_IMAGENET = UNPUBLISHED


@dataclass(frozen=True)
class Row:
    """script: what measures it. config: the experiment file below configs/. weights: their name in the zoo or in UNPUBLISHED;
    None for the backbone's own. published: mIoU in percent on PASCAL VOC 2012 val."""
    script: str
    config: str
    weights: str | None
    published: float
    crf: bool = False


def _linear(kind: str):
    return f'linear_finetune/linear_finetune_VOCSegmentation_{kind}.yml'


def _kmeans(kind: str):
    return f'kmeans/kmeans_VOCSegmentation_{kind}.yml'


def _retrieval(kind: str, classes: int):
    return f'retrieval/retrieval_VOCSegmentation_{kind}{"_21_classes" * (classes == 21)}.yml'


def _few_labels():
    """Section 4, fine-tuning: mIoU with 1, 2 and 100% of the labels."""
    starts = {'imagenet': (None, (43.4, 55.2, 78.0)),
              'unsupervised_saliency': ('voc_unsupervised_pretrained', (50.5, 57.2, 78.4)),
              'supervised_saliency': ('voc_supervised_pretrained', (51.5, 59.6, 78.6))}
    return {f'finetune_{start.removesuffix("_saliency")}_{percent}':
            Row(FINETUNE, f'finetune/finetune_VOCSegmentation_{start}_{percent}_percent.yml', weights, figure)
            for start, (weights, figures) in starts.items() for percent, figure in zip((1, 2, 100), figures, strict=True)}


ROWS = {
    'linear_supervised': Row(EVAL, _linear('supervised_saliency'), 'voc_supervised_linear', 63.9),
    'linear_supervised_crf': Row(EVAL, _linear('supervised_saliency'), 'voc_supervised_linear', 65.5, crf=True),
    'linear_unsupervised': Row(EVAL, _linear('unsupervised_saliency'), 'voc_unsupervised_linear', 58.4),
    'linear_unsupervised_crf': Row(EVAL, _linear('unsupervised_saliency'), 'voc_unsupervised_linear', 59.5, crf=True),
    'linear_supervised_moco': Row(LINEAR, _linear('supervised_saliency_moco'), SUPERVISED_MOCO, 62.2),
    'linear_unsupervised_imagenet': Row(LINEAR, _linear('unsupervised_saliency_imagenet'), UNSUPERVISED_IMAGENET, 61.0),
    'kmeans_supervised': Row(KMEANS, _kmeans('supervised_saliency'), 'voc_supervised_pretrained', 44.2),
    'kmeans_supervised_500': Row(KMEANS, _kmeans('supervised_saliency_500_clusters'), 'voc_supervised_pretrained', 57.0),
    'kmeans_unsupervised': Row(KMEANS, _kmeans('unsupervised_saliency'), 'voc_unsupervised_pretrained', 35.0),
    'kmeans_supervised_moco': Row(KMEANS, _kmeans('supervised_saliency_moco'), SUPERVISED_MOCO, 38.9),
    'kmeans_unsupervised_imagenet': Row(KMEANS, _kmeans('unsupervised_saliency_imagenet'), UNSUPERVISED_IMAGENET, 41.6),
    'retrieval_supervised_7': Row(RETRIEVAL, _retrieval('supervised_saliency', 7), SUPERVISED_MOCO, 62.3),
    'retrieval_supervised_21': Row(RETRIEVAL, _retrieval('supervised_saliency', 21), SUPERVISED_MOCO, 49.6),
    'retrieval_unsupervised_7': Row(RETRIEVAL, _retrieval('unsupervised_saliency', 7), 'voc_unsupervised_pretrained', 53.4),
    'retrieval_unsupervised_21': Row(RETRIEVAL, _retrieval('unsupervised_saliency', 21), 'voc_unsupervised_pretrained', 43.3),
    'retrieval_moco_v2_7': Row(RETRIEVAL, _retrieval('moco_v2', 7), 'moco_v2_800ep', 48.0),
    'retrieval_moco_v2_21': Row(RETRIEVAL, _retrieval('moco_v2', 21), 'moco_v2_800ep', 39.0),
    **_few_labels(),
}
