"""Published weights by name, against a server on this machine: fetched once, checked, and used by the scripts."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from helpers import warm
from helpers.experiments import LINEAR, RESNET, TOYS_RETRIEVAL
from helpers.web import QUOTA_PAGE, send
from torchvision.models import resnet18

import main as pretraining_script
from models.factory import get_model
from utils.errors import UserError
from utils.model_zoo import __main__ as model_zoo
from utils.model_zoo import zoo as zoo_module
from utils.model_zoo.zoo import ZOO, Entry, local_file

SEGMENTATION = Path(__file__).resolve().parents[2] / 'segmentation'
NAME = 'voc_supervised_linear'


@pytest.fixture
def content(tmp_path):
    """The bytes of a small file of torch.save."""
    torch.save({'weight': torch.arange(5.0)}, tmp_path / 'source')
    return (tmp_path / 'source').read_bytes()


@pytest.fixture
def zoo(server, monkeypatch, tmp_path):
    """A zoo whose one entry is on the server; gives its root_dir."""
    for module in (zoo_module, model_zoo):
        monkeypatch.setattr(module, 'ZOO', {NAME: Entry('test', server.url, '')})
    return tmp_path / 'root'


def refusal(root):
    with pytest.raises(UserError) as caught:
        local_file(f'zoo://{NAME}', root)
    return caught.value.line()


def below(folder):
    return {path.name for path in folder.rglob('*') if path.is_file()}


def test_fetched_once_with_its_hash(server, zoo, content):
    server.reply = send(content, kind='application/octet-stream')
    path = Path(local_file(f'zoo://{NAME}', zoo))
    assert path == zoo / 'model_zoo' / f'{NAME}.pth.tar' and path.read_bytes() == content
    record = path.with_name(f'{NAME}.pth.tar.sha256')
    assert record.read_text() == f'{hashlib.sha256(content).hexdigest()}  {path.name}\n'  # as sha256sum writes it
    assert local_file(f'zoo://{NAME}', zoo) == str(path) and len(server.requests) == 1
    assert local_file('/some/path', zoo) == '/some/path'


def test_a_file_put_there_by_hand_is_used(server, zoo, content):
    path = zoo / 'model_zoo' / f'{NAME}.pth.tar'
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert local_file(f'zoo://{NAME}', zoo) == str(path) and server.requests == []
    assert hashlib.sha256(content).hexdigest() in path.with_name(f'{path.name}.sha256').read_text()


def test_a_file_put_there_by_hand_that_is_none(server, zoo, content):
    path = zoo / 'model_zoo' / f'{NAME}.pth.tar'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'<html>what a browser saves</html>')
    assert refusal(zoo).startswith(f'{path} is not a complete PyTorch checkpoint: delete it and run again')
    path.unlink()
    server.reply = send(content)
    assert Path(local_file(f'zoo://{NAME}', zoo)).read_bytes() == content
    path.unlink()
    path.mkdir()
    assert refusal(zoo).startswith(f'{path} could not be read')


@pytest.mark.parametrize(('reply', 'words'), [
    (lambda content: send(content[:-100], length=len(content)), ['run again']),
    (lambda content: send(content[:-100]), ['gave a damaged checkpoint: run again']),
    (lambda content: send(QUOTA_PAGE, kind='text/html'), ['Google Drive refuses', 'quota', 'wait a day']),
    (lambda content: send(b'<html>Log in</html>', kind='text/html'), ['a web page instead of a PyTorch checkpoint']),
    (lambda content: send(b'', status=500), ['500'])],
    ids=['broken off', 'broken off, no length', 'quota page', 'another page', 'an error'])
def test_a_failed_download_leaves_nothing(server, zoo, content, reply, words):
    server.reply = reply(content)
    message = refusal(zoo)
    for word in (*words, f'open {server.url} in a browser, save the file as {zoo}/model_zoo/{NAME}.pth.tar'):
        assert word in message
    assert below(zoo) == set()


def test_a_file_that_changes(server, zoo, content, tmp_path):
    server.reply = send(content)
    path = Path(local_file(f'zoo://{NAME}', zoo))
    path.write_bytes(content[:-1] + b'?')  # here
    message = refusal(zoo)
    assert message.startswith(f'{path} has changed since it was downloaded') and f'delete {path.name} to download' in message
    path.unlink()
    torch.save({'weight': torch.zeros(3)}, tmp_path / 'another')
    server.reply = send((tmp_path / 'another').read_bytes())  # there
    message = refusal(zoo)
    assert message.startswith(f'{server.url} gives a different file than before')
    assert below(zoo) == {f'{path.name}.sha256'}
    path.with_name(f'{path.name}.sha256').unlink()
    assert Path(local_file(f'zoo://{NAME}', zoo)).read_bytes() == (tmp_path / 'another').read_bytes()


def test_list(zoo, server, content, tmp_path, capsys):
    env = tmp_path / 'env.yml'
    env.write_text(f'root_dir: {zoo}\n')
    model_zoo.main(['--config_env', str(env)])
    assert 'not on disk yet; will be' in capsys.readouterr().out
    server.reply = send(content)
    path = local_file(f'zoo://{NAME}', zoo)
    model_zoo.main(['--config_env', str(env)])
    printed = capsys.readouterr().out
    assert f'on disk: {path}' in printed and f'zoo://{NAME}' in printed and server.url in printed
    with pytest.raises(UserError, match=f'zoo://nothing: unknown name of weights, available: {NAME}'):
        local_file('zoo://nothing', zoo)


@pytest.mark.slow
def test_listed_from_inside_either_tree():
    for tree in ('pretrain', 'segmentation'):
        done = subprocess.run([sys.executable, '-m', 'utils.model_zoo'], cwd=SEGMENTATION.parent / tree, capture_output=True,
                              text=True, check=True)
        assert all(f'zoo://{name}' in done.stdout for name in ZOO) and done.stdout.count('on disk') == len(ZOO)


@pytest.mark.slow
def test_pretraining_starts_from_the_zoo(server, experiment, monkeypatch, tmp_path):
    weights = resnet18(weights=None).state_dict()
    torch.save({'state_dict': {f'module.encoder_q.{key}': value for key, value in weights.items()}}, tmp_path / 'moco')
    monkeypatch.setattr(zoo_module, 'ZOO', {'moco_v2_800ep': Entry('test', server.url, '')})
    server.reply = send((tmp_path / 'moco').read_bytes())
    pretraining_script.main(experiment({
        **RESNET,        'epochs': 1, 'optimizer_kwargs.lr': 1e-12, 'optimizer_kwargs.weight_decay': 0,
        'backbone_kwargs.pretraining': 'imagenet_moco', 'backbone_kwargs.moco_state_dict': 'zoo://moco_v2_800ep'}))
    model = torch.load(tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', weights_only=True)['model']
    assert torch.allclose(model['module.model_q.backbone.conv1.weight'], weights['conv1.weight'])


@pytest.mark.slow
def test_published_files_by_command_line(drive, experiment, toys, toy_checkpoint, tmp_path):
    """Files in the published formats, which Google Drive (this machine's) hands out, through the scripts as processes."""
    torch.manual_seed(0)
    torch.save(get_model({**RESNET, 'num_classes': 9}).state_dict(), tmp_path / 'linear')
    files = {urlsplit(ZOO[name].url).path.split('/')[3]: Path(path).read_bytes()  # /file/d/<id>/view
             for name, path in ((NAME, tmp_path / 'linear'), ('voc_supervised_pretrained', toy_checkpoint))}

    def reply(handler):
        send(files[parse_qs(urlsplit(handler.path).query)['id'][0]], kind='application/octet-stream',
             Content_Disposition='attachment; filename="weights"')(handler)
    drive.reply = reply
    pretrained = 'zoo://voc_supervised_pretrained'
    linear = {**LINEAR, **RESNET, 'val_db_name': 'Toys', 'train_db_name': 'Toys'}
    for script, base, changes, flags in (
            ('eval.py', linear, {'pretraining': '/nowhere'}, ['--state-dict', f'zoo://{NAME}', '--num_visualizations', '0']),
            ('kmeans.py', TOYS_RETRIEVAL, {'pretraining': pretrained}, ['--num_seeds', '1', '--num_visualizations', '0']),
            ('retrieval.py', TOYS_RETRIEVAL, {'pretraining': pretrained}, ['--num_visualizations', '0'])):
        name = script.removesuffix('.py')
        done = warm.run(SEGMENTATION / script, *experiment(changes, name, toys, base), *flags, out=tmp_path / 'out')
        assert done.returncode == 0, done.printed()
        folder = tmp_path / 'output' / name / ('eval/voc_supervised_linear.pth.tar' if name == 'eval' else '')
        results = json.loads((folder / 'results.json').read_text())
        assert results['script'] == script and results['weights'].startswith(str(tmp_path / 'output' / 'model_zoo'))
    assert len(drive.requests) == 2  # each file once
