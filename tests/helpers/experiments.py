"""Contents of small experiment files, one for each kind of script."""
from helpers.toys import NETWORK, RESOLUTION

PRETRAINING = {
    'train_db_name': 'Shapes', 'train_db_kwargs': {'saliency': 'supervised_model'}, 'train_batch_size': 4,
    'num_workers': 0, 'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True, 'pretraining': None},
    'model_kwargs': {'ndim': 8, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
    'head': 'deeplab', 'freeze_layers': False, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8}, 'epochs': 2,
    'optimizer': 'sgd', 'scheduler': 'poly',
    'optimizer_kwargs': {'lr': 0.01, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'transformation_kwargs': {'crop_size': 32}, 'seed': 3,
}
KMEANS = {
    'val_db_name': 'Shapes', 'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'}, 'num_workers': 0,
    'transformation_kwargs': {'resolution': [32, 32]}, 'backbone': 'resnet18', 'head': 'deeplab', 'pretraining': None,
    'kmeans_eval': True, 'kmeans_kwargs': {'n_clusters': 4},
}
RETRIEVAL = {key: value for key, value in KMEANS.items() if key not in ('kmeans_kwargs', 'val_db_kwargs')} | {
    'train_db_name': 'Shapes', 'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'},
    'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': 'supervised_model'}}
LINEAR = {
    'train_db_name': 'Shapes', 'val_db_name': 'Shapes', 'train_db_kwargs': {'split': 'trainaug', 'batch_size': 4},
    'val_db_kwargs': {'batch_size': 4}, 'num_workers': 0, 'transformation_kwargs': {'resolution': [40, 32]},
    'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True}, 'head': 'deeplab', 'freeze_batchnorm': 'all', 'epochs': 2,
    'optimizer': 'sgd', 'optimizer_kwargs': {'lr': 0.1, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
    'scheduler': 'step', 'scheduler_kwargs': {'lr_decay_rate': 0.1, 'lr_decay_epochs': [0]}, 'seed': 3,
}
TOYS_KMEANS = {
    **NETWORK, 'val_db_name': 'Toys', 'val_db_kwargs': {'batch_size': 5}, 'num_workers': 0, 'head': 'deeplab',
    'backbone_kwargs': {'dilated': True}, 'transformation_kwargs': {'resolution': list(RESOLUTION)},
}
TOYS_RETRIEVAL = {**TOYS_KMEANS, 'train_db_name': 'Toys', 'retrieval_kwargs': {'train_split': 'trainaug'}}
