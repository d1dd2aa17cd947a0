"""The shipped experiment files are the published ones."""
from pathlib import Path

import pytest

from utils.config import create_config, plain

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'pretrain' / 'configs'
SUPERVISED, UNSUPERVISED = 'VOCSegmentation_supervised_saliency_model', 'VOCSegmentation_unsupervised_saliency_model'
ADDED = ('script', 'name', 'root_dir', 'db_root', 'image_cache', 'output_dir', 'checkpoint', 'best_model')


def published(saliency, batch, pretraining, moco, freeze, K):
    """Section 6 of the method, plus the documented defaults of the optional keys, as a plain dict."""
    return {
        'train_db_name': 'VOCSegmentation', 'train_db_kwargs': {'saliency': saliency, 'instances': False},
        'train_batch_size': batch,
        'num_workers': 8, 'backbone': 'resnet50',
        'backbone_kwargs': {'dilated': True, 'output_stride': None, 'pretraining': pretraining, 'moco_state_dict': moco,
                            'state_dict': None},
        'model_kwargs': {'ndim': 32, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
        'head': 'deeplab', 'freeze_layers': freeze,
        'moco_kwargs': {'T': 0.5, 'm': 0.999, 'K': K, 'loss': 'auto', 'contrast': 'pixel'},
        'epochs': 40,
        'optimizer': 'sgd',
        'optimizer_kwargs': {'lr': 0.004, 'head_lr': None, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
        'scheduler': 'poly', 'scheduler_kwargs': {'lr_decay_rate': None, 'lr_decay_epochs': None},
        'transformation_kwargs': {'crop_size': 224, 'random_resized_crop': True, 'color_jitter': True, 'random_grayscale': True,
                                  'random_horizontal_flip': True},
        'on_bad_image': 'stop', 'max_image_pixels': 178956970, 'seed': None,
        'checkpoint_every': None, 'keep_every': None,
        'simulate_processes': None}


def test_shipped_supervised_file_is_the_published_one():
    p = create_config(CONFIGS / 'env.yml', CONFIGS / f'{SUPERVISED}.yml')
    expected = published('supervised_model', 64, 'imagenet_classification', None, True, 128)
    assert {key: value for key, value in plain(p).items() if key not in ADDED} == expected
    output = ROOT / 'output' / SUPERVISED
    assert (p.name, p.root_dir, p.db_root) == (SUPERVISED, str(ROOT / 'output'), str(ROOT / 'datasets'))
    assert (p.output_dir, p.checkpoint) == (str(output), str(output / 'checkpoint.pth.tar'))
    assert p.best_model == str(output / 'best_model.pth.tar')


@pytest.mark.parametrize('name, saliency, batch, K', [
    (UNSUPERVISED, 'unsupervised_model', 128, 256), (f'{SUPERVISED}_moco', 'supervised_model', 64, 128)])
def test_shipped_moco_files_are_the_published_ones(name, saliency, batch, K):
    p = create_config(CONFIGS / 'env.yml', CONFIGS / f'{name}.yml')
    expected = published(saliency, batch, 'imagenet_moco', 'zoo://moco_v2_800ep', False, K)
    assert {key: value for key, value in plain(p).items() if key not in ADDED} == expected


VARIATIONS = {
    'no_queue': {'moco_kwargs.K': 0}, 'image_level': {'moco_kwargs.contrast': 'image'},
    'no_saliency_loss': {'model_kwargs.use_classification_head': False},
    'no_masks': {'train_db_kwargs.saliency': None, 'model_kwargs.use_classification_head': False},
    'no_crop': {'transformation_kwargs.random_resized_crop': False},
    'no_color_jitter': {'transformation_kwargs.color_jitter': False},
    'no_grayscale': {'transformation_kwargs.random_grayscale': False},
    'no_flip': {'transformation_kwargs.random_horizontal_flip': False}}


def test_shipped_variations_are_the_published_file_but_for_their_keys():
    folder = CONFIGS / 'variations'
    assert {path.stem.removeprefix('VOCSegmentation_supervised_') for path in folder.iterdir()} == set(VARIATIONS)
    for name, changes in VARIATIONS.items():
        expected = published('supervised_model', 64, 'imagenet_classification', None, True, 128)
        for key, value in changes.items():
            group, _, inner = key.partition('.')
            assert expected[group][inner] != value
            expected[group][inner] = value
        p = create_config(CONFIGS / 'env.yml', folder / f'VOCSegmentation_supervised_{name}.yml', 'main.py')
        assert {key: value for key, value in plain(p).items() if key not in ADDED} == expected, name


@pytest.mark.parametrize('kind', ['supervised', 'unsupervised'])
def test_shipped_linear_files_are_the_published_ones(kind):
    folder = ROOT / 'segmentation' / 'configs'
    p = create_config(CONFIGS / 'env.yml', folder / 'linear_finetune' / f'linear_finetune_VOCSegmentation_{kind}_saliency.yml')
    assert {key: value for key, value in plain(p).items() if key not in ADDED} == {
        'train_db_name': 'VOCSegmentation', 'val_db_name': 'VOCSegmentation', 'num_workers': 4,
        'train_db_kwargs': {'split': 'trainaug', 'batch_size': 16}, 'val_db_kwargs': {'batch_size': 16},
        'backbone': 'resnet50', 'backbone_kwargs': {'dilated': True, 'output_stride': None}, 'head': 'deeplab',
        'freeze_batchnorm': 'all',
        'model_kwargs': {'use_classification_head': True},
        'pretraining': str(ROOT / 'output' / f'VOCSegmentation_{kind}_saliency_model' / 'checkpoint.pth.tar'),
        'epochs': 60, 'optimizer': 'sgd', 'scheduler': 'step',
        'optimizer_kwargs': {'lr': 0.1, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
        'scheduler_kwargs': {'lr_decay_rate': 0.1, 'lr_decay_epochs': [25]}, 'kmeans_eval': False,
        'transformation_kwargs': {'resolution': [512, 512]}, 'on_bad_image': 'stop',
        'max_image_pixels': 178956970, 'seed': None, 'checkpoint_every': None}
