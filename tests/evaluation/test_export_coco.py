"""export_coco.py: what pycocotools reads of its files, and data sets made of clusters, on which a classifier trains."""
import contextlib
import io
import json

import cv2
import numpy as np
import pytest
import yaml
from helpers.experiments import LINEAR
from helpers.files import save
from helpers.own import MASKS, mine, own_weights, small_features  # noqa: F401 - fixtures
from PIL import Image
from pycocotools.coco import COCO

import convert_coco
import export_coco
import linear_finetune
import own_clusters
import segment
from data.dataset import SegmentationDataset
from data.instances import write_instances
from data.label_space import label_space
from evaluation.annotations.coco import encode, objects_of, outlines_of
from evaluation.cluster_names import write_names
from evaluation.saved_clusters import SavedClusters


def read(path):
    """The file as pycocotools reads it, with the annotations of each image by its file's name."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    names = {key: entry['name'] for key, entry in coco.cats.items()}
    found = {}
    for key, entry in coco.imgs.items():
        found[entry['file_name']] = [(names[item['category_id']], coco.annToMask(item), item)
                                     for item in coco.loadAnns(coco.getAnnIds(imgIds=[key]))]
    return coco, found


def blob(rng, size=(60, 80), holes=True):
    """A ragged mask of one or more parts."""
    field = cv2.GaussianBlur(rng.random(size), (0, 0), rng.uniform(0.5, 5))
    mask = (field > np.quantile(field, rng.uniform(0.1, 0.95))).astype(np.uint8)
    return mask if holes else filled(mask)


def filled(mask):
    """Without holes: what can't be reached from outside, over edges."""
    _, outside = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
    return (outside != outside[0, 0])[1:-1, 1:-1].astype(np.uint8)


def decoded(segmentation, size):
    coco = COCO()
    coco.imgs = {1: {'height': size[0], 'width': size[1]}}
    return coco.annToMask({'image_id': 1, 'segmentation': segmentation})


@pytest.mark.parametrize('seed', range(30))
def test_a_mask_and_back(seed):
    mask = blob(np.random.default_rng(seed))
    segmentation, area, box, lost = encode(mask, True, 0)
    assert np.array_equal(decoded(segmentation, mask.shape), mask) and not lost
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corner = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    assert area == mask.sum() and box == corner
    whole = filled(mask)
    segmentation, area, box, lost = encode(mask, False, 0)
    assert np.array_equal(decoded(segmentation, mask.shape), whole) and lost == (whole.sum() > mask.sum())
    assert area == whole.sum() and box == corner
    segmentation, area, _, _ = encode(mask, False, 1)
    near = decoded(segmentation, mask.shape)
    assert (near & whole).sum() >= 0.98 * (near | whole).sum() and area == near.sum()


def test_polygons_are_short_where_edges_are_straight():
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:25] = 1
    assert sorted(map(tuple, outlines_of(mask)[0].tolist())) == [(5, 4), (5, 9), (25, 4), (25, 9)]
    circle = cv2.circle(np.zeros((200, 200), np.uint8), (100, 100), 80, 1, -1)
    points = {tolerance: len(encode(circle, False, tolerance)[0][0]) // 2 for tolerance in (0, 1, 4)}
    assert points[4] < points[1] < points[0] / 5
    assert len(encode(np.eye(3, dtype=np.uint8), False, 50)[0][0]) >= 6  # as coarse as 0.98 allows


def test_objects_of_an_image():
    labels, instances = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.int32)
    labels[:3, :2], labels[:3, 5:], labels[5] = 2, 2, 255
    labels[3, 2] = 2  # connected over a corner
    instances[:4, :3], instances[0, 5:], instances[5] = 1, 2, 3
    instances[4, 0] = 4  # of background alone, as 3 is of void
    masks = [(category, mask.sum()) for category, mask in objects_of(labels, None, False)]
    assert masks == [(2, 16)]
    assert [(category, mask.sum()) for category, mask in objects_of(labels, None, True)] == [(2, 7), (2, 9)]
    assert [(category, mask.sum()) for category, mask in objects_of(labels, instances, True)] == [(2, 12), (2, 3)]


@pytest.fixture
def data_set(tmp_path):
    """Three labelled images of 40 x 30; void, a class without pixels, labels of another size, two objects of one class."""
    folder = tmp_path / 'datasets' / 'Things'
    for index in range(3):
        labels, instances = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.int32)
        labels[5:15, 5:15], labels[5:15, 20:35], labels[20:25] = 1, 1, 255
        labels[16:19, 3:20] = 3
        instances[5:15, 5:15], instances[5:15, 20:35], instances[16:19, 3:20] = 1, 2, 3
        save(folder / 'images' / f'{index}.jpg', np.full((30, 40, 3), 60 * index, np.uint8))
        save(folder / 'SegmentationClass' / f'{index}.png', labels.repeat(2, 0).repeat(2, 1) if index == 2 else labels)
        write_instances(folder / 'instances_hand' / f'{index}.png', instances)
    (folder / 'sets').mkdir()
    (folder / 'sets' / 'val.txt').write_text('0\n1\n2\n')
    (folder / 'classes.txt').write_text('background\nbox\nnever\nbar\n')
    return folder


@pytest.fixture
def env(tmp_path):
    path = tmp_path / 'env.yml'
    path.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'datasets')}))
    return str(path)


def test_classes_of_a_data_set(data_set, env, tmp_path, capsys):
    out = tmp_path / 'out.json'
    export_coco.main(['--config_env', env, '--labels', 'Things', '--out', str(out), '--rle'])
    coco, found = read(out)
    assert {key: entry['name'] for key, entry in coco.cats.items()} == {1: 'box', 2: 'never', 3: 'bar'}
    for index, sample in enumerate(SegmentationDataset(data_set, 'val', labels=True)):
        (first, boxes, item), (second, bar, _) = found[f'{index}.jpg']
        assert (first, second) == ('box', 'bar') and item['iscrowd'] == 0 and item['bbox'] == [5, 5, 30, 10]
        assert np.array_equal(boxes, sample['labels'] == 1) and np.array_equal(bar, sample['labels'] == 3)
    export_coco.main(['--config_env', env, '--labels', str(data_set), '--out', str(out), '--parts'])
    assert [len(items) for items in read(out)[1].values()] == [3, 3, 3]
    export_coco.main(['--config_env', env, '--labels', 'Things', '--out', str(out), '--instances', 'hand'])
    assert [(name, int(mask.sum())) for name, mask, _ in read(out)[1]['2.jpg']] == [('box', 100), ('box', 150), ('bar', 51)]
    assert f'{out}: 9 objects. Its file names are relative to {data_set}/images' in capsys.readouterr().out


def test_there_and_back(data_set, env, tmp_path):
    """A data set, COCO JSON, the same data set: labels without void, and objects."""
    for flags in ([], ['--rle']):
        out, back = tmp_path / f'{len(flags)}.json', tmp_path / f'back{len(flags)}'
        export_coco.main(['--config_env', env, '--labels', 'Things', '--out', str(out), '--instances', 'hand', *flags])
        convert_coco.main(['--annotations', str(out), '--images', str(data_set / 'images'), '--out', str(back),
                           '--val_fraction', '0'])
        assert label_space(back).names == label_space(data_set).names
        before = SegmentationDataset(data_set, 'val', 'hand', labels=True, instances=True)
        after = SegmentationDataset(back, 'trainaug', 'annotated', labels=True, instances=True)
        assert before.ids == after.ids
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one['instances'], other['instances'])
            assert np.array_equal(np.where(one['labels'] == 255, 0, one['labels']), other['labels'])


def test_classes_without_background(data_set, env, tmp_path):
    (data_set / 'dataset.yml').write_text('background: null\nclasses: [ground, box, never, bar]\n')
    out = tmp_path / 'out.json'
    export_coco.main(['--config_env', env, '--labels', 'Things', '--out', str(out)])
    coco, found = read(out)
    assert {key: entry['name'] for key, entry in coco.cats.items()} == {1: 'ground', 2: 'box', 3: 'never', 4: 'bar'}
    assert [name for name, _, _ in found['0.jpg']] == ['ground', 'box', 'bar']


def test_mistakes(data_set, env, tmp_path, user_error):
    def line(*flags):
        return user_error(lambda: export_coco.main(['--config_env', env, *flags]))
    out = ['--out', str(tmp_path / 'out.json')]
    assert 'choose the output: --out FILE.json, --voc' in line('--labels', 'Things')
    assert 'is a folder: name a file' in line('--labels', 'Things', '--out', str(tmp_path))
    assert '--voc, --names and --named_only are only for --predictions' in line('--labels', 'Things', '--voc', 'x')
    assert 'the folder is missing from the data set' in line('--labels', '', *out)
    assert '--tolerance must be' in line('--labels', 'Things', *out, '--tolerance', '-1')
    assert 'instances_x is missing' in (said := line('--labels', 'Things', *out, '--instances', 'x')) and 'hand' in said
    assert 'SegmentationClassAug: the folder is missing' in line('--labels', 'Things', *out, '--split', 'trainaug')
    assert 'predictions is missing: --predictions names' in line('--predictions', 'nothing', *out)
    save(tmp_path / 'output' / 'run' / 'predictions' / '0.png', np.full((30, 40), 3, np.uint8))
    assert 'config.yml is missing' in line('--predictions', 'run', *out)
    config = tmp_path / 'output' / 'run' / 'config.yml'
    config.write_text('script: kmeans.py\nval_db_name: Things\n')
    assert 'only clusters of own_clusters.py' in line('--predictions', 'run', *out, '--named_only')
    config.write_text('script: segment.py\n')
    assert 'config.yml names no data set: run the script again' in line('--predictions', 'run', *out)
    config.write_text('script: kmeans.py\nval_db_name: Things\n')
    save(tmp_path / 'output' / 'run' / 'predictions' / '1.png', np.full((30, 40), 4, np.uint8))
    assert 'predictions/1.png holds the value 4, which is not a class or cluster' in line('--predictions', 'run', *out)
    save(tmp_path / 'output' / 'run' / 'predictions' / '1.png', np.full((30, 20), 3, np.uint8))
    assert 'instances_hand/1.png is 40 x 30, but' in line('--predictions', 'run', *out, '--instances', 'hand')
    assert 'images/1.jpg is 40 x 30, but its labels are 20 x 30' in line('--predictions', 'run', '--voc', str(tmp_path / 'voc'))
    (data_set / 'images' / '1.jpg').unlink()
    assert 'predictions/1.png: its image is no longer in' in line('--predictions', 'run', *out)
    config.write_text('a: [')
    assert 'config.yml could not be read' in line('--predictions', 'run', *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['datasets', 'env.yml', 'output']
    (tmp_path / 'voc').mkdir()
    assert 'exists already' in line('--predictions', 'run', '--voc', str(tmp_path / 'voc'))


@pytest.fixture
def clusters(mine, small_features, tmp_path):  # noqa: F811
    """The folder of four clusters of `mine`."""
    own_clusters.main(['--config_env', mine, '--device', 'cpu', '--clusters', '4'])
    return tmp_path / 'output' / 'mine_clusters'


@pytest.mark.slow
def test_clusters_with_names(clusters, mine, tmp_path, user_error):  # noqa: F811
    out, folder = tmp_path / 'mine.json', tmp_path / 'datasets' / 'mine'
    number = json.loads((clusters / 'results.json').read_text())['clusters']
    saved = SavedClusters.load(clusters / 'clusters.npz')

    def export(*flags, run='mine_clusters'):
        export_coco.main(['--config_env', mine, '--predictions', run, '--out', str(out), *flags])
        return read(out)
    coco, found = export('--rle')
    assert [entry['name'] for entry in coco.cats.values()] == [f'cluster {index}' for index in (1, 2, 3, 4)]
    assert {name.removesuffix('.jpg') for name in found} == number.keys()
    for name, items in found.items():
        [(category, mask, _)] = items
        assert category == f'cluster {number[name.removesuffix(".jpg")]}'
        given = np.array(Image.open(folder / f'saliency_{MASKS}' / name.replace('.jpg', '.png')))
        assert np.array_equal(mask, given == 255)

    names = {1: 'Katze', 3: 'Katze', 4: 'Hündchen'}
    write_names(tmp_path / 'names.yml', saved.id, names)
    coco, found = export('--names', str(tmp_path / 'names.yml'))
    assert {key: entry['name'] for key, entry in coco.cats.items()} == {1: 'Katze', 2: 'cluster 2', 4: 'Hündchen'}
    expected = {name: names.get(cluster, f'cluster {cluster}') for name, cluster in number.items()}
    assert {name.removesuffix('.jpg'): items[0][0] for name, items in found.items()} == expected

    own_clusters.main(['--config_env', mine, '--device', 'cpu', '--names', str(tmp_path / 'names.yml')])
    segment.main(['--config_env', mine, '--device', 'cpu', '--clusters', 'mine_clusters', '--images', str(folder)])
    for run in ('mine_clusters', 'mine_segment/mine'):
        again = export(run=run)[1]
        assert {name.removesuffix('.jpg'): items[0][0] for name, items in again.items()} == expected
        coco, few = export('--named_only', run=run)
        assert {key: entry['name'] for key, entry in coco.cats.items()} == {1: 'Katze', 4: 'Hündchen'}
        assert all(bool(items) == (number[name.removesuffix('.jpg')] in names) for name, items in few.items())
        write_names(tmp_path / 'names.yml', saved.id, {1: 'Katze', 3: 'Hund'})  # what was one can't be told apart
        line = user_error(lambda run=run: export('--names', str(tmp_path / 'names.yml'), run=run))
        assert 'its predictions were made with other names than those in' in line and 'NAMES=' in line
        write_names(tmp_path / 'names.yml', 'abc', names)
        line = user_error(lambda run=run: export('--names', str(tmp_path / 'names.yml'), run=run))
        assert 'these names belong to other clusters' in line
    check_objects(export, folder)


def check_objects(export, folder):
    """With instance maps of the masks, an annotation is an object."""
    for path in (folder / f'saliency_{MASKS}').iterdir():
        mask = np.array(Image.open(path)) == 255
        columns = np.flatnonzero(mask.any(0))
        halves = np.where(np.arange(mask.shape[1]) > columns.mean(), 2, 1) * mask
        write_instances(folder / f'instances_{MASKS}' / path.name, halves)
    for name, items in export('--rle')[1].items():
        halves = np.array(Image.open(folder / f'instances_{MASKS}' / name.replace('.jpg', '.png')))
        assert len(items) == 2 and all(np.array_equal(mask, halves == index) for index, (_, mask, _) in enumerate(items, 1))
    assert {len(items) for items in export('--instances', 'none')[1].values()} == {1}


@pytest.mark.slow
def test_a_classifier_trains_on_named_clusters(clusters, mine, experiment, tmp_path):  # noqa: F811
    """And its predictions are exported again, by its classes."""
    write_names(clusters / 'names.yml', SavedClusters.load(clusters / 'clusters.npz').id, {1: 'cat', 2: 'dog', 3: 'cat'})
    voc = tmp_path / 'datasets' / 'mine_named'
    export_coco.main(['--config_env', mine, '--predictions', 'mine_clusters', '--voc', str(voc), '--named_only',
                      '--val_fraction', '0.25'])
    assert label_space(voc).names == ('background', 'cat', 'dog')
    number = json.loads((clusters / 'results.json').read_text())['clusters']
    train, val = (SegmentationDataset(voc, split, labels=True) for split in ('trainaug', 'val'))
    assert (len(train), len(val)) == (12, 4) and {*train.ids, *val.ids} == number.keys()
    for sample in (*train, *val):
        given = np.array(Image.open(tmp_path / 'datasets' / 'mine' / f'saliency_{MASKS}' / f'{sample["id"]}.png')) == 255
        label = {1: 1, 2: 2, 3: 1, 4: 255}[number[sample['id']]]
        assert np.array_equal(sample['labels'], np.where(given, label, 0))
    changes = {'train_db_name': 'mine_named', 'val_db_name': 'mine_named', 'head': 'none', 'pretraining': None, 'epochs': 1}
    linear_finetune.main(experiment(changes, 'linear', db_root=tmp_path / 'datasets', base=LINEAR))
    export_coco.main(['--config_env', mine, '--predictions', 'linear', '--out', str(tmp_path / 'linear.json'), '--rle'])
    coco, found = read(tmp_path / 'linear.json')
    assert [entry['name'] for entry in coco.cats.values()] == ['cat', 'dog'] and len(found) == 4
    for name, items in found.items():
        predicted = np.array(Image.open(tmp_path / 'output' / 'linear' / 'predictions' / name.replace('.jpg', '.png')))
        assert [(category, mask.sum()) for category, mask, _ in items] == [
            (('cat', 'dog')[value - 1], (predicted == value).sum()) for value in np.unique(predicted[predicted > 0])]
