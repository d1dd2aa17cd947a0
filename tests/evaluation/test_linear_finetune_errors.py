"""What ends `linear_finetune.py`: one line and exit code 2, and what was on disk stays."""
import shutil

import numpy as np
import pytest
import torch
from helpers.experiments import LINEAR, RESNET
from PIL import Image

from linear_finetune import main


@pytest.fixture
def fails(experiment, pretrained, user_error, tmp_path):
    """fails(changes, ...) runs main, which must fail without leaving a result, and returns the message."""
    def run(changes=None, flags=(), **named):
        arguments = experiment({'pretraining': str(pretrained), 'epochs': 1, **(changes or {})}, base=LINEAR, **named)
        line = user_error(lambda: main([*arguments, *flags])).removeprefix('error: ')
        assert not (tmp_path / 'output' / 'small' / 'results.json').exists()
        return line
    return run


@pytest.fixture
def own_root(tmp_path, shapes_root):
    """A copy of the small data sets that a test may damage."""
    return shutil.copytree(shapes_root, tmp_path / 'own')


@pytest.mark.slow
def test_checkpoints_that_do_not_fit(fails, pretrained, tmp_path):
    path = tmp_path / 'weights.pth'
    changes = {'pretraining': str(path)}
    assert fails(changes).endswith(f'pretraining names {path}, which does not exist: make it first, or correct the path')
    path.write_bytes(pretrained.read_bytes()[:10 ** 5])
    assert fails(changes).startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    good = torch.load(pretrained)['model']

    def without(key):
        return {name: value for name, value in good.items() if name != f'module.model_q.{key}'}
    for content, words in (
            (without('backbone.model.bn1.weight'), 'missing backbone.model.bn1.weight'),
            (without('head.bias'), 'missing head.bias'),
            (without('classification_head.weight'), 'missing classification_head.weight'),
            ({**good, 'module.model_q.extra': torch.zeros(1)}, 'left over extra'),
            ({**good, 'module.model_q.decoder.4.bias': torch.zeros(9)}, 'should not be there: decoder.4.bias'),
            ({'backbone.model.bn1.weight': torch.zeros(1)}, "none of its keys starts with 'module.model_q.'")):
        torch.save({'model': content}, path)
        line = fails(changes)
        assert line.startswith(f'{path}: ') and words in line
    torch.save({'model': without('classification_head.weight')}, path)  # a network that was made without it
    arguments = {**changes, 'model_kwargs': {'use_classification_head': False}, 'num_workers': 0}
    assert 'train_db_kwargs.batch_size is 13' in fails({**arguments, 'train_db_kwargs.batch_size': 13})
    assert 'do not fit this network: missing backbone.' in fails({**arguments, **RESNET})


@pytest.mark.slow
def test_a_new_pretraining_is_not_mixed_with_an_old_classifier(experiment, pretrained, tmp_path, user_error):
    path, folder = shutil.copy(pretrained, tmp_path / 'weights.pth'), tmp_path / 'output' / 'small'
    arguments = experiment({'pretraining': str(path), 'epochs': 1}, base=LINEAR)
    main(arguments)
    before = (folder / 'checkpoint.pth.tar').read_bytes()
    content = torch.load(path)
    content['model']['module.model_q.backbone.model.bn1.weight'][0] += 1
    torch.save(content, path)
    line = user_error(lambda: main(arguments))
    assert f'{path} does not hold the weights that {folder / "checkpoint.pth.tar"} was trained from' in line
    path.unlink()
    main(arguments)  # not needed any more
    assert (folder / 'checkpoint.pth.tar').read_bytes() == before
    shutil.copy(pretrained, path)
    main([*arguments, '--fresh'])
    assert (folder.parent / 'small.old-1' / 'checkpoint.pth.tar').read_bytes() == before


@pytest.mark.slow
def test_another_configuration_is_refused(experiment, pretrained, tmp_path, user_error):
    base = {'pretraining': str(pretrained), 'epochs': 1}
    main(experiment(base, base=LINEAR))
    other = experiment({**base, 'epochs': 2, 'optimizer_kwargs.lr': 0.01}, base=LINEAR)
    line = user_error(lambda: main(other))
    assert 'epochs, optimizer_kwargs.lr differ from the run that wrote' in line and '--override' in line
    main([*other, '--override'])
    state = torch.load(tmp_path / 'output' / 'small' / 'checkpoint.pth.tar', weights_only=True)
    assert state['epoch'] == 2 and state['optimizer']['param_groups'][0]['lr'] == pytest.approx(0.001)


def test_checkpoint_of_another_script(fails, pretrained, tmp_path):
    path = tmp_path / 'output' / 'small' / 'checkpoint.pth.tar'
    path.parent.mkdir(parents=True)
    for content, words in (({'model': {}, 'epoch': 'one'}, 'not a checkpoint of a training run'),
                           ({'model': torch.load(pretrained)['model'], 'optimizer': {}, 'epoch': 0}, 'do not fit')):
        torch.save(content, path)
        before = path.read_bytes()
        line = fails()
        assert line.startswith(f'{path}: ') and words in line and path.read_bytes() == before


def test_impossible_settings(fails, own_root, tmp_path):
    assert 'needs the linear network: remove kmeans_eval: True' in fails({'kmeans_eval': True})
    assert "nearest: 'backbone'" in fails({'freeze_batchnorm': 'backbones'})
    assert "the key 'pretraining' is missing" in fails({'pretraining': ...})
    assert 'sets/trainval.txt could not be read' in fails({'train_db_kwargs.split': 'trainval'})
    shutil.copytree(own_root / 'Shapes', own_root / 'Other')
    (own_root / 'Other' / 'classes.txt').write_text('background\nthing\n')
    assert 'Shapes and Other do not have the same classes' in fails({'val_db_name': 'Other'}, db_root=own_root)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_data(fails, own_root, workers):
    folder, changes = own_root / 'Shapes', {'num_workers': workers}
    image, labels = folder / 'images' / 'val_0003.jpg', folder / 'SegmentationClassAug' / 'train_0001.png'
    content = image.read_bytes()
    image.write_bytes(content[:200])
    assert fails(changes, db_root=own_root).startswith(f'{image} is not a complete image')
    image.write_bytes(content)
    shutil.rmtree(folder.parents[1] / 'output')
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(labels)
    assert fails(changes, db_root=own_root).startswith(f'{labels}: label 9 in its labels, but there are only 9 classes')
    shutil.copy(folder / 'SegmentationClassAug' / 'train_0002.png', labels)
    labels = folder / 'SegmentationClass' / 'val_0004.png'
    Image.fromarray(np.full((64, 64), 254, np.uint8)).save(labels)
    assert fails(changes, db_root=own_root).startswith(f'{labels}: label 254 in its labels')


@pytest.mark.slow
def test_validation_images_without_a_valid_pixel(fails, own_root):
    for path in (own_root / 'Shapes' / 'SegmentationClass').glob('val_*.png'):
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    assert 'no labelled pixel in val' in fails(db_root=own_root)


def test_predictions_below_a_file(fails, tmp_path):
    folder = tmp_path / 'output' / 'small'
    folder.mkdir(parents=True)
    (folder / 'predictions').write_text('a file')
    assert fails().startswith(f'the folder {folder / "predictions"} could not be made')
    assert (folder / 'predictions').read_text() == 'a file'
    shutil.rmtree(tmp_path / 'output')
    (tmp_path / 'output').write_text('a file')
    assert fails().startswith(f'the folder {folder} could not be made')


def test_a_loss_that_is_not_finite(fails, tmp_path):
    line = fails({'optimizer_kwargs.lr': '1e38', 'epochs': 2})
    assert 'lower optimizer_kwargs.lr' in line and 'epoch' in line
    assert not (tmp_path / 'output' / 'small' / 'best_model.pth.tar').exists()
