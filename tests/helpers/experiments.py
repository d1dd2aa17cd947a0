"""Small experiment files: their contents, one for each kind of script, and the writing."""
import copy

import yaml

from helpers.toys import NETWORK, RESOLUTION

# A backbone of 0.4 million weights with batch norm. Published files have ResNets, of which 11 million are the smallest.
SMALL = {'backbone': 'timm/test_resnet', 'backbone_kwargs': {'output_stride': 8}}
RESNET = {'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True}}
PRETRAINING = {
    'train_db_name': 'Shapes', 'train_db_kwargs': {'saliency': 'supervised_model'}, 'train_batch_size': 4,
    'num_workers': 0, 'backbone': 'timm/test_resnet', 'backbone_kwargs': {'output_stride': 8, 'pretraining': None},
    'model_kwargs': {'ndim': 8, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
    'head': 'deeplab', 'freeze_layers': False, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8}, 'epochs': 2,
    'optimizer': 'sgd', 'scheduler': 'poly',
    'optimizer_kwargs': {'lr': 0.01, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'transformation_kwargs': {'crop_size': 32}, 'seed': 3,
}
KMEANS = {
    'val_db_name': 'Shapes', 'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'}, 'num_workers': 0,
    'transformation_kwargs': {'resolution': [32, 32]}, **SMALL, 'head': 'deeplab', 'pretraining': None,
    'kmeans_eval': True, 'kmeans_kwargs': {'n_clusters': 4},
}
RETRIEVAL = {key: value for key, value in KMEANS.items() if key not in ('kmeans_kwargs', 'val_db_kwargs')} | {
    'train_db_name': 'Shapes', 'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'},
    'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': 'supervised_model'}}
LINEAR = {
    'train_db_name': 'Shapes', 'val_db_name': 'Shapes', 'train_db_kwargs': {'split': 'trainaug', 'batch_size': 4},
    'val_db_kwargs': {'batch_size': 4}, 'num_workers': 0, 'transformation_kwargs': {'resolution': [40, 32]},
    **SMALL, 'head': 'deeplab', 'freeze_batchnorm': 'all', 'epochs': 2,
    'optimizer': 'sgd', 'optimizer_kwargs': {'lr': 0.1, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'scheduler': 'step', 'scheduler_kwargs': {'lr_decay_rate': 0.1, 'lr_decay_epochs': [0]}, 'seed': 3,
}
TOYS_KMEANS = {
    **NETWORK, 'val_db_name': 'Toys', 'val_db_kwargs': {'batch_size': 5}, 'num_workers': 0, 'head': 'deeplab',
    'transformation_kwargs': {'resolution': list(RESOLUTION)},
}
TOYS_RETRIEVAL = {**TOYS_KMEANS, 'train_db_name': 'Toys', 'retrieval_kwargs': {'train_split': 'trainaug'}}


def write_experiment(folder, changes, db_root, name='small', base=PRETRAINING):
    """Write env.yml and <name>.yml into `folder` and return the arguments that all scripts take. Results are in its output/."""
    content = copy.deepcopy(base)
    for key, value in (changes or {}).items():
        group, _, inner = key.rpartition('.')
        target = content.setdefault(group, {}) if group else content
        if value is ...:
            target.pop(inner, None)
        else:
            target[inner] = copy.deepcopy(value)
    env, exp = folder / 'env.yml', folder / f'{name}.yml'
    env.write_text(yaml.safe_dump({'root_dir': str(folder / 'output'), 'db_root': str(db_root)}))
    exp.write_text(yaml.safe_dump(content))
    return ['--config_env', str(env), '--config_exp', str(exp), '--device', 'cpu']
