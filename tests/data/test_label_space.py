"""What a data set says of its labels is believed by reading, training, evaluation and pictures."""
import json
import shutil

import numpy as np
import pytest
import yaml
from helpers.checks import refusal
from helpers.experiments import KMEANS, LINEAR, TOYS_RETRIEVAL
from PIL import Image

import kmeans
import linear_finetune
import retrieval
from data.check import main as check
from data.dataset import SegmentationDataset
from data.label_space import VOID, LabelSpace, label_space
from data.palette import VOC_COLOURS
from evaluation.clustering import score
from evaluation.metrics import class_iou, match_clusters, remap_to_classes
from evaluation.training_views import View, render
from evaluation.visualization.pictures import overlay


@pytest.fixture
def described(tmp_path, shapes_root):
    """described(content, change) copies Shapes, gives it a dataset.yml, and changes every stored label by a function."""
    def make(content, change=lambda labels: labels):
        folder = tmp_path / 'datasets' / 'Shapes'
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(shapes_root / 'Shapes', folder)
        (folder / 'dataset.yml').write_text(yaml.safe_dump(content))
        for path in folder.glob('SegmentationClass*/*.png'):
            Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)
        return folder
    return make


def read(folder, split='val'):
    dataset = SegmentationDataset(folder, split, labels=True)
    return [dataset[index]['labels'] for index in range(len(dataset))]


def test_defaults_are_those_of_pascal_voc(tmp_path):
    folder = tmp_path / 'VOCSegmentation'
    folder.mkdir()
    space = label_space(folder)
    assert len(space) == 21 and space.background == space.outside == 0 and space.objects == list(range(1, 21))
    assert np.array_equal(space.lookup, np.arange(256)) and np.array_equal(space.colours, VOC_COLOURS)


def test_offset_void_and_background_say_the_same_in_other_files(described, shapes_root):
    """Labels that begin at 1, with 0 as void; void stored as another value; a background that is not the first class."""
    want = read(shapes_root / 'Shapes')
    folder = described({'reduce_zero_label': True}, lambda labels: np.where(labels == VOID, 0, labels + 1))
    assert all(np.array_equal(a, b) for a, b in zip(read(folder), want, strict=True))
    folder = described({'void': [200, 255]}, lambda labels: np.where(labels == VOID, 200, labels))
    assert all(np.array_equal(a, b) for a, b in zip(read(folder), want, strict=True))
    names = label_space(shapes_root / 'Shapes').names
    folder = described({'classes': [*names[1:], names[0]], 'background': names[0]},
                       lambda labels: np.where(labels == VOID, VOID, (labels.astype(int) - 1) % len(names)))
    space = label_space(folder)
    assert space.background == len(names) - 1 and space.objects == list(range(len(names) - 1))
    moved = np.append((np.arange(VOID) - 1) % len(names), VOID)
    assert all(np.array_equal(a, moved[b]) for a, b in zip(read(folder), want, strict=True))


def results(tmp_path, name):
    return json.loads((tmp_path / 'output' / name / 'results.json').read_text())


@pytest.mark.slow
def test_scores_do_not_depend_on_how_the_labels_are_stored(described, experiment, shapes_root, tmp_path):
    """The same images and labels, with the background last and void stored as 200, score the same."""
    names = label_space(shapes_root / 'Shapes').names
    folder = described({'classes': [*names[1:], names[0]], 'background': names[0], 'void': 200},
                       lambda labels: np.where(labels == VOID, 200, (labels.astype(int) - 1) % len(names)))
    masks = {'val_db_kwargs': {'batch_size': 5, 'split': 'trainaug', 'saliency': 'supervised_model'}, 'val_db_name': 'Shapes',
             'pretraining': None, 'model_kwargs': {'ndim': 8}}
    database = {**masks, 'train_db_name': 'Shapes',
                'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': 'supervised_model'}}
    for root, name in ((shapes_root, 'plain'), (folder.parent, 'moved')):
        n = {'kmeans_kwargs.n_clusters': len(names)}
        kmeans.main([*experiment({**masks, **n}, f'kmeans_{name}', root, KMEANS), '--num_seeds', '1', '--metrics'])
        retrieval.main(experiment(database, f'retrieval_{name}', root, TOYS_RETRIEVAL))
    for script in ('kmeans', 'retrieval'):
        plain, moved = (results(tmp_path, f'{script}_{name}') for name in ('plain', 'moved'))
        assert plain['IoU'] == pytest.approx(moved['IoU'], abs=1e-9) and len(plain['IoU']) == len(names)
    assert all(results(tmp_path, 'kmeans_plain')[name] == pytest.approx(results(tmp_path, 'kmeans_moved')[name])
               for name in ('Accuracy', 'NMI', 'ARI'))


@pytest.mark.slow
def test_without_a_background_class(described, experiment, tmp_path):
    """Outside the masks nothing is predicted: these pixels are missed, and no class is matched with them."""
    folder = described({'background': None})
    given = {'val_db_kwargs': {'batch_size': 5, 'split': 'trainaug', 'saliency': 'supervised_model'}, 'kmeans_kwargs': {}}
    kmeans.main([*experiment(given, 'kmeans', folder.parent, KMEANS), '--num_seeds', '1'])
    found = results(tmp_path, 'kmeans')
    assert found['n_clusters'] == len(label_space(folder)) + 1 and found['IoU']['background'] < 50
    predictions = [np.array(Image.open(path)) for path in (tmp_path / 'output' / 'kmeans' / 'predictions').glob('*.png')]
    assert all((prediction == VOID).any() for prediction in predictions)
    database = {'val_db_kwargs': given['val_db_kwargs'], 'val_db_name': 'Shapes', 'pretraining': None,
                'train_db_name': 'Shapes', 'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': 'supervised_model'}}
    retrieval.main(experiment(database, 'retrieval', folder.parent, TOYS_RETRIEVAL))
    assert len(results(tmp_path, 'retrieval')['IoU']) == len(label_space(folder))
    linear_finetune.main(experiment({'pretraining': None, 'epochs': 1}, 'linear', folder.parent, LINEAR))
    assert len(results(tmp_path, 'linear')['IoU']) == len(label_space(folder))


def test_a_tab_in_a_name(tmp_path):
    (tmp_path / 'classes.txt').write_text('background\npotted\tplant\n')
    assert label_space(tmp_path).names == ('background', 'potted\tplant')


def test_matching_without_background_by_hand():
    """Id 0 is outside: 7 pixels of class 0 and 3 of class 1 are missed. Ids 1 and 2 are classes 1 and 0."""
    confusion = np.array([[7, 3], [1, 6], [9, 0]])
    classes_of = match_clusters(confusion, has_background=False)
    assert classes_of.tolist() == [VOID, 1, 0]
    remapped = remap_to_classes(confusion, classes_of)
    assert remapped.tolist() == [[9, 0], [1, 6], [7, 3]]
    assert class_iou(remapped) == pytest.approx([9 / 17, 6 / 10])
    histograms = np.array([[[7, 3], [1, 6]], [[0, 0], [9, 0]]])
    assert score(histograms, np.array([0, 1]), 3, has_background=False).prediction(
        0, np.array([[0, 1]], np.uint8)).tolist() == [[VOID, 1]]


def test_what_a_turned_image_uncovers_is_outside():
    labels = np.ones((20, 20), np.uint8)
    for outside in (0, 3, VOID):
        _, found = render(np.dstack([labels] * 3), labels, View(False, 5, 0.75), (20, 20), outside)
        assert set(np.unique(found)) == {1, outside}


def test_pictures_have_the_colours_and_leave_what_is_no_object_clear(described):
    space = label_space(described({'background': None, 'colours': {'disc': [1, 2, 3]}}))
    disc = space.names.index('disc')
    assert space.colours[disc].tolist() == [1, 2, 3] and np.array_equal(space.colours[0], VOC_COLOURS[0])
    labels = np.array([[0, disc, VOID]], np.uint8)
    image = np.full((1, 3, 3), 200, np.uint8)
    shown = overlay(image, labels, space)
    assert shown[0, 1].tolist() == [81, 81, 82] and shown[0, 2].tolist() == [200] * 3 and shown[0, 0].tolist() == [80] * 3
    assert overlay(image, labels, LabelSpace(space.names))[0, 0].tolist() == [200] * 3


@pytest.mark.parametrize('content, words', [
    ({'backgroud': None}, "unknown key 'backgroud' (nearest valid key: 'background')"),
    ({'background': 'backgroun'}, "no class is called 'backgroun' (nearest: 'background'"),
    ({'void': 300}, 'void must be a stored value from 0 to 255'), ({'void': [True]}, 'void must be a stored value'),
    ({'classes': ['a', 'a']}, 'different classes'), ({'classes': 'a'}, 'classes must be a list of names'),
    ({'classes': ['a', 'b\x07']}, 'has characters that cannot be shown'),
    ({'reduce_zero_label': 1}, 'reduce_zero_label must be True or False'),
    ({'colours': {'dics': [1, 2, 3]}}, "nearest: 'disc'"), ({'colours': {'disc': [1, 2]}}, 'must be [red, green, blue]'),
    ({'colours': [[1, 2, 3]]}, 'must map names'), (['a'], 'expected a YAML mapping')])
def test_mistakes_name_file_and_key(described, content, words):
    folder = described(content)
    message = refusal(label_space, folder)
    assert message.startswith(str(folder / 'dataset.yml')) and words in message


def test_the_check_of_data_asks_the_data_set(described, experiment, capsys):
    folder = described({'reduce_zero_label': True}, lambda labels: np.where(labels == VOID, 0, labels + 1))
    arguments = experiment({'pretraining': None}, 'linear', folder.parent, LINEAR)[:4]
    check(arguments)
    assert 'Problems: 0' in capsys.readouterr().out
    (folder / 'dataset.yml').unlink()
    with pytest.raises(SystemExit):
        check(arguments)
    assert f'label {len(label_space(folder))} in its labels' in capsys.readouterr().out
