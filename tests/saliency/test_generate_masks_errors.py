"""generate_masks.py refuses with one line and exit code 2, and then nothing has changed; and its other models."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers.photographs import contents, disc, ids_of, make_masks, mask_ids, photograph, times
from PIL import Image

from data.dataset import SegmentationDataset
from data.decoding import read_saliency

SCRIPT = Path(__file__).resolve().parents[2] / 'pretrain' / 'generate_masks.py'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder of two photographs, and the data set made of it. Not to be written to."""
    root = tmp_path_factory.mktemp('made')
    for seed, name in enumerate(('a.jpg', 'deep/b.png')):
        photograph(root / 'photographs' / name, seed=seed)
    make_masks(root / 'photographs', root / 'mine')
    return root


@pytest.fixture
def root(tmp_path, made):
    """A copy of `made`, whose record names the copied photographs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    sources = tmp_path / 'mine' / 'sources.json'
    record = json.loads(sources.read_text())
    paths = {name: path for name, (path, _, _) in record['photographs'].items()}
    assert record['folder'] == str(made / 'photographs') and paths == {'a': 'a.jpg', 'deep/b': 'deep/b.png'}
    sources.write_text(json.dumps({**record, 'folder': str(tmp_path / 'photographs')}))
    return tmp_path


@pytest.fixture
def refuse(root, user_error):
    """refuse(*flags) runs the script on the photographs, which must change nothing at all, and returns its error."""
    def check(*flags, images=root / 'photographs', out=root / 'mine'):
        before = contents(root), times(root)
        line = user_error(lambda: make_masks(images, out, *flags)).removeprefix('error: ')
        assert (contents(root), times(root)) == before
        return line
    return check


@pytest.fixture
def network(root):
    """network(name, sign=1) writes an ONNX file whose saliency is the red of an image, or all else with the sign -1."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')

    def write(name, sign=1):
        kind, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        # red is 0.485 + 0.229 x; the logits are zero at 0.6, between the gradient and the disc
        weight = np.float32([sign * 0.229 * 40, 0, 0]).reshape(1, 3, 1, 1)
        bias = np.float32([sign * (0.485 - 0.6) * 40])
        graph = onnx.helper.make_graph([onnx.helper.make_node('Conv', ['x', 'w', 'b'], ['y'])], 'red',
                                       [value('x', kind, [1, 3, 'h', 'w'])], [value('y', kind, None)],
                                       [onnx.numpy_helper.from_array(weight, 'w'), onnx.numpy_helper.from_array(bias, 'b')])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=9), root / name)
        return root / name
    return write


def process(root, *flags, before='', **options):
    """The script as a process of its own, after shell commands. It takes the photographs, and makes or goes on with `mine`."""
    command = ['--images', 'photographs', '--out', 'mine', '--device', 'cpu', '--num_workers', '0', *flags]
    return subprocess.run(['bash', '-c', before + 'exec "$@"', 'bash', sys.executable, SCRIPT, *command],
                          cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', **options})


# Folders


def test_the_same_command_is_no_error(root):
    before = times(root)
    assert make_masks(root / 'photographs', root / 'mine')['masks'] == 2 and times(root) == before


def test_folders_of_something_else(root, refuse):
    (root / 'other').mkdir()
    (root / 'other' / 'letter.txt').touch()
    line = refuse(out=root / 'other')
    assert line == f'{root}/other is not empty and was not made by generate_masks.py: name another --out'
    assert refuse(out=root / 'photographs').startswith(f'{root}/photographs is not empty and was not made')
    assert refuse(out=root / 'other' / 'letter.txt') == f'{root}/other/letter.txt is a file: name another --out'
    assert refuse(out=root / 'other' / 'letter.txt' / 'mine').startswith(f'the folder {root}/other/letter.txt/mine could')


def test_other_photographs_and_another_size(root, refuse):
    photograph(root / 'holiday' / 'a.jpg')
    line = refuse(images=root / 'holiday')
    assert line.startswith(f'{root}/mine holds the photographs of {root}/photographs: move it away, or name another --out')
    assert 'make segment: rename the folder of photographs' in line
    assert refuse('--max_side', 60).startswith(f'{root}/mine: its photographs were shrunk with --max_side 1024: give the same')


def test_no_photographs(root, refuse):
    (root / 'nothing').mkdir()
    (root / 'nothing' / 'a.txt').touch()
    assert refuse(images=root / 'absent') == f'{root}/absent is not a folder of images: it does not exist'
    assert refuse(images=root / 'photographs' / 'a.jpg') == f'{root}/photographs/a.jpg is not a folder of images'
    assert refuse(images=root / 'nothing').startswith(f'{root}/nothing: no images in this folder (.jpg, ')


def test_images_of_a_data_set_are_jpegs(root, refuse):
    for name in 'a.png', 'b.jpeg', 'c.JPG':
        path = photograph(root / 'data' / 'images' / name)
        line = refuse(images=root / 'data' / 'images', out=root / 'data')
        assert line.startswith(f'{path}: images of a data set are JPEGs called <id>.jpg')
        path.unlink()


@pytest.mark.parametrize('text', ['', '{"folder": "/pho', '[]', '{}', '3', 'null', '{"folder": "x", "max_side": 1024}',
                                  '{"folder": "x", "max_side": 0, "photographs": []}', '\udcff'])
def test_damaged_record(root, refuse, text):
    (root / 'mine' / 'sources.json').write_bytes(text.encode(errors='surrogateescape'))
    assert refuse().startswith(f'{root}/mine/sources.json could not be read (')


@pytest.mark.parametrize('text', ['', 'options: {', '[]', '3', 'model: u2net', 'options: 3', 'options:', '\udcff'])
def test_damaged_configuration(root, refuse, text):
    (root / 'mine' / 'config_robust_background.yml').write_bytes(text.encode(errors='surrogateescape'))
    assert refuse().startswith(f'{root}/mine/config_robust_background.yml could not be read (')


# Flags


@pytest.mark.parametrize(('flags', 'words'), [
    (('--model', 'u2nett'), "--model u2nett: unknown saliency model (nearest: 'u2net'; one of robust_background, "),
    (('--model', 'robust-background'), "--model robust-background: unknown saliency model (nearest: 'robust_b"),
    (('--model', '../a'), '--model ../a: use letters, digits, dots, hyphens and underscores'),
    (('--model', 'a/b', '--onnx', 'x.onnx'), '--model a/b: use letters'),
    (('--model', '.hidden'), '--model .hidden: use letters'),
    (('--model', 'a\n'), '--model a : use letters'),
    (('--onnx', 'my net.onnx'), '--model my net: use letters'),
    (('--onnx', 'absent.onnx'), 'absent.onnx'),
    (('--val_fraction', '1'), 'argument --val_fraction: must be a number of at least 0 and below 1, not 1'),
    (('--val_fraction', '-0.1'), 'argument --val_fraction: must be a number of at least 0 and below 1, not -0.1'),
    (('--val_fraction', 'nan'), 'argument --val_fraction: must be a number of at least 0 and below 1, not nan'),
    (('--val_fraction', 'some'), 'argument --val_fraction: must be a number of at least 0 and below 1, not some'),
    (('--max_side', '-1'), 'argument --max_side: must be an integer of at least 0, not -1'),
    (('--max_side', '²'), 'argument --max_side: must be an integer of at least 0, not ²'),
    (('--num_workers', '1.5'), 'argument --num_workers: must be an integer of at least 0, not 1.5'),
    (('--onnx', 'x.onnx', '--onnx_preset', 'u3net'), "argument --onnx_preset: invalid choice: 'u3net'"),
    (('--onnx', 'x.onnx', '--onnx_std', '0.5'), 'argument --onnx_std: must be three numbers separated by commas, not 0.5'),
    (('--onnx', 'x.onnx', '--onnx_size', '320'), 'argument --onnx_size: must be height,width in pixels, not 320'),
    (('--onnx', 'x.onnx', '--onnx_size', '0,9'), 'argument --onnx_size: must be height,width in pixels, not 0,9'),
    (('--model', 'tokencut', '--weights', 'absent.pth', '--vit', 'test_vit'), 'absent.pth'),
    (('--model', 'feature_cues', '--weights', 'absent.pth'), 'absent.pth'),
    (('--model', 'auto', '--weights', 'zoo://efficientnet_lite0'),
     '--weights zoo://efficientnet_lite0: name its file, <root_dir>/model_zoo/efficientnet_lite0.pth.tar, or use `make mine'),
])
def test_flags(refuse, flags, words):
    if 'absent.onnx' in flags:
        pytest.importorskip('onnxruntime')
    assert refuse(*flags).startswith(words)


def test_no_mask_at_all(tmp_path, user_error):
    Image.new('RGB', (64, 48), 'gray').save(photograph(tmp_path / 'photographs' / 'a.png'))
    images, out = tmp_path / 'photographs', tmp_path / 'mine'
    line = user_error(lambda: make_masks(images, out))
    assert line.startswith(f'error: {out}: 0 images have a mask, so none is left for training')
    assert not (out / 'sets').exists() and not mask_ids(out)
    photograph(images / 'b.png')
    line = user_error(lambda: make_masks(images, out, '--val_fraction', 0.1))
    assert line.startswith(f'error: {out}: 1 images have a mask, so none is left for training')
    assert line.endswith('or --val_fraction 0')
    assert make_masks(images, out, '--val_fraction', 0)['masks'] == 1 and ids_of(out, 'trainaug') == ['b']


@pytest.mark.slow
def test_full_disk(root):
    """No file may have more than 8 KiB. What was there stays, and with room the run goes on."""
    photograph(root / 'photographs' / 'large.png', 300, 400)
    before = contents(root / 'mine', 'images', 'saliency_robust_background', 'sets')
    result = process(root, before='ulimit -f 8; ')
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    errors = [line for line in result.stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 1 and 'mine/images/large.jpg could not be written (File too large)' in errors[0]
    assert contents(root / 'mine', 'images', 'saliency_robust_background', 'sets') == before
    assert make_masks(root / 'photographs', root / 'mine')['masks'] == 3


@pytest.mark.slow
def test_a_name_that_is_no_text(root):
    """On a terminal that takes UTF-8 only."""
    path = os.path.join(os.fsencode(root / 'photographs'), b'caf\xe9.jpg')
    Path(os.fsdecode(path)).write_bytes(b'no image')
    result = process(root, PYTHONIOENCODING='utf-8:strict')
    assert result.returncode == 0 and 'Traceback' not in result.stderr and 'Logging error' not in result.stderr
    assert r'photographs/caf\udce9.jpg is not a complete image' in (root / 'mine' / 'log_file.txt').read_text()
    assert ids_of(root / 'mine', 'trainaug') == ['a', 'deep/b']


# Other models


def test_a_second_model(root, refuse, network, user_error):
    out = root / 'mine'
    before = contents(out, 'images', 'saliency_robust_background', 'sets'), times(out / 'saliency_robust_background')
    line = user_error(lambda: make_masks(root / 'photographs', out, '--onnx', network('red.onnx')))
    assert line.startswith(f'error: {root}/red.onnx: its output is not a probability')
    assert line.endswith('add --onnx_output logits, or stretched')
    results = make_masks(root / 'photographs', out, '--onnx', root / 'red.onnx', '--onnx_logits')
    assert (results['model'], results['masks']) == ('red', 2)
    assert contents(out, 'images', 'saliency_robust_background', 'sets') == before[0]
    assert before[1] == times(out / 'saliency_robust_background')
    for name in 'a', 'deep/b':
        mask, inside = read_saliency(out / 'saliency_red' / f'{name}.png') > 0, disc()[1]
        assert (mask & inside).sum() / (mask | inside).sum() > 0.8
    dataset = SegmentationDataset(out, 'trainaug', saliency='red', drop_missing=True)
    assert dataset.dropped == 0 and [dataset[index]['saliency'].shape for index in range(2)] == [(48, 64)] * 2

    assert yaml.safe_load((out / 'config_red.yml').read_text())['options']['onnx'] == str(root / 'red.onnx')
    (root / 'other').mkdir()
    for flags, differing in ((('--onnx', network('other/red.onnx', -1), '--onnx_logits'), '--onnx'),
                             (('--onnx', root / 'red.onnx'), '--onnx_logits')):
        line = refuse(*flags)
        assert line.startswith(f'{out}/config_red.yml: masks of this name were made with another {differing}: give the same')
    results = make_masks(root / 'photographs', out, '--onnx', root / 'other/red.onnx', '--onnx_logits', '--model', 'not-red')
    assert results['model'] == 'not-red' and mask_ids(out, 'not-red') == {'a', 'deep/b'} == mask_ids(out, 'red')


def test_masks_of_others_are_not_touched(root, refuse, network):
    masks = root / 'mine' / 'saliency_supervised_model'
    shutil.copytree(root / 'mine' / 'saliency_robust_background', masks)
    line = refuse('--onnx', network('supervised_model.onnx', 1))
    assert line.startswith(f'{masks} holds masks that generate_masks.py did not make: give another --model')


@pytest.mark.parametrize('flags, words', [
    (('--onnx', 'x.onnx', '--model', 'tokencut'), '--model tokencut: with --onnx choose another name for its masks'),
    (('--onnx', 'x.onnx', '--model', 'auto'), '--model auto: with --onnx choose another name for its masks'),
    (('--onnx_logits',), '--onnx_logits: this is only for a network given with --onnx'),
    (('--onnx_mean', '0,0.5,1', '--model', 'tokencut'), '--onnx_mean: this is only for a network given with --onnx'),
    (('--onnx', 'x.onnx', '--onnx_logits', '--onnx_output', 'stretched'),
     '--onnx_logits and --onnx_output stretched contradict each other: remove one'),
    (('--weights', 'x.pth'), '--weights and --vit are for --model tokencut, --weights and --backbone for --model feature_cues'),
    (('--vit', 'x', '--model', 'feature_cues'),
     '--weights and --vit are for --model tokencut, --weights and --backbone for --model feature_cues'),
    (('--backbone', 'resnet50'), '--backbone is for --model feature_cues')])
def test_flags_that_do_not_go_together(refuse, flags, words):
    assert refuse(*flags) == words


def test_tokencut(root):
    torch.manual_seed(0)
    torch.save(timm.create_model('test_vit', num_classes=0).state_dict(), root / 'vit.pth')
    out = root / 'tokencut'
    results = make_masks(root / 'photographs', out, '--model', 'tokencut', '--vit', 'test_vit', '--weights', root / 'vit.pth')
    assert results['model'] == 'tokencut' and ids_of(out, 'trainaug') == sorted(mask_ids(out, 'tokencut')) != []
    assert yaml.safe_load((out / 'config_tokencut.yml').read_text())['options']['weights'] == str(root / 'vit.pth')
