"""Read env.yml and an experiment file into one checked configuration. Mistakes end a script in one line, before any work."""
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from easydict import EasyDict

from data.util.mypath import Path as MyPath
from utils.config import keys as config_keys
from utils.config.keys import ENV_KEYS, KEYS, REQUIRED, Key
from utils.config.values import checked_value
from utils.errors import UserError, nearest_name
from utils.storage.yaml_files import read_yaml


def create_config(env_file: str | Path, exp_file: str | Path, script: str | None = None) -> EasyDict:
    """Read and check both files and return one EasyDict with defaults filled in.

    env_file: path of env.yml (`root_dir`, `db_root`, `image_cache`). exp_file: path of an experiment's YAML file.
    script: the name of the script that runs, whose keys must be there; None derives it from the experiment's keys.
    Added to the files' keys: `script`, `name` (the experiment's), `output_dir`, `checkpoint`, `best_model`; all paths absolute.
    Raises `UserError`, in one line with file, key and the nearest valid name, for an unreadable file, an unknown or
    missing key, a wrong type or an impossible value.
    """
    env = read_env(env_file)
    exp = read_yaml(exp_file)
    script = script or _script_of(exp)
    p = EasyDict(_checked(exp, KEYS, exp_file, script))
    p.update(env)
    p.script = script
    p.name = Path(exp_file).name.removesuffix('.yml').removesuffix('.yaml')
    p.output_dir = str(Path(p.root_dir) / p.name)
    p.checkpoint = str(Path(p.output_dir) / 'checkpoint.pth.tar')
    p.best_model = str(Path(p.output_dir) / 'best_model.pth.tar')
    if script in config_keys.TRAINED:
        _check_training(p, exp_file)
    if script in (config_keys.PRETRAIN, config_keys.FINETUNE):
        _check_initial_weights(p, exp_file)
    if script == config_keys.PRETRAIN:
        _check_pretraining(p, exp_file)
    if script in config_keys.EMBEDDED and not p.kmeans_eval:
        raise UserError(f'{exp_file}: {script} needs kmeans_eval: True, which selects the pre-training network')
    if script in config_keys.CLUSTERED:
        _check_masks(p, script, exp_file)
    if script in config_keys.PROBES and p.kmeans_eval:
        raise UserError(f'{exp_file}: {script} needs the linear network: remove kmeans_eval: True')
    _check_backbone(p, exp.get('backbone_kwargs') or {}, script, exp_file)  # last, as PyTorch is loaded for timm's
    return p


def read_env(file: str | Path) -> EasyDict:
    """Read and check env.yml: an EasyDict of absolute paths, `root_dir`, `db_root` and `image_cache` (or None).
    Raises as `create_config` does."""
    env = EasyDict(_checked(read_yaml(file), ENV_KEYS, file, config_keys.SCRIPTS[0]))  # all scripts read all of it
    if env.db_root is None:
        env.db_root = MyPath.db_root_dir()
    return env


def differing_keys(p: Mapping[str, Any], other: Mapping[str, Any], script: str, ignored: Collection[str] = ()) -> list[str]:
    """Names of the keys that `script` reads, nested ones with a dot, whose values differ between two configurations. A key that
    one of them lacks, because it was written before the key existed, has its default."""
    keys = [key for key in KEYS if script in key.readers and key.name not in ignored]
    return [key.name for key in keys if not _same(_get(p, key), _get(other, key))]


def _get(p: Mapping[str, Any], key: Key):
    group, _, inner = key.name.rpartition('.')
    values = (p.get(group) or {}) if group else p
    return plain(values.get(inner, None if key.default is REQUIRED else key.default))


def _same(a: Any, b: Any):
    """Whether two values are equal, where 1 is not True (one stage is not the first half of them)."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def plain(value: Any) -> Any:
    """`value` with EasyDicts and tuples turned into dicts and lists, as YAML and checkpoints hold them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _script_of(exp: Mapping[str, Any]) -> str:
    """The script that an experiment is for, from the keys that only its kind of file has. exp: the file's content."""
    if 'moco_kwargs' in exp:
        return config_keys.PRETRAIN
    if 'retrieval_kwargs' in exp:
        return config_keys.RETRIEVAL
    if 'knn_kwargs' in exp:
        return config_keys.KNN
    if exp.get('kmeans_eval'):
        return config_keys.KMEANS
    if {'share', 'ids'} & set(exp.get('train_db_kwargs') or {}):
        return config_keys.FINETUNE
    return config_keys.LINEAR if 'train_db_name' in exp else config_keys.EVAL


def _checked(content: Mapping[Any, Any], keys: Iterable[Key], file: str | Path, script: str):
    """The values of `content` after all checks, with the defaults of the keys that `script` reads."""
    table = {key.name: key for key in keys}
    groups = {name.partition('.')[0] for name in table if '.' in name}
    given = {}
    for name, value in content.items():
        if name in groups:
            if value is not None and not isinstance(value, dict):
                raise UserError(f'{file}: {name} must be a mapping of keys to values, not {value!r}')
            given.update({f'{name}.{inner}': item for inner, item in (value or {}).items()})
        else:
            given[name] = value
    result: dict[str, Any] = {}
    for name, value in given.items():
        if name not in table or name in content and '.' in name:  # dots are our notation, not YAML's
            group, _, inner = str(name).rpartition('.')
            read = [key.name for key in table.values() if script in key.readers and group]
            # The same key of another group, or any key of this group
            same = [key for key in read if key.rpartition('.')[2] == inner]
            inside = [key for key in read if key.startswith(f'{group}.')]
            near = nearest_name(str(name), same or inside or [*table, *groups], cutoff=0)
            raise UserError(f"{file}: unknown key '{name}' (nearest valid key: '{near}')")
        _put(result, name, checked_value(table[name], value, file))
    for name, key in table.items():
        if name not in given and script in key.readers:
            if key.default is REQUIRED:
                raise UserError(f"{file}: the key '{name}' is missing, and {script} needs it")
            _put(result, name, list(key.default) if isinstance(key.default, tuple) else key.default)
    return result


def _put(result: dict[str, Any], name: str, value: Any):
    group, _, inner = name.rpartition('.')
    (result.setdefault(group, {}) if group else result)[inner] = value


def _check_backbone(p: EasyDict, given: Collection[str], script: str, file: str | Path):
    """given: which `backbone_kwargs` the file has."""
    from models.backbones import check_strides, find_backbone, output_stride  # inside, as `utils` stands below `models`
    try:
        spec = find_backbone(p.backbone)
        check_strides(p.backbone, {key: p.backbone_kwargs[key] for key in given})
        stride = output_stride(p.backbone, p.backbone_kwargs)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    features = (p.get('kmeans_kwargs') or {}).get('features')
    valid = (config_keys.EMBEDDING, *spec.stages, *spec.others)
    if features is not None and features not in valid:
        raise UserError(f"{file}: kmeans_kwargs.features must be one of {', '.join(valid)}, not '{features}' "
                        f"(nearest: '{nearest_name(features, valid, cutoff=0)}')")
    layers, most = p.get('freeze_layers', False), len(spec.stages)
    if not isinstance(layers, (bool, str)) and layers > most:
        raise UserError(f'{file}: freeze_layers is {layers}, but backbone: {p.backbone} has {most} stages (all freezes the '
                        'whole backbone)')
    sizes = p.transformation_kwargs
    key, size = ('crop_size', [sizes.crop_size] * 2) if script == config_keys.PRETRAIN else ('resolution', sizes.resolution)
    problem = spec.size_error(stride, *size)
    if problem:
        raise UserError(f'{file}: transformation_kwargs.{key}: {" x ".join(map(str, size))} pixels {problem}')


def _check_masks(p: EasyDict, script: str, file: str | Path):
    """Masks must come from the data set if the network has no saliency head, or if the masks change its input."""
    keys = ['val_db_kwargs.saliency', *(['retrieval_kwargs.saliency'] if script == config_keys.RETRIEVAL else [])]
    for key in keys:
        group, _, inner = key.partition('.')
        if not p[group][inner] and (p.head == 'none' or not p.model_kwargs.use_classification_head):
            raise UserError(f'{file}: without a saliency head (head: none, or model_kwargs.use_classification_head: False) '
                            f"{key} must name masks of the data set")
    kwargs = p.val_db_kwargs
    if script == config_keys.KMEANS and not kwargs.saliency and (
            kwargs.instances or kwargs.hide_background or p.kmeans_kwargs.features != config_keys.EMBEDDING):
        raise UserError(f'{file}: val_db_kwargs.instances, val_db_kwargs.hide_background and kmeans_kwargs.features need '
                        'masks: name them in val_db_kwargs.saliency')


def _check_training(p: EasyDict, file: str | Path):
    for key in ('momentum', 'nesterov'):
        if p.optimizer == 'adam' and p.optimizer_kwargs[key] is not None:
            raise UserError(f'{file}: optimizer_kwargs.{key} is only for sgd: remove it, or set optimizer: sgd')
    if p.optimizer_kwargs.nesterov and not p.optimizer_kwargs.momentum:
        raise UserError(f'{file}: optimizer_kwargs.nesterov needs optimizer_kwargs.momentum above 0')
    needs = {'step': ('lr_decay_rate', 'lr_decay_epochs'), 'cosine': ('lr_decay_rate',)}.get(p.scheduler, ())
    for key in needs:
        if p.scheduler_kwargs[key] is None:
            raise UserError(f"{file}: the key 'scheduler_kwargs.{key}' is missing, and scheduler: {p.scheduler} needs it")


def _check_pretraining(p: EasyDict, file: str | Path):
    if p.head == 'none':
        raise UserError(f'{file}: head: none is for evaluations of a backbone alone: main.py needs head: deeplab or '
                        'head: linear')
    if p.moco_kwargs.K % p.train_batch_size:
        raise UserError(f'{file}: moco_kwargs.K ({p.moco_kwargs.K}) must be a multiple of '
                        f'train_batch_size ({p.train_batch_size})')
    if p.train_db_kwargs.saliency is None and p.train_db_kwargs.instances:
        raise UserError(f'{file}: train_db_kwargs.instances needs train_db_kwargs.saliency, the name of instances_<name>/')
    if p.train_db_kwargs.saliency is None and p.model_kwargs.use_classification_head:
        raise UserError(f'{file}: saliency cannot be predicted without masks (train_db_kwargs.saliency: null): set '
                        'model_kwargs.use_classification_head: False, or name the masks')


def _check_initial_weights(p: EasyDict, file: str | Path):
    kwargs = p.backbone_kwargs
    if p.script == config_keys.FINETUNE and p.pretraining and (kwargs.pretraining or kwargs.state_dict):
        raise UserError(f'{file}: pretraining and backbone_kwargs both name initial weights: remove one')
    if kwargs.pretraining == 'imagenet_moco' and not kwargs.moco_state_dict:
        raise UserError(f"{file}: the key 'backbone_kwargs.moco_state_dict' is missing, "
                        'and pretraining: imagenet_moco needs it (a MoCo v2 checkpoint)')
    if kwargs.pretraining == 'imagenet_moco' and kwargs.state_dict:
        raise UserError(f'{file}: backbone_kwargs.state_dict and pretraining: imagenet_moco name two sets of initial '
                        'weights: remove one')
