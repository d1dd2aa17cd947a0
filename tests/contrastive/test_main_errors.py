"""What ends a pre-training run: every user's mistake is one line and exit code 2, and no earlier checkpoint changes."""
import io
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.experiments import RESNET
from PIL import Image
from torchvision.models import resnet18

from main import main

TOUCHED = 'code-was-run'


@pytest.fixture
def own_root(tmp_path, shapes_root):
    """A copy of the small data sets that a test may damage."""
    shutil.copytree(shapes_root, tmp_path / 'own')
    return tmp_path / 'own'


@pytest.fixture
def fails(experiment, user_error):
    """fails(changes, ...) runs main on this experiment, which must fail, and returns the message."""
    def run(changes=None, flags=(), **named):
        arguments = experiment({'epochs': 1, **(changes or {})}, **named)
        return user_error(lambda: main([*arguments, *flags])).removeprefix('error: ')
    return run


def truncate_image(root, number=4):
    path = root / 'Shapes' / 'images' / f'train_{number:04d}.jpg'
    path.write_bytes(path.read_bytes()[:400])
    return path


def checkpoint_path(tmp_path, name='small'):
    path = tmp_path / 'output' / name / 'checkpoint.pth.tar'
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# Data


def test_unknown_data_set(fails, shapes_root):
    line = fails({'train_db_name': 'Birds'})
    assert line.startswith(f'{shapes_root / "Birds"}: this data set does not exist')


def test_missing_masks_and_split(fails, own_root):
    folder = own_root / 'Shapes'
    line = fails({'train_db_kwargs.saliency': 'other'}, db_root=own_root)
    assert line.startswith(f'{folder / "saliency_other"}: the folder is missing')
    (folder / 'sets' / 'trainaug.txt').unlink()
    assert fails(db_root=own_root).startswith(f'{folder / "sets" / "trainaug.txt"} could not be read')


def test_fewer_images_than_the_batch(fails, own_root):
    line = fails({'train_batch_size': 16, 'moco_kwargs.K': 16})
    assert 'train_batch_size is 16' in line and 'only 12 usable images' in line and 'small.yml: ' in line
    for path in list((own_root / 'Shapes' / 'saliency_supervised_model').iterdir())[3:]:
        path.unlink()
    assert 'usable images' in fails(db_root=own_root)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_truncated_image(fails, own_root, tmp_path, workers):
    path = truncate_image(own_root)
    line = fails({'num_workers': workers}, db_root=own_root)
    assert line.startswith(f'{path} is not a complete image') and 'Traceback' not in line
    assert not checkpoint_path(tmp_path).exists()
    assert multiprocessing.active_children() == []
    log = (tmp_path / 'output' / 'small' / 'log_file.txt').read_text()
    assert log.rstrip().endswith(f'error: {line}')


def test_masks_that_no_view_passes(fails, own_root):
    folder = own_root / 'Shapes' / 'saliency_supervised_model'
    for path in folder.iterdir():
        Image.open(path).point(lambda value: value // 255).save(path)
    line = fails(db_root=own_root)
    assert line.startswith(f'{folder}: ') and ' is 1;' in line and 'must be 255' in line


@pytest.mark.slow
def test_bad_images_are_skipped_and_counted(experiment, own_root, tmp_path):
    path = truncate_image(own_root)
    main(experiment({'epochs': 1, 'on_bad_image': 'skip'}, db_root=own_root))
    rows = [json.loads(line) for line in (tmp_path / 'output' / 'small' / 'metrics.jsonl').read_text().splitlines()]
    log = (tmp_path / 'output' / 'small' / 'log_file.txt').read_text()
    # 3 steps of 4 visit each of the 12 images; the bad one can come up again as a replacement.
    assert len(rows) == 1 and rows[0]['epoch'] == 1
    assert rows[0]['skipped_images'] == log.count(f'skipped: {path} is not a complete image') >= 1


# Output and device


def test_output_below_a_regular_file(experiment, user_error, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    arguments = experiment()
    env = Path(arguments[1])
    env.write_text(yaml.safe_dump({**yaml.safe_load(env.read_text()), 'root_dir': str(tmp_path / 'file' / 'output')}))
    line = user_error(lambda: main(arguments))
    assert str(tmp_path / 'file' / 'output' / 'small') in line and 'root_dir' in line
    line = user_error(lambda: main([*arguments, '--fresh']))
    assert str(tmp_path / 'file' / 'output' / 'small') in line
    assert (tmp_path / 'file').read_text() == 'in the way'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_device_that_is_not_there(fails, tmp_path):
    line = fails(flags=['--device', 'cuda'])
    assert line.startswith('--device cuda: ') and not (tmp_path / 'output').exists()


@pytest.mark.parametrize('seed', [-1, 2 ** 32])
def test_impossible_seed(fails, seed, tmp_path):
    assert fails(flags=['--seed', str(seed)]).startswith('argument --seed: must be ')
    assert not (tmp_path / 'output').exists()


# Checkpoints to go on from


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def as_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize('content', [
    b'', b'not a checkpoint', as_bytes({'model': {}, 'epoch': torch.zeros(4000)})[:9000], b'PK\x03\x04' + bytes(200)],
    ids=['empty', 'text', 'truncated', 'zeros'])
def test_damaged_checkpoint(fails, tmp_path, content):
    path = checkpoint_path(tmp_path)
    path.write_bytes(content)
    assert fails().startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    assert path.read_bytes() == content


def test_checkpoint_with_code(fails, tmp_path):
    path, trace = checkpoint_path(tmp_path), tmp_path / TOUCHED
    content = as_bytes({'model': {}, 'epoch': Payload(trace)})
    torch.load(io.BytesIO(content), weights_only=False)
    assert trace.exists()  # the payload works where it is let
    trace.unlink()
    path.write_bytes(content)
    assert fails().startswith(f'{path}: refused, since loading it would run code')
    assert not trace.exists() and path.read_bytes() == content


@pytest.mark.parametrize('content', [
    {}, {'state_dict': {}}, {'epoch': 0, 'model': {}}, {'epoch': 'two', 'model': {}}, {'epoch': 0, 'model': 3},
    {'epoch': 0, 'seed': 'x'}, torch.zeros(3), ['epoch', 'model'], 7],
    ids=['empty', 'other', 'no weights', 'epoch', 'model', 'seed', 'tensor', 'list', 'number'])
def test_checkpoint_of_something_else(fails, tmp_path, content):
    path = checkpoint_path(tmp_path)
    torch.save(content, path)
    before = path.read_bytes()
    line = fails({'seed': None})
    assert line.startswith(f'{path}: ') and ('--fresh' in line or 'weights do not fit' in line)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_errors_leave_the_checkpoint_alone(experiment, fails, own_root, tmp_path):
    main(experiment({'epochs': 1}, db_root=own_root))
    path = checkpoint_path(tmp_path)
    before, state = path.read_bytes(), torch.load(path, weights_only=True)
    line = fails({'epochs': 2, 'moco_kwargs.K': 16}, ['--override'], db_root=own_root)
    assert line.startswith(f'{path}: ') and line.endswith('of another shape queue')
    bad = truncate_image(own_root)
    assert str(bad) in fails({'epochs': 2}, ['--override'], db_root=own_root)
    assert path.read_bytes() == before

    del state['optimizer'], state['model']['module.queue_ptr']
    state['model']['module.surplus'] = torch.zeros(1)
    torch.save(state, path)
    assert fails({'epochs': 2}, ['--override'], db_root=own_root).endswith(': missing queue_ptr; left over surplus')
    state['model']['module.queue_ptr'] = state['model'].pop('module.surplus').long()
    torch.save(state, path)
    line = fails({'epochs': 2}, ['--override'], db_root=own_root)
    assert line.startswith(f'{path}: ') and "'optimizer'" in line and '--fresh' in line


# Initial weights


@pytest.mark.parametrize('key', ['moco_state_dict', 'state_dict'])
def test_initial_weights_that_are_not_there(fails, tmp_path, key):
    path = tmp_path / 'absent.pth'
    assert fails({f'backbone_kwargs.{key}': str(path)}).endswith(
        f'backbone_kwargs.{key} names {path}, which does not exist: make it first, or correct the path')
    assert not (tmp_path / 'output' / 'small' / 'config.yml').exists()


@pytest.fixture(scope='module')
def resnet():
    torch.manual_seed(0)
    return resnet18(weights=None).state_dict()


def test_state_dict_that_does_not_fit(fails, tmp_path, resnet):
    """This and the next one go with those of single keys in tests/models/test_networks.py."""
    path = tmp_path / 'resnet.pth'
    torch.save({**{key: value for key, value in resnet.items() if key != 'layer3.0.conv1.weight'},
                'layer9.weight': torch.zeros(2)}, path)
    line = fails({**RESNET, 'backbone_kwargs.state_dict': str(path)})
    assert line.startswith(f'{path}: ') and line.endswith(': missing layer3.0.conv1.weight; left over layer9.weight')


def test_moco_checkpoint_that_does_not_fit(fails, tmp_path, resnet):
    path = tmp_path / 'moco.pth.tar'
    state = {f'module.encoder_q.{key}': value for key, value in resnet.items()}
    state['module.encoder_q.conv1.weight'] = torch.zeros(64, 1, 7, 7)
    state |= {'module.encoder_k.conv1.weight': torch.zeros(1), 'module.queue': torch.zeros(1)}
    torch.save({'epoch': 800, 'arch': 'resnet18', 'state_dict': state}, path)
    line = fails({**RESNET, 'backbone_kwargs.pretraining': 'imagenet_moco', 'backbone_kwargs.moco_state_dict': str(path)})
    assert line.startswith(f'{path}: ') and line.endswith(': of another shape conv1.weight')  # and no other key


@pytest.mark.slow
def test_files_that_are_no_initial_weights(fails, tmp_path, resnet):
    path, trace = tmp_path / 'weights.pth', tmp_path / TOUCHED
    moco = {**RESNET, 'backbone_kwargs.pretraining': 'imagenet_moco', 'backbone_kwargs.moco_state_dict': str(path)}
    plain = {**RESNET, 'backbone_kwargs.state_dict': str(path)}
    for content, changes, words in ((resnet, moco, "it has no 'state_dict'"), (7, moco, "it has no 'state_dict'"),
                                    ({'state_dict': resnet}, moco, "'module.encoder_q.'"),
                                    (torch.zeros(2), plain, 'found Tensor'), ({}, plain, 'missing bn1.bias'),
                                    (Payload(trace), plain, 'would run code'), (Payload(trace), moco, 'would run code')):
        torch.save(content, path)
        line = fails(changes)
        assert line.startswith(f'{path}: ') and words in line
    assert not trace.exists()
    path.write_bytes(b'damaged')
    assert fails(plain).startswith(f'{path}: damaged')
