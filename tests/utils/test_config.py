"""Configuration files: what they become, and that every mistake ends in one line that says where."""
from pathlib import Path

import pytest
import yaml
from helpers.experiments import PRETRAINING

from data.util.mypath import Path as MyPath
from main import main
from models.backbones import backbone_names
from utils.config import create_config, differing_keys, plain
from utils.config.keys import EVAL, KMEANS
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, SUPERVISED = ROOT / 'pretrain' / 'configs', 'VOCSegmentation_supervised_saliency_model'
MOCO_K, BACKBONE = 'moco_kwargs.K', 'backbone_kwargs.pretraining'
LAYERS = 'True, False, a number of stages from 1, or all'


def files(arguments):
    return arguments[1], arguments[3]


@pytest.fixture
def mistake(experiment):
    """mistake(changes) returns the one line in which an experiment file with these changes is refused."""
    def line(changes):
        env, exp = files(experiment(changes))
        with pytest.raises(UserError) as error:
            create_config(env, exp)
        text = error.value.line()
        assert text.startswith(f'{exp}: ') and '\n' not in text
        return text.removeprefix(f'{exp}: ')
    return line


def test_defaults_of_pretraining(experiment):
    removed = ('model_kwargs', 'optimizer', 'optimizer_kwargs.momentum', 'optimizer_kwargs.weight_decay', 'seed',
               'optimizer_kwargs.nesterov', 'freeze_layers', 'num_workers', 'transformation_kwargs', BACKBONE,
               'backbone_kwargs.dilated', 'backbone_kwargs.output_stride')
    p = plain(create_config(*files(experiment(dict.fromkeys(removed, ...)))))
    assert p['model_kwargs'] == {'ndim': 32, 'head': 'linear', 'upsample': True, 'use_classification_head': True}
    assert p['optimizer_kwargs'] == {'lr': 0.01, 'head_lr': None, 'weight_decay': 0.0, 'momentum': None, 'nesterov': None}
    assert p['transformation_kwargs'] == {'crop_size': 224, 'random_resized_crop': True, 'color_jitter': True,
                                          'random_grayscale': True, 'random_horizontal_flip': True}
    assert p['backbone_kwargs'] == {'dilated': True, 'output_stride': None, 'pretraining': None, 'moco_state_dict': None,
                                    'state_dict': None}
    assert (p['optimizer'], p['freeze_layers'], p['on_bad_image']) == ('sgd', False, 'stop')
    assert p['seed'] is None and p['checkpoint_every'] is p['keep_every'] is None and p['num_workers'] == 4


def test_defaults_of_the_evaluations(tmp_path):
    env, exp = tmp_path / 'env.yml', tmp_path / 'evaluation.yml'
    env.write_text(f'root_dir: {tmp_path}')
    common = {'val_db_name': 'Shapes', 'backbone': 'resnet18', 'head': 'deeplab', 'pretraining': str(tmp_path / 'x')}
    exp.write_text(yaml.safe_dump({**common, 'kmeans_eval': True}))
    kmeans = plain(create_config(env, exp))
    assert kmeans['transformation_kwargs'] == {'resolution': [512, 512]}
    assert kmeans['kmeans_kwargs'] == {'n_clusters': None, 'whiten': True, 'pca': False, 'features': 'embedding'}
    assert kmeans['val_db_kwargs'] == {'split': 'val', 'batch_size': 10, 'saliency': None, 'instances': False,
                                       'hide_background': False}
    exp.write_text(yaml.safe_dump({**common, 'kmeans_eval': True, 'retrieval_kwargs': None}))
    retrieval = plain(create_config(env, exp))
    assert retrieval['retrieval_kwargs'] == {'train_split': 'train', 'saliency': None, 'ignore_classes': None}
    exp.write_text(yaml.safe_dump({**common, 'train_db_name': 'Shapes', 'epochs': 60, 'scheduler': 'poly',
                                   'optimizer_kwargs': {'lr': 0.1}}))
    linear = plain(create_config(env, exp))
    assert (linear['freeze_batchnorm'], linear['kmeans_eval'], linear['optimizer']) == ('all', False, 'sgd')
    assert linear['train_db_kwargs'] == {'split': 'trainaug', 'batch_size': 16}
    del common['pretraining']  # all that eval.py needs
    exp.write_text(yaml.safe_dump(common))
    assert plain(create_config(env, exp, EVAL))['transformation_kwargs'] == {'resolution': [512, 512]}


def test_numbers_in_scientific_notation_and_quotes(experiment):
    p = create_config(*files(experiment({'optimizer_kwargs.lr': '1e-3', 'optimizer_kwargs.weight_decay': '5E-4',
                                         'epochs': '1e2', 'moco_kwargs.T': 1})))
    assert (p.optimizer_kwargs.lr, p.optimizer_kwargs.weight_decay, p.epochs) == (0.001, 0.0005, 100)
    assert isinstance(p.epochs, int) and isinstance(p.moco_kwargs.T, float)


def test_keys_of_older_files_are_accepted(experiment):
    old = create_config(*files(experiment({'freeze_layer': True, 'backbone_kwargs.pretrained': True}, name='same')))
    new = create_config(*files(experiment(name='same')))
    assert old.pop('freeze_layer') is True and old.backbone_kwargs.pop('pretrained') is True
    assert old == new and old.freeze_layers is False


def test_relative_paths_start_at_the_script_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env, exp = Path('env.yml'), Path('small.yaml')
    env.write_text('root_dir: ../results/one')
    exp.write_text(yaml.safe_dump({**PRETRAINING, 'backbone_kwargs': {'state_dict': 'configs/env.yml'}}))
    p = create_config(env, exp)
    assert p.backbone_kwargs.state_dict == str(CONFIGS / 'env.yml')
    assert p.output_dir == str(ROOT / 'results' / 'one' / 'small')
    # No db_root: the folder that data/util/mypath.py names.
    assert p.db_root == MyPath.db_root_dir() == str(ROOT / 'datasets')
    assert MyPath.db_root_dir('Shapes') == str(ROOT / 'datasets' / 'Shapes')
    env.write_text('{root_dir: /elsewhere, db_root: ~/data}')
    p = create_config(env, exp)
    assert (p.db_root, p.checkpoint) == (str(Path.home() / 'data'), '/elsewhere/small/checkpoint.pth.tar')


@pytest.mark.parametrize('text, words', [
    ('epochs: [1, 2', 'not valid YAML in line 1'), ('epochs: 1\n\tlr: 2', 'not valid YAML in line 2'),
    ('epochs: 1\x00', 'not valid YAML'), ('seed: 2020-13-45', 'not valid YAML'),
    ('epochs: !!int many', 'not valid YAML'), ('[' * 600, 'not valid YAML'),
    ('- epochs', 'expected a YAML mapping'), ('', 'expected a YAML mapping'), ('epochs', 'expected a YAML mapping')])
def test_files_that_hold_no_configuration(tmp_path, text, words):
    exp = tmp_path / 'broken.yml'
    exp.write_text(text)
    for pair in ((CONFIGS / 'env.yml', exp), (exp, CONFIGS / f'{SUPERVISED}.yml')):
        with pytest.raises(UserError) as error:
            create_config(*pair)
        assert error.value.line().startswith(f'{exp}: {words}')


def test_files_that_can_not_be_read(tmp_path):
    (tmp_path / 'latin.yml').write_bytes(b'name: \xff')
    for name, words in (('absent.yml', 'No such file'), ('', 'Is a directory'), ('latin.yml', 'not a text file')):
        with pytest.raises(UserError) as error:
            create_config(CONFIGS / 'env.yml', tmp_path / name)
        assert error.value.line().startswith(f'{tmp_path / name}: ') and words in error.value.line()


@pytest.mark.parametrize('tag', ['os.system', 'subprocess.check_call'])
def test_tags_run_nothing(tmp_path, tag):
    trace, exp = tmp_path / 'trace', tmp_path / 'tagged.yml'
    argument = f'touch {trace}' if tag == 'os.system' else ['touch', str(trace)]
    exp.write_text(f'epochs: !!python/object/apply:{tag} [{argument!r}]')
    with pytest.raises(UserError) as error:
        create_config(CONFIGS / 'env.yml', exp)
    assert error.value.line().startswith(f'{exp}: not valid YAML in line 1') and tag in error.value.line()
    assert not trace.exists()


@pytest.mark.parametrize('wrong, nearest', [
    ('train_batchsize', 'train_batch_size'), ('optimiser', 'optimizer'), ('model_kwarg', 'model_kwargs'),
    ('moco_kwargs.k', MOCO_K), ('moco_kwargs.temperature', 'moco_kwargs.contrast'),
    ('model_kwargs.dilated', 'backbone_kwargs.dilated'), ('backbone_kwargs.moco_statedict', 'backbone_kwargs.moco_state_dict'),
    ('MOCO_KWARGS', 'moco_kwargs'), ('Seed', 'seed'), ('on_bad_images', 'on_bad_image')])
def test_unknown_keys(mistake, wrong, nearest):
    assert mistake({wrong: 1}) == f"unknown key '{wrong}' (nearest valid key: '{nearest}')"


def test_unknown_key_of_env(tmp_path):
    (tmp_path / 'env.yml').write_text('{root_dir: x, dbroot: y}')
    with pytest.raises(UserError, match="env.yml: unknown key 'dbroot' .nearest valid key: 'db_root'"):
        create_config(tmp_path / 'env.yml', CONFIGS / f'{SUPERVISED}.yml')
    (tmp_path / 'env.yml').write_text('db_root: y')
    with pytest.raises(UserError, match="env.yml: the key 'root_dir' is missing"):
        create_config(tmp_path / 'env.yml', CONFIGS / f'{SUPERVISED}.yml')


@pytest.mark.parametrize('key', ['train_db_name', 'train_db_kwargs.saliency', 'train_batch_size', 'backbone', 'head',
                                 'epochs', 'scheduler', 'optimizer_kwargs.lr', 'moco_kwargs.T', 'moco_kwargs.m',
                                 MOCO_K])
def test_missing_keys(mistake, key):
    assert mistake({key: ...}) == f"the key '{key}' is missing, and main.py needs it"


@pytest.mark.parametrize('key, value, wanted', [
    ('epochs', 'many', 'an integer'), ('epochs', 40.5, 'an integer'), ('epochs', True, 'an integer'),
    ('epochs', [40], 'an integer'), ('seed', '0x', 'an integer'), ('optimizer_kwargs.lr', 'fast', 'a number'),
    ('optimizer_kwargs.lr', False, 'a number'), ('optimizer_kwargs.lr', float('nan'), 'a number'),
    ('optimizer_kwargs.lr', float('inf'), 'a number'),
    pytest.param('optimizer_kwargs.lr', 10 ** 400, 'a number', id='beyond floats'),
    ('freeze_layers', 0, LAYERS), ('freeze_layers', 'false', LAYERS), ('freeze_layers', 1.5, LAYERS),
    ('train_db_name', 5, 'a name'), ('train_db_name', '', 'a name'), ('head', ['deeplab'], 'a name'),
    ('backbone_kwargs.state_dict', 3, 'a path'), ('backbone_kwargs.state_dict', '', 'a path'),
    ('scheduler_kwargs.lr_decay_epochs', 25, 'a list of integers'),
    ('scheduler_kwargs.lr_decay_epochs', ['a'], 'a list of integers'),
    ('transformation_kwargs.resolution', [512], 'two positive integers'),
    ('transformation_kwargs.resolution', [0, 512], 'two positive integers'),
    ('retrieval_kwargs.ignore_classes', 'bus', 'a list of names'),
    ('retrieval_kwargs.ignore_classes', [1], 'a list of names'), ('moco_kwargs', 5, 'a mapping of keys to values')])
def test_wrong_types(mistake, key, value, wanted):
    assert mistake({key: value}) == f'{key} must be {wanted}, not {value!r}'


@pytest.mark.parametrize('key', ['epochs', 'train_db_name', 'freeze_layers', MOCO_K])
def test_null_where_a_value_is_needed(mistake, key):
    assert mistake({key: None}).startswith(f'{key} needs a value')


@pytest.mark.parametrize('key, value, valid, nearest', [
    ('backbone', 'resnet5O', f"{', '.join(backbone_names())}, or timm/<name of timm's>", 'resnet50'),
    ('optimizer', 'adamw', 'sgd, adam', 'adam'),
    ('optimizer', 'SGD', 'sgd, adam', 'sgd'),
    ('scheduler', 'Poly', 'poly, step, cosine, constant', 'poly'), ('on_bad_image', 'skipp', 'stop, skip', 'skip'),
    (BACKBONE, 'moco', 'imagenet_classification, imagenet_moco, null', None),
    ('model_kwargs.head', 'mlp', 'linear', None), ('head', 'deeplabv3', 'deeplab, linear, none', 'deeplab')])
def test_values_outside_the_choices(mistake, key, value, valid, nearest):
    hint = f" (nearest: '{nearest}')" if nearest else ''
    assert mistake({key: value}) == f"{key} must be one of {valid}, not '{value}'{hint}"


@pytest.mark.parametrize('key, value, bound', [
    ('epochs', 0, 'at least 1'), ('train_batch_size', 0, 'at least 1'), ('num_workers', -1, 'at least 0'),
    ('optimizer_kwargs.lr', 0, 'more than 0'), ('optimizer_kwargs.lr', '-1e-3', 'more than 0'),
    ('optimizer_kwargs.weight_decay', -1, 'at least 0'), ('moco_kwargs.T', 0.0, 'more than 0'),
    ('moco_kwargs.m', 1.5, 'at most 1'), (MOCO_K, -4, 'at least 0'), ('model_kwargs.ndim', 0, 'at least 1'),
    ('seed', -1, 'at least 0'), ('seed', 2 ** 32, 'at most 4294967295'), ('checkpoint_every', 0, 'at least 1'),
    ('keep_every', 0, 'at least 1'),
    ('transformation_kwargs.crop_size', 8, 'at least 16'), ('kmeans_kwargs.n_clusters', 1, 'at least 2')])
def test_values_out_of_range(mistake, key, value, bound):
    assert mistake({key: value}) == f'{key} must be {bound}, not {value}'


def test_values_that_do_not_go_together(mistake):
    assert mistake({'head': 'none'}) == (
        'head: none is for evaluations of a backbone alone: main.py needs head: deeplab or head: linear')
    assert mistake({MOCO_K: 10}) == 'moco_kwargs.K (10) must be a multiple of train_batch_size (4)'
    assert "'backbone_kwargs.moco_state_dict' is missing" in mistake({BACKBONE: 'imagenet_moco'})
    two = {BACKBONE: 'imagenet_moco', 'backbone_kwargs.moco_state_dict': str(CONFIGS / 'env.yml'),
           'backbone_kwargs.state_dict': str(CONFIGS / 'env.yml')}
    assert mistake(two).startswith('backbone_kwargs.state_dict and pretraining: imagenet_moco')
    assert mistake({'optimizer': 'adam'}).startswith('optimizer_kwargs.momentum is only for sgd')
    no_momentum = {'optimizer': 'adam', 'optimizer_kwargs.momentum': ...}
    assert mistake(no_momentum).startswith('optimizer_kwargs.nesterov is only for sgd')
    plain_nesterov = {'optimizer_kwargs.nesterov': True, 'optimizer_kwargs.momentum': ...}
    assert mistake(plain_nesterov).startswith('optimizer_kwargs.nesterov needs optimizer_kwargs.momentum')
    step = {'scheduler': 'step', 'scheduler_kwargs.lr_decay_rate': 0.1}
    assert "'scheduler_kwargs.lr_decay_epochs' is missing" in mistake(step)
    assert "'scheduler_kwargs.lr_decay_rate' is missing" in mistake({'scheduler': 'cosine'})


@pytest.mark.parametrize('changes, words', [
    ({'epoch': 3}, "unknown key 'epoch' (nearest valid key: 'epochs')"), ({MOCO_K: 9}, 'moco_kwargs.K (9)'),
    ({'moco_kwargs': ...}, "the key 'moco_kwargs.T' is missing, and main.py needs it")])
def test_mistakes_end_main_before_any_work(experiment, user_error, tmp_path, changes, words):
    arguments = experiment(changes)
    assert user_error(lambda: main(arguments)).startswith(f'error: {arguments[3]}: {words}')
    assert not (tmp_path / 'output').exists()


def test_missing_file_ends_main(tmp_path, user_error):
    absent = str(tmp_path / 'absent.yml')
    line = user_error(lambda: main(['--config_env', str(CONFIGS / 'env.yml'), '--config_exp', absent]))
    assert line.startswith(f'error: {absent}: ')


def test_configurations_from_before_there_was_a_key_have_its_default(tmp_path):
    env, exp = tmp_path / 'env.yml', tmp_path / 'evaluation.yml'
    env.write_text(f'root_dir: {tmp_path}')
    exp.write_text(yaml.safe_dump({'val_db_name': 'Shapes', 'backbone': 'resnet18', 'head': 'deeplab', 'pretraining': None,
                                   'kmeans_eval': True}))
    p = create_config(env, exp)
    other = plain(p)
    del other['kmeans_kwargs'], other['num_workers']
    assert differing_keys(p, other, KMEANS) == []
    p.num_workers, p.kmeans_kwargs.whiten = 7, False
    assert differing_keys(p, other, KMEANS) == ['num_workers', 'kmeans_kwargs.whiten']
