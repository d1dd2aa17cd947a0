"""All keys of experiment files: type, default, permitted values and the scripts that read them.

A key that is not in this table is an error. Keys of other scripts are accepted, so that one file can serve several scripts.
"""
from dataclasses import dataclass

REQUIRED = object()  # the reading scripts can't run without the key

PRETRAIN, LINEAR, KMEANS, RETRIEVAL = 'main.py', 'linear_finetune.py', 'kmeans.py', 'retrieval.py'
KNN = 'knn.py'
FINETUNE = 'finetune.py'
EVAL = 'eval.py'  # reads files of linear_finetune.py and finetune.py
SCRIPTS = (PRETRAIN, LINEAR, FINETUNE, EVAL, KMEANS, RETRIEVAL, KNN)
EVALUATIONS = (LINEAR, FINETUNE, EVAL, KMEANS, RETRIEVAL, KNN)
CLASSIFIERS = (LINEAR, FINETUNE)
PROBES = (*CLASSIFIERS, EVAL)
TRAINED = (PRETRAIN, *CLASSIFIERS)
CLUSTERED = (KMEANS, RETRIEVAL)  # by masks
EMBEDDED = (*CLUSTERED, KNN)  # read the pre-training network
EMBEDDING = 'embedding'  # the features clustered by default
MAX_SEED = 2 ** 32 - 1  # the most that scikit-learn takes
NOBODY = ()  # keys of files for the published code, accepted without effect


@dataclass(frozen=True)
class Key:
    """One key of an experiment file; nested keys are written with a dot.

    type: int, float, bool, str, path (relative to the script tree), ints, strs, size (two positive integers), or layers (True,
    False, a number from 1, or all).
    default: the value when the key is absent, or REQUIRED. None as a default also permits null as a value.
    minimum, maximum: inclusive bounds of a number; above: an exclusive lower bound.
    choices: permitted values. nullable: null is a value, though the key has to be there.
    """
    name: str
    type: str
    default: object
    readers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    nullable: bool = False


KEYS = (
    # Data
    Key('train_db_name', 'str', REQUIRED, TRAINED),  # retrieval.py takes it, too, otherwise val_db_name
    Key('val_db_name', 'str', REQUIRED, EVALUATIONS),
    Key('train_db_kwargs.saliency', 'str', REQUIRED, (PRETRAIN,), nullable=True),  # null: all of the picture is the object
    Key('train_db_kwargs.instances', 'bool', False, (PRETRAIN,)),
    Key('train_db_kwargs.split', 'str', 'trainaug', CLASSIFIERS),
    Key('train_db_kwargs.batch_size', 'int', 16, CLASSIFIERS, minimum=1),
    Key('train_db_kwargs.share', 'float', 1.0, (FINETUNE,), above=0, maximum=1),
    Key('train_db_kwargs.ids', 'path', None, (FINETUNE,)),
    Key('val_db_kwargs.split', 'str', 'val', (EVAL, *EMBEDDED)),
    Key('val_db_kwargs.batch_size', 'int', 10, EVALUATIONS, minimum=1),
    Key('val_db_kwargs.saliency', 'str', None, CLUSTERED),
    Key('val_db_kwargs.instances', 'bool', False, (KMEANS,)),
    Key('val_db_kwargs.hide_background', 'bool', False, (KMEANS,)),
    Key('train_batch_size', 'int', REQUIRED, (PRETRAIN,), minimum=1),
    Key('simulate_processes', 'int', None, (PRETRAIN,), minimum=1),
    Key('num_workers', 'int', 4, SCRIPTS, minimum=0),
    Key('transformation_kwargs.crop_size', 'int', 224, (PRETRAIN,), minimum=16),
    Key('transformation_kwargs.random_resized_crop', 'bool', True, (PRETRAIN,)),
    Key('transformation_kwargs.color_jitter', 'bool', True, (PRETRAIN,)),
    Key('transformation_kwargs.random_grayscale', 'bool', True, (PRETRAIN,)),
    Key('transformation_kwargs.random_horizontal_flip', 'bool', True, (PRETRAIN,)),
    Key('transformation_kwargs.resolution', 'size', (512, 512), EVALUATIONS),
    Key('max_image_pixels', 'int', 178_956_970, SCRIPTS, minimum=1),
    Key('on_bad_image', 'str', 'stop', TRAINED, choices=('stop', 'skip')),
    # Network
    Key('backbone', 'str', REQUIRED, SCRIPTS),  # a name in the registry of backbones, or timm/<name>
    Key('backbone_kwargs.dilated', 'bool', True, SCRIPTS),
    Key('backbone_kwargs.output_stride', 'int', None, SCRIPTS, minimum=1),
    Key('backbone_kwargs.pretraining', 'str', None, (PRETRAIN, FINETUNE),
        choices=('imagenet_classification', 'imagenet_moco')),
    Key('backbone_kwargs.moco_state_dict', 'path', None, (PRETRAIN, FINETUNE)),
    Key('backbone_kwargs.state_dict', 'path', None, (PRETRAIN, FINETUNE)),
    Key('backbone_kwargs.pretrained', 'bool', False, NOBODY),
    Key('head', 'str', REQUIRED, SCRIPTS, choices=('deeplab', 'linear', 'none')),
    Key('model_kwargs.ndim', 'int', 32, (PRETRAIN, *EMBEDDED), minimum=1),
    Key('model_kwargs.head', 'str', 'linear', (PRETRAIN, *EMBEDDED), choices=('linear',)),
    Key('model_kwargs.upsample', 'bool', True, (PRETRAIN, *EMBEDDED)),
    Key('model_kwargs.use_classification_head', 'bool', True, (*TRAINED, *EMBEDDED)),
    Key('freeze_layers', 'layers', False, (PRETRAIN,)),
    Key('freeze_layer', 'bool', False, NOBODY),
    Key('freeze_batchnorm', 'str', 'all', (LINEAR,), choices=('all', 'backbone', 'none')),
    Key('pretraining', 'path', REQUIRED, (*CLASSIFIERS, *EMBEDDED), nullable=True),  # null: random weights
    Key('kmeans_eval', 'bool', False, EVALUATIONS),
    # Training
    Key('moco_kwargs.T', 'float', REQUIRED, (PRETRAIN,), above=0),
    Key('moco_kwargs.m', 'float', REQUIRED, (PRETRAIN,), minimum=0, maximum=1),
    Key('moco_kwargs.K', 'int', REQUIRED, (PRETRAIN,), minimum=0),  # 0: no queue
    Key('moco_kwargs.contrast', 'str', 'pixel', (PRETRAIN,), choices=('pixel', 'image')),
    Key('moco_kwargs.loss', 'str', 'auto', (PRETRAIN,), choices=('auto', 'fused', 'gathered', 'plain')),
    Key('epochs', 'int', REQUIRED, TRAINED, minimum=1),
    Key('optimizer', 'str', 'sgd', TRAINED, choices=('sgd', 'adam')),
    Key('optimizer_kwargs.lr', 'float', REQUIRED, TRAINED, above=0),
    Key('optimizer_kwargs.head_lr', 'float', None, (PRETRAIN, FINETUNE), above=0),
    Key('optimizer_kwargs.weight_decay', 'float', 0.0, TRAINED, minimum=0),
    Key('optimizer_kwargs.momentum', 'float', None, TRAINED, minimum=0),
    Key('optimizer_kwargs.nesterov', 'bool', None, TRAINED),
    Key('scheduler', 'str', REQUIRED, TRAINED, choices=('poly', 'step', 'cosine', 'constant')),
    Key('scheduler_kwargs.lr_decay_rate', 'float', None, TRAINED, above=0),
    Key('scheduler_kwargs.lr_decay_epochs', 'ints', None, TRAINED),
    Key('seed', 'int', None, SCRIPTS, minimum=0, maximum=MAX_SEED),
    Key('checkpoint_every', 'int', None, TRAINED, minimum=1),
    Key('keep_every', 'int', None, (PRETRAIN,), minimum=1),
    Key('eval_every', 'int', 1, (FINETUNE,), minimum=1),
    # Evaluation
    Key('kmeans_kwargs.n_clusters', 'int', None, (KMEANS,), minimum=2),
    Key('kmeans_kwargs.whiten', 'bool', True, (KMEANS,)),
    Key('kmeans_kwargs.pca', 'bool', False, (KMEANS,)),
    Key('kmeans_kwargs.features', 'str', EMBEDDING, (KMEANS,)),  # or one of the backbone's grids
    Key('retrieval_kwargs.train_split', 'str', 'train', (RETRIEVAL,)),
    Key('retrieval_kwargs.saliency', 'str', None, (RETRIEVAL,)),
    Key('retrieval_kwargs.ignore_classes', 'strs', None, (RETRIEVAL,)),
    Key('knn_kwargs.train_split', 'str', 'trainaug', (KNN,)),
    Key('knn_kwargs.k', 'int', 30, (KNN,), minimum=1),
    Key('knn_kwargs.temperature', 'float', 0.02, (KNN,), above=0),
    Key('knn_kwargs.memory_size', 'int', 102400, (KNN,), minimum=1, nullable=True),
    Key('knn_kwargs.block', 'int', 4096, (KNN,), minimum=1),
)

ENV_KEYS = (
    Key('root_dir', 'path', REQUIRED, SCRIPTS),
    Key('db_root', 'path', None, SCRIPTS),
    Key('image_cache', 'path', None, SCRIPTS),
)
