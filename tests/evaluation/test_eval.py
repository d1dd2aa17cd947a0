"""`eval.py` end to end: the same score as the training's last, pictures, folders of images, and its errors."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import warm
from helpers.experiments import LINEAR, RESNET, SMALL
from PIL import Image

import eval as evaluation_script
import linear_finetune
from data.palette import VOC_COLOURS
from models.factory import get_model

ROOT = Path(__file__).resolve().parents[2]
IDS = [f'val_{index:04d}' for index in range(6)]


@pytest.fixture(scope='module')
def trained(tmp_path_factory, shapes_root, pretrained):
    """Folder of a finished linear_finetune.py with CRF, whose classifier has learnt something; beside it `plain`, without."""
    root = tmp_path_factory.mktemp('trained')
    (root / 'env.yml').write_text(yaml.safe_dump({'root_dir': str(root / 'output'), 'db_root': str(shapes_root)}))
    (root / 'small.yml').write_text(yaml.safe_dump({
        **LINEAR, 'pretraining': str(pretrained), 'epochs': 10, 'optimizer': 'adam', 'optimizer_kwargs': {'lr': 0.1},
        'scheduler': 'constant'}))
    arguments = ['--config_env', str(root / 'env.yml'), '--config_exp', str(root / 'small.yml'), '--device', 'cpu']
    linear_finetune.main(arguments)
    shutil.copytree(root / 'output' / 'small', root / 'output' / 'plain')
    linear_finetune.main([*arguments, '--crf-postprocess'])  # the final evaluation alone
    return root / 'output' / 'small'


@pytest.fixture
def evaluate(experiment, trained, tmp_path):
    """evaluate(flags, changes, ...) runs eval.py on the best model and returns the folder of its results."""
    def run(*flags, changes=None, weights=trained / 'best_model.pth.tar', **named):
        arguments = experiment({'pretraining': '/nowhere/to/be/found', **(changes or {})}, base=LINEAR, **named)
        evaluation_script.main([*arguments, '--state-dict', str(weights), *flags])
        return tmp_path / 'output' / 'small' / 'eval' / (Path(weights).name + '_crf' * ('--crf-postprocess' in flags))
    return run


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.mark.slow
def test_same_score_as_the_final_line_of_the_training(evaluate, trained, capsys):
    refined = evaluate('--crf-postprocess')
    printed = capsys.readouterr().out.splitlines()
    plain = evaluate()
    final, final_plain = results_of(trained), results_of(trained.parent / 'plain')
    assert final['crf'] is True and final['mIoU'] > 10 and final_plain['crf'] is False
    assert results_of(refined)['mIoU'] == final['mIoU'] and results_of(refined)['IoU'] == final['IoU']
    assert results_of(plain)['mIoU'] == final_plain['mIoU'] and results_of(plain)['IoU'] == final_plain['IoU']
    assert final['IoU'] != final_plain['IoU']
    assert results_of(refined) | {'script': 'eval.py', 'crf': True} == results_of(refined)
    assert printed[-10] == f'mIoU is {final["mIoU"]:.2f}' and printed[-1].startswith('IoU class capsule is ')
    assert plain.name == 'best_model.pth.tar' and refined.name == 'best_model.pth.tar_crf'
    for name in IDS:
        one, other = (np.array(Image.open(folder / 'predictions' / f'{name}.png')) for folder in (refined, trained))
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_both_formats_of_weights(evaluate, trained):
    state = torch.load(trained / 'checkpoint.pth.tar', weights_only=True)
    torch.save(state['model'], trained / 'last.pth')
    as_checkpoint, as_state_dict = (results_of(evaluate('--num_visualizations', '0', weights=trained / name))
                                    for name in ('checkpoint.pth.tar', 'last.pth'))
    assert as_checkpoint['IoU'] == as_state_dict['IoU'] and as_state_dict['weights'] == str(trained / 'last.pth')


@pytest.mark.slow
def test_pictures(evaluate, shapes_root):
    folder = evaluate()
    assert {path.stem for path in (folder / 'visualization').iterdir()} == set(IDS)
    for name in IDS:
        image = np.asarray(Image.open(shapes_root / 'Shapes' / 'images' / f'{name}.jpg'))
        labels = np.asarray(Image.open(shapes_root / 'Shapes' / 'SegmentationClass' / f'{name}.png'))
        written = Image.open(folder / 'predictions' / f'{name}.png')
        prediction = np.array(written)
        assert written.mode == 'P' and written.getpalette() == VOC_COLOURS.ravel().tolist()
        assert prediction.shape == labels.shape
        height, width = labels.shape
        picture = np.asarray(Image.open(folder / 'visualization' / f'{name}.png'))
        assert picture.shape[1] == 3 * width + 8 and picture.shape[0] > height  # with a legend below
        assert np.array_equal(picture[:height, :width], image)
        for number, shown in enumerate((labels, prediction), start=1):
            part = picture[:height, number * (width + 4):][:, :width]
            clear = (shown == 0) | (shown == 255)
            assert np.array_equal(part[clear], image[clear])
            expected = 0.4 * image + 0.6 * VOC_COLOURS[shown]
            assert np.abs(part[~clear] - expected[~clear]).max(initial=0) <= 1
        legend = picture[height:].reshape(-1, 3)
        present = set(np.unique(np.concatenate([labels.ravel(), prediction.ravel()])).tolist()) - {0, 255}
        for index in range(1, 9):
            box = (legend == VOC_COLOURS[index]).all(1).sum() >= 100  # more than anti-aliased text has
            assert box == (index in present)
    assert np.asarray(Image.open(folder / 'contact_sheet.png')).std() > 10
    shutil.rmtree(folder)
    folder = evaluate('--num_visualizations', '2')
    assert {path.stem for path in (folder / 'visualization').iterdir()} == set(IDS[:2])
    assert len(list((folder / 'predictions').iterdir())) == 6
    shutil.rmtree(folder)
    folder = evaluate('--num_visualizations', '0')
    assert not (folder / 'visualization').exists() and not (folder / 'contact_sheet.png').exists()


@pytest.mark.slow
def test_a_folder_of_images_without_labels(evaluate, shapes_root, tmp_path):
    folder = tmp_path / 'my photographs'
    folder.mkdir()
    for number, name in enumerate(IDS[:3]):
        shutil.copy(shapes_root / 'Shapes' / 'images' / f'{name}.jpg', folder / f'photo {number}.jpg')
    Image.open(folder / 'photo 2.jpg').save(folder / 'drawing.PNG')
    (folder / 'notes.txt').write_text('no image')
    want = evaluate('--crf-postprocess')
    predictions = [np.array(Image.open(want / 'predictions' / f'{name}.png')) for name in IDS[:3]]
    found = evaluate('--crf-postprocess', '--images', str(folder))
    aside = found.with_name(f'{found.name}.old-1')  # the evaluation of the val split
    with pytest.raises(SystemExit):
        evaluate('--crf-postprocess', '--images', str(folder / 'notes.txt'))  # moves nothing
    other = tmp_path / 'other' / 'best_model.pth.tar'
    other.parent.mkdir()
    torch.save(get_model({**SMALL, 'num_classes': 3}).state_dict(), other)
    with pytest.raises(SystemExit):
        evaluate('--crf-postprocess', weights=other)  # nor does a model that does not fit
    assert (found / 'contact_sheet.png').is_file() and not list(found.parent.glob('*.old-2'))
    assert found == want and (aside / 'results.json').is_file() and len(list((aside / 'predictions').iterdir())) == 6
    evaluate('--crf-postprocess', '--images', str(folder))
    assert {path.name for path in found.parent.iterdir()} == {found.name, aside.name}
    assert {path.name for path in (found / 'predictions').iterdir()} == {
        'photo 0.png', 'photo 1.png', 'photo 2.png', 'drawing.png'}
    for number, prediction in enumerate(predictions):
        assert np.array_equal(np.array(Image.open(found / 'predictions' / f'photo {number}.png')), prediction)
    height, width = predictions[0].shape
    picture = np.asarray(Image.open(found / 'visualization' / 'photo 0.png'))
    assert picture.shape[1] == 2 * width + 4 and (found / 'contact_sheet.png').is_file()  # no ground truth
    assert results_of(found).keys() == {'script', 'weights', 'crf'}


@pytest.mark.slow
def test_class_names_of_voc_need_no_download(evaluate, shapes_root, tmp_path):
    torch.save(get_model(SMALL).state_dict(), tmp_path / 'voc.pth')
    found = evaluate('--images', str(shapes_root / 'Shapes' / 'images'), '--num_visualizations', '1',
                     changes={'val_db_name': 'VOCSegmentation'}, weights=tmp_path / 'voc.pth', db_root=tmp_path / 'empty')
    assert len(list((found / 'predictions').iterdir())) == 18 and not (tmp_path / 'empty').exists()


@pytest.mark.slow
def test_copied_out_alone_as_a_process(experiment, trained, tmp_path):
    tree = shutil.copytree(ROOT / 'segmentation', tmp_path / 'segmentation', ignore=shutil.ignore_patterns('__pycache__'))
    arguments = experiment({'epochs': ..., 'optimizer_kwargs': ..., 'scheduler': ..., 'train_db_name': ...}, base=LINEAR)
    weights = trained / 'best_model.pth.tar'
    done = warm.run(tree / 'eval.py', *arguments, '--state-dict', weights, '--crf-postprocess', out=tmp_path / 'out',
                    err=tmp_path / 'err')
    assert done.returncode == 0 and not done.errors(), done.errors()
    found = results_of(tmp_path / 'output' / 'small' / 'eval' / 'best_model.pth.tar_crf')
    assert f'mIoU is {found["mIoU"]:.2f}' in done.printed().splitlines()
    assert found['IoU'] == results_of(trained)['IoU']


# Errors


@pytest.fixture
def fails(evaluate, user_error, tmp_path):
    """fails(...) runs eval.py, which must fail and leave an earlier result alone, and returns the message."""
    def run(*flags, weights=None, **named):
        output = tmp_path / 'output' / 'small' / 'eval' / ((weights.name if weights else 'best_model.pth.tar')
                                                           + '_crf' * ('--crf-postprocess' in flags))
        if output.parents[1].is_dir():
            output.mkdir(parents=True, exist_ok=True)
            (output / 'results.json').write_text('previous')
        line = user_error(lambda: evaluate(*flags, **named, **({'weights': weights} if weights else {})))
        assert not output.is_dir() or not (output / 'results.json').exists() or (
            output / 'results.json').read_text() == 'previous'
        return line.removeprefix('error: ')
    return run


@pytest.mark.slow
def test_weights_that_do_not_fit(fails, trained, pretrained, tmp_path):
    path, trace = tmp_path / 'weights.pth', tmp_path / 'code-was-run'
    assert fails(weights=path) == f'--state-dict names {path}, which does not exist'
    path.write_bytes((trained / 'best_model.pth.tar').read_bytes()[:10 ** 5])
    assert fails(weights=path).startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    hostile = type('Hostile', (), {'__reduce__': lambda _: (Path.touch, (trace,))})()
    good = torch.load(trained / 'best_model.pth.tar')
    for content, words in (
            ({'model': hostile}, 'refused, since loading it would run code'),
            (torch.load(pretrained), 'a pre-training checkpoint has no classifier: train one with linear_finetune.py first'),
            (get_model({**SMALL, 'num_classes': 4}).state_dict(),
             'its classifier has 5 classes, but the data set Shapes has 9'),
            (get_model({**RESNET, 'num_classes': 8}).state_dict(), 'do not fit this network: missing backbone.'),
            ({key: value for key, value in good.items() if key != 'decoder.4.bias'}, 'missing decoder.4.bias'),
            ({**good, 'head.bias': torch.zeros(8)}, 'left over head.bias'),
            ([1, 2], 'not a weights file')):
        torch.save(content, path)
        line = fails(weights=path)
        assert line.startswith(f'{path}: ') and words in line
    assert not trace.exists()
    assert 'do not fit this network: missing backbone.' in fails(changes=RESNET)


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--crf-postprocess']])
def test_folders_that_can_not_be_made(fails, tmp_path, flags):
    (tmp_path / 'output').write_text('a file')
    assert 'could not be made (Not a directory)' in fails(*flags)
    (tmp_path / 'output').unlink()
    folder = tmp_path / 'output' / 'small' / 'eval' / ('best_model.pth.tar' + '_crf' * len(flags))
    folder.mkdir(parents=True)
    (folder / 'predictions').write_text('a file')
    assert fails(*flags).startswith(f'the folder {folder / "predictions"} could not be made, since a file has this name')
    assert (folder / 'predictions').read_text() == 'a file'


@pytest.mark.slow
@pytest.mark.parametrize('flags, workers', [([], 0), ([], 2), (['--crf-postprocess'], 2)])
def test_an_unreadable_image_among_many(fails, shapes_root, tmp_path, flags, workers):
    folder = shutil.copytree(shapes_root, tmp_path / 'own') / 'Shapes'
    image = folder / 'images' / f'{IDS[4]}.jpg'
    content = image.read_bytes()
    image.write_bytes(content[:len(content) // 2])
    changes = {'num_workers': workers, 'val_db_kwargs.batch_size': 2}
    assert fails(*flags, changes=changes, db_root=folder.parent).startswith(f'{image} is not a complete image')
    assert fails(*flags, '--images', str(folder / 'images'), changes=changes).startswith(f'{image} is not a complete image')
    image.write_bytes(content)
    labels = folder / 'SegmentationClass' / f'{IDS[5]}.png'
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(labels)
    line = fails(*flags, changes=changes, db_root=folder.parent)
    assert line.startswith(f'{labels}: label 77 in its labels, but there are only 9 classes')


@pytest.mark.slow
def test_a_split_without_labels(evaluate, shapes_root, tmp_path, capsys):
    folder = tmp_path / 'datasets' / 'Shapes'
    shutil.copytree(shapes_root / 'Shapes', folder, ignore=shutil.ignore_patterns('SegmentationClass*'))
    want, scored = evaluate(), capsys.readouterr().out
    predictions = [np.array(Image.open(want / 'predictions' / f'{name}.png')) for name in IDS]
    found = evaluate(db_root=folder.parent)
    assert 'mIoU is' in scored and 'mIoU' not in capsys.readouterr().out
    assert results_of(found).keys() == {'script', 'weights', 'crf'} and results_of(found)['script'] == 'eval.py'
    for name, prediction in zip(IDS, predictions, strict=True):
        assert np.array_equal(np.array(Image.open(found / 'predictions' / f'{name}.png')), prediction)
    ids = (folder / 'sets' / 'trainaug.txt').read_text().split()
    found = evaluate(db_root=folder.parent, changes={'val_db_kwargs.split': 'trainaug'})
    assert {path.stem for path in (found / 'predictions').iterdir()} == set(ids)


@pytest.mark.slow
def test_other_mistakes(fails, shapes_root, tmp_path):
    for images in (tmp_path / 'none', shapes_root / 'Shapes' / 'classes.txt'):
        assert fails('--images', str(images)).startswith(f'{images} is not a folder of images')
    assert 'an empty name is not a folder of images' in fails('--images', '')
    assert fails(weights=tmp_path) == f'--state-dict names {tmp_path}, which is not a file'
    (tmp_path / 'none').mkdir()
    assert fails('--images', str(tmp_path / 'none')).startswith(f'{tmp_path / "none"}: no images in this folder')
    assert '--num_visualizations: must be an integer of at least 0, not -1' in fails('--num_visualizations', '-1')
    assert 'needs the linear network' in fails(changes={'kmeans_eval': True})
    assert '--state-dict' in fails('--state-dict')
