"""`retrieval.py` end to end against the plainest way there: every pixel of every image, one at a time.

Prototypes are compared with plain ones to rounding; neighbours are looked up with the product's own, and all that follows
must be equal.
"""
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.experiments import TOYS_RETRIEVAL
from helpers.plain_retrieval import NAMES, plain_class, plain_scores
from helpers.toys import EMPTY, IDS, RESOLUTION, plain_embedding
from PIL import Image

from data.dataset import SegmentationDataset
from data.label_space import LabelSpace
from data.loaders import make_loader
from evaluation.evaluation_images import EvaluationImages
from evaluation.extraction import extract_prototypes
from evaluation.retrieval import mask_classes, nearest_neighbours
from evaluation.visualization.neighbours import FRAME, QUERY, RIGHT, SIDE, WRONG, neighbour_picture
from evaluation.visualization.pictures import side_by_side, with_legend
from retrieval import main


@pytest.fixture
def run(experiment, toys, toy_checkpoint, tmp_path):
    """run(changes, flags, ...) runs main and returns the content of results.json."""
    def call(changes=None, flags=(), name='small', root=toys):
        main([*experiment({'pretraining': str(toy_checkpoint), **(changes or {})}, name, root, TOYS_RETRIEVAL), *flags])
        return json.loads((tmp_path / 'output' / name / 'results.json').read_text())
    return call


def product_embedding(network, root, split, saliency=None, ignored=()):
    dataset = SegmentationDataset(root / 'Toys', split, saliency, labels=True, ignored=ignored)
    loader = make_loader(EvaluationImages(dataset, RESOLUTION, 10), 0, torch.device('cpu'), batch_size=5)
    network = network.to(memory_format=torch.channels_last)
    return extract_prototypes(network, loader, torch.device('cpu'), 'none', 10, at_resolution=True)


@pytest.mark.slow
@pytest.mark.parametrize('split, ignored, saliency', [
    ('trainaug', [], None), ('train', ['disc', 'ring', 'unicorn'], 'supervised_model')])
def test_results_equal_the_plain_way(run, toys, toy_network, toy_checkpoint, capsys, split, ignored, saliency):
    folder = toys / 'Toys'
    results = run({'retrieval_kwargs': {'train_split': split, 'ignore_classes': ignored, 'saliency': saliency},
                   'val_db_kwargs.saliency': saliency}, ['--num_visualizations', '0'])
    printed = capsys.readouterr().out.splitlines()
    indices = [NAMES.index(name) for name in ignored]
    mask_folder = saliency and f'saliency_{saliency}'
    ids = (folder / 'sets' / f'{split}.txt').read_text().split()
    labels_folder = 'SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass'
    database = plain_embedding(toy_network, folder, mask_folder, ids, labels_folder, at_resolution=True, ignored=indices)
    queries = plain_embedding(toy_network, folder, mask_folder, at_resolution=True, ignored=indices)
    found = {name: product_embedding(toy_network, toys, name, saliency, indices) for name in (split, 'val')}
    for name, plain in ((split, database), ('val', queries)):
        assert np.abs(found[name].prototypes - np.stack([prototype for prototype, _, _ in plain])).max() < 1e-4
    assert not found['val'].prototypes[IDS.index(EMPTY)].any()
    kept = [c for c in range(10) if c not in indices and (c or not ignored)]
    iou, given = plain_scores(database, queries, found[split].prototypes, found['val'].prototypes, kept)
    assert len(set(given)) > 2 and max(iou) > 1
    assert list(results['IoU']) == [NAMES[c] for c in kept] and np.allclose(list(results['IoU'].values()), iou, atol=1e-9)
    assert results['mIoU'] == pytest.approx(np.mean(iou), abs=1e-9)
    assert results['script'] == 'retrieval.py' and results['weights'] == str(toy_checkpoint) and results['crf'] is False
    assert results['train_split'] == split and set(results['ignore_classes']) == set(ignored)
    assert results['database_segments'] == sum(plain_class(mask, labels) > 0 for _, mask, labels in database)
    assert printed[-len(kept) - 1] == f'mIoU is {np.mean(iou):.2f}'
    assert printed[-1] == f'IoU class unicorn is {iou[-1]:.2f}' or 'unicorn' in ignored


@pytest.mark.slow
def test_workers_and_batches_make_no_difference_and_pictures(run, tmp_path):
    want = run(flags=['--num_visualizations', '3'])
    folder = tmp_path / 'output' / 'small'
    assert {path.stem for path in (folder / 'visualization').iterdir()} == set(IDS[:3])
    for path in (folder / 'visualization').iterdir():
        picture = np.asarray(Image.open(path))
        assert picture.shape[1] == 6 * (SIDE + 2 * FRAME) + 5 * 4 and (picture[0, 40] == QUERY).all()
    assert (folder / 'contact_sheet.png').is_file()
    assert run({'num_workers': 2, 'model_kwargs.upsample': False}, name='other') == want
    assert len(list((tmp_path / 'output' / 'other' / 'visualization').iterdir())) == len(IDS)


# Parts


def test_class_of_a_mask():
    histograms = np.zeros((6, 2, 5), np.int64)
    histograms[0, 1] = [900, 3, 0, 7, 2]     # background doesn't count
    histograms[1, 1] = [0, 4, 0, 4, 1]       # a tie: the higher id
    histograms[2, 1] = [50, 0, 0, 0, 0]      # no object inside
    histograms[3, 0] = [1, 9, 9, 9, 9]       # an empty mask
    histograms[4, 1] = [0, 2, 2, 2, 2]
    histograms[5, 1] = [0, 1, 0, 0, 0]
    assert mask_classes(histograms, 0).tolist() == [3, 3, -1, -1, 4, 1]
    assert mask_classes(histograms, None).tolist() == [0, 3, 0, -1, 4, 1]  # without a background class all count


def test_nearest_are_those_of_a_sort_with_ties_in_order():
    rng = np.random.default_rng(0)
    database = rng.normal(size=(300, 7)).astype(np.float32)
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    database[[5, 40, 299]] = database[17]  # four equal ones
    queries = np.concatenate([database[[17, 3]], rng.normal(size=(600, 7)).astype(np.float32), np.zeros((1, 7), np.float32)])
    found = nearest_neighbours(queries, database, 6)
    for query, indices in zip(queries, found, strict=True):
        products = [np.float32(np.dot(query.astype(float), row.astype(float))) for row in database]
        assert sorted(range(300), key=lambda i: (-products[i], i))[:6] == indices.tolist()
    assert found[0, :4].tolist() == [5, 17, 40, 299] and found[-1].tolist() == [0, 1, 2, 3, 4, 5]
    assert nearest_neighbours(queries[:2], database[:3], 6).shape == (2, 3)


def test_frames_tell_right_from_wrong():
    image, mask = np.full((60, 90, 3), 200, np.uint8), np.zeros((30, 30), np.uint8)
    mask[10:20, 10:20] = 1
    space = LabelSpace(tuple(NAMES))
    picture = neighbour_picture((image, mask, 2), [(image, mask, 2), (image, mask, 3), (image, mask, -1)], space)
    side = SIDE + 2 * FRAME
    frames = [picture[40, number * (side + 4)] for number in range(4)]
    assert [tuple(frame) for frame in frames] == [QUERY, RIGHT, WRONG, WRONG]
    notches = [(picture[FRAME + 2, number * (side + 4) + FRAME + 2] == frame).all() for number, frame in enumerate(frames)]
    assert notches == [False, False, True, True]
    nothing = neighbour_picture((image, mask, -1), [(image, mask, 1)], space)  # a query without an object has no right ones
    assert tuple(nothing[40, side + 4]) == WRONG


def test_names_are_shown_in_letters_of_their_own():
    image, labels = np.full((60, 90, 3), 200, np.uint8), np.ones((60, 90), np.uint8)
    legends = set()
    for name in ('è', 'e', 'ж', '犬', '?'):
        space = LabelSpace(('background', name))
        legends.add(with_legend(side_by_side(image, space, labels), ['image', 'prediction'], space, labels).tobytes())
    assert len(legends) == 5


# Errors


@pytest.fixture
def fails(run, user_error, tmp_path):
    """fails(changes, ...) runs main, which must fail and leave an earlier result alone, and returns the message."""
    output = tmp_path / 'output' / 'small'
    output.mkdir(parents=True)

    def call(*arguments, **named):
        (output / 'results.json').write_text('previous')
        line = user_error(lambda: run(*arguments, **named)).removeprefix('error: ')
        assert (output / 'results.json').read_text() == 'previous'
        return line
    return call


def test_impossible_settings(fails, tmp_path):
    where = f'{tmp_path / "small.yml"}: '
    assert fails({'retrieval_kwargs.ignore_classes': ['Rings']}) == (
        f"{where}retrieval_kwargs.ignore_classes: no class is called 'Rings' (nearest: 'ring')")
    assert 'leaves no class to retrieve' in fails({'retrieval_kwargs.ignore_classes': NAMES[1:]})
    assert fails({'kmeans_eval': ...}).startswith(f'{where}retrieval.py needs kmeans_eval: True')
    assert 'retrieval_kwargs.saliency must name' in fails({'model_kwargs.use_classification_head': False,
                                                           'val_db_kwargs.saliency': 'supervised_model'})
    assert 'saliency_none: the folder is missing' in fails({'retrieval_kwargs.saliency': 'none'})
    assert 'sets/trainval.txt could not be read' in fails({'retrieval_kwargs.train_split': 'trainval'})


def test_a_database_without_any_object(fails, toys, tmp_path):
    folder = shutil.copytree(toys, tmp_path / 'own') / 'Toys'
    for path in (folder / 'SegmentationClassAug').iterdir():
        Image.fromarray(np.zeros(np.array(Image.open(path)).shape, np.uint8)).save(path)
    line = fails(root=tmp_path / 'own')
    assert line.startswith(f'{folder / "sets" / "trainaug.txt"}: no image has a labelled object of a class that counts')


def test_a_missing_mask_names_the_file(fails, toys, tmp_path):
    folder = shutil.copytree(toys, tmp_path / 'own') / 'Toys'
    path = folder / 'saliency_supervised_model' / 'train_0003.png'
    path.unlink()
    line = fails({'retrieval_kwargs.saliency': 'supervised_model', 'val_db_kwargs.saliency': 'supervised_model'},
                 root=tmp_path / 'own')
    assert line.startswith(f'{path} could not be read')
