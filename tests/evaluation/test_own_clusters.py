"""`own_clusters.py`: the clusters of kmeans.py, kept in a file, for new photographs only, with names."""
import json
import shutil

import numpy as np
import pytest
from helpers.own import MASKS, mine, own_weights, small_features  # noqa: F401 - fixtures
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

import kmeans
import own_clusters
from data.palette import VOC_COLOURS
from evaluation.cluster_names import read_names, write_names
from evaluation.cluster_number import best_count, counts_to_try, silhouettes
from evaluation.clustering import reduced
from evaluation.own_images_config import clustering_settings, clusters_for
from evaluation.prototype_cache import PrototypeCache, content_key
from evaluation.saved_clusters import Projection, SavedClusters, nearest
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures('small_features')


@pytest.fixture
def clusters(mine, tmp_path):  # noqa: F811
    """clusters(flags) runs own_clusters.py and returns the content of results.json."""
    def call(*flags):
        own_clusters.main(['--config_env', mine, '--device', 'cpu', *flags])
        return json.loads((tmp_path / 'output' / 'mine_clusters' / 'results.json').read_text())
    return call


@pytest.fixture
def output(tmp_path):
    return tmp_path / 'output' / 'mine_clusters'


@pytest.fixture
def data(mine, tmp_path):  # noqa: F811
    return tmp_path / 'datasets' / 'mine'


def add_image(data, name, like):
    """Another image, a mirrored one, with its mask."""
    for part, suffix in (('images', 'jpg'), (f'saliency_{MASKS}', 'png')):
        Image.open(data / part / f'{like}.{suffix}').transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            data / part / f'{name}.{suffix}')
    with open(data / 'sets' / 'trainaug.txt', 'a') as file:
        file.write(f'\n{name}')


@pytest.mark.slow
def test_they_are_those_of_kmeans(clusters, mine, output, data, capsys):  # noqa: F811
    found = clusters('--clusters', '3')
    said = capsys.readouterr().out
    assert '3 clusters, as requested' in said and 'layer4 of resnet18' in said and 'features of 16 new images' in said
    saved = SavedClusters.load(output / 'clusters.npz')
    assert len(saved) == 3 and (saved.clusters + 1).tolist() == list(found['clusters'].values())
    for name, cluster in found['clusters'].items():
        mask = np.array(Image.open(data / f'saliency_{MASKS}' / f'{name}.png')) == 255
        assert np.array_equal(np.array(Image.open(output / 'predictions' / f'{name}.png')), mask * np.uint8(cluster))
    assert (output / 'clusters.html').stat().st_size > 10_000
    assert np.asarray(Image.open(output / 'clusters.png')).shape[0] == 360
    kmeans.main(['--config_env', mine, '--config_exp', str(output / 'mine_clusters.yml'), '--device', 'cpu'])
    other = json.loads((output / 'results.json').read_text())
    assert other['script'] == 'kmeans.py' and other['clusters'] == found['clusters']


@pytest.mark.slow
def test_only_what_is_new_is_computed(clusters, data, output, capsys):
    clusters('--clusters', '3')
    first = dict(vectors(output))
    add_image(data, 'new', 'train_0001')
    (data / 'images' / 'renamed.jpg').write_bytes((data / 'images' / 'train_0003.jpg').read_bytes())
    shutil.move(data / f'saliency_{MASKS}' / 'train_0003.png', data / f'saliency_{MASKS}' / 'renamed.png')
    ids = (data / 'sets' / 'trainaug.txt').read_text().replace('train_0003', 'renamed')
    (data / 'sets' / 'trainaug.txt').write_text(ids)
    (data / 'images' / 'train_0005.jpg').touch()
    capsys.readouterr()
    found = clusters('--clusters', '3')
    said = capsys.readouterr().out
    assert '16 of 17 images are already saved' in said and 'features of 1 new images' in said
    assert 'new' in found['clusters'] and 'renamed' in found['clusters']
    second = dict(vectors(output))
    assert len(second) == 17 and all(np.array_equal(second[key], vector) for key, vector in first.items())
    new = content_key(data / 'images' / 'new.jpg', data / f'saliency_{MASKS}' / 'new.png')
    assert set(second) - set(first) == {new}
    (output / 'features').rename(output / 'away')
    clusters('--clusters', '3')  # all at once
    at_once = dict(vectors(output))
    assert second.keys() == at_once.keys() and all(np.abs(second[key] - at_once[key]).max() < 1e-5 for key in second)


def vectors(output):
    path, = (output / 'features').iterdir()
    with PrototypeCache(path) as cache:
        yield from ((key, cache[key]) for key in list(cache._rows))


@pytest.mark.slow
def test_an_interrupted_run_goes_on(clusters, output, monkeypatch, capsys):
    def interrupted(self, keys, found):
        add(self, keys, found)
        if len(self) >= 8:
            raise KeyboardInterrupt
    add = PrototypeCache.add
    monkeypatch.setattr(PrototypeCache, 'add', interrupted)
    with pytest.raises(SystemExit) as stop:
        clusters()
    assert stop.value.code == 130 and len(dict(vectors(output))) == 8
    monkeypatch.setattr(PrototypeCache, 'add', add)
    capsys.readouterr()
    clusters()
    assert '8 of 16 images are already saved' in capsys.readouterr().out


def test_a_cache_that_was_cut_off_or_damaged(tmp_path):
    path, random = tmp_path / 'x.vectors', np.random.default_rng(0)
    keys, rows = [random.bytes(32) for _ in range(5)], random.normal(size=(5, 7)).astype(np.float32)
    with PrototypeCache(path) as cache:
        cache.add(keys[:2], rows[:2])
        cache.add(keys[2:], rows[2:])
    whole = path.read_bytes()
    size = 32 + 7 * 4 + 4
    assert len(whole) == 21 + 5 * size
    for length in (0, 3, 20, 21, 21 + size - 1, 21 + size, 21 + 4 * size + 5):
        path.write_bytes(whole[:length])
        kept = max(0, length - 21) // size
        with PrototypeCache(path) as cache:
            assert [key in cache for key in keys] == [True] * kept + [False] * (5 - kept)
            cache.add(keys[kept:], rows[kept:])
            assert all(np.array_equal(cache[key], row) for key, row in zip(keys, rows, strict=True))
        assert path.read_bytes() == whole
    for position in (5, 30, 21 + 2 * size + 40, 21 + 3 * size - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1:])
        with PrototypeCache(path) as cache:
            assert len(cache) == max(0, position - 21) // size
    with PrototypeCache(path) as cache:
        cache.add([keys[0], keys[0]], rows[3:])  # twice the same image
        assert np.array_equal(cache[keys[0]], rows[4])


@pytest.mark.slow
def test_names(clusters, output, data, user_error, tmp_path):
    found = clusters('--clusters', '4')
    saved = SavedClusters.load(output / 'clusters.npz')
    given = tmp_path / 'names.yml'
    write_names(given, saved.id, {7: 'x'})
    assert 'names.yml: there are clusters 1 to 4, not 7' in user_error(lambda: clusters('--names', str(given)))
    assert not (output / 'names.yml').exists()
    write_names(given, saved.id, {1: 'Häuser', 2: 'x', 4: 'Häuser'})
    again = clusters('--names', str(given))  # as many as those with names
    assert again['clusters'] == found['clusters'] and again['names'] == {'1': 'Häuser', '2': 'x', '4': 'Häuser'}
    assert read_names(output / 'names.yml') == (saved.id, {1: 'Häuser', 2: 'x', 4: 'Häuser'})
    sheet = np.asarray(Image.open(output / 'clusters.png'))
    assert sheet.shape[0] == 3 * 120 and [tuple(sheet[120 * row + 5, 0]) for row in range(3)] == [
        tuple(VOC_COLOURS[label]) for label in (1, 2, 3)]
    for name, cluster in found['clusters'].items():
        prediction = np.array(Image.open(output / 'predictions' / f'{name}.png'))
        assert set(np.unique(prediction)) == {0, 1 if cluster == 4 else cluster}
    assert (output / 'clusters.html').read_text().count('value="Häuser"') == 2
    # More photographs: other clusters, which most of their images name.
    add_image(data, 'new', 'train_0001')
    more = clusters('--clusters', '2')
    assert SavedClusters.load(output / 'clusters.npz').id == read_names(output / 'names.yml')[0] != saved.id
    assert read_names(output / 'names.yml.old-1')[0] == saved.id
    names = {1: 'Häuser', 2: 'x', 4: 'Häuser'}
    for number, name in more['names'].items():
        votes = [names[cluster] for image, cluster in found['clusters'].items()
                 if more['clusters'][image] == int(number) and cluster in names]
        assert votes.count(name) == max(map(votes.count, votes))
    assert more['names']
    # Names of what is no longer there
    assert 'these names belong to other clusters' in user_error(lambda: clusters('--clusters', '2', '--names', str(given)))
    write_names(output / 'names.yml', 'nonsense', {1: 'a'})
    assert clusters('--clusters', '2')['names'] == {} and (output / 'names.yml.old-2').exists()


@pytest.mark.slow
def test_the_number_is_found(clusters, output, capsys):
    found = clusters('--clusters', 'auto')
    said = capsys.readouterr().out
    points = np.stack([vector for _, vector in vectors(output)])
    expected = []
    for count in range(2, 9):
        best = min((MiniBatchKMeans(count, batch_size=1000, n_init=3, random_state=seed).fit_predict(points)
                    for seed in range(1234, 1239)), key=lambda labels: spread(points, labels))
        expected.append(silhouette_score(points, best))
    chosen = 2 + int(np.argmax(expected))
    assert found['n_clusters'] == chosen + 1 and f'n_clusters: {chosen + 1}\n' in (output / 'config.yml').read_text()
    assert f'{chosen} clusters: of 2 to 8 this number has the highest silhouette, {max(expected):.3f}' in said
    assert np.asarray(Image.open(output / 'silhouette.png')).shape[1] == 770


def spread(points, labels):
    return sum(((points[labels == label] - points[labels == label].mean(0)) ** 2).sum() for label in np.unique(labels))


@pytest.mark.slow
def test_planted_clusters_are_counted():
    random = np.random.default_rng(1)
    centres = random.normal(size=(7, 20)) * 4
    points = np.concatenate([centre + random.normal(size=(12, 20)) for centre in centres])
    counts = counts_to_try(len(points), 50)
    assert counts == [*range(2, 21), 22, 24, 26, 28, 30, 33, 36, 39, 42]
    assert best_count(counts, silhouettes(points, counts, [0, 1])) == 7
    same = silhouettes(np.ones((10, 3)), [2, 3], [0])
    assert np.isnan(same).all() and best_count([2, 3], same) == 2
    assert counts_to_try(3, 50) == [] and counts_to_try(4, 50) == [2]


def test_whitening_is_that_of_kmeans():
    random = np.random.default_rng(2)
    points = (random.normal(size=(80, 50)) * random.uniform(0.1, 3, 50)).astype(np.float32)
    whitening = Projection.fit(points, whiten=True)
    expected = PCA(32, whiten=True, svd_solver='full').fit(points.astype(np.float64))
    assert np.allclose(whitening(points), expected.transform(points.astype(np.float64)), atol=1e-9)
    assert np.allclose(whitening(points).std(0, ddof=1), 1)
    assert np.isfinite(Projection.fit(points[:5], whiten=True)(points)).all()
    assert np.allclose(whitening(points), reduced(points, True, True), atol=1e-3)


def test_reduction_to_components_of_unit_length():
    points = np.random.default_rng(2).normal(size=(80, 50)).astype(np.float32) * np.linspace(3, 0.1, 50, dtype=np.float32)
    found = Projection.fit(points, whiten=False)(points)
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    components = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :32]
    expected = components / np.linalg.norm(components, axis=1, keepdims=True)
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-9)  # signs of components are free
    assert np.allclose(found, reduced(points, False, True), atol=1e-9) and np.array_equal(reduced(points, False, False), points)


def test_saved_clusters(tmp_path, user_error):
    random = np.random.default_rng(3)
    points, centres = random.normal(size=(9, 6)), random.normal(size=(4, 3))
    whitening = Projection(random.normal(size=6), random.normal(size=(6, 3)), unit=False)
    keys = random.integers(0, 256, (5, 32), dtype=np.uint8)
    saved = SavedClusters({'a': [1, None, 'x']}, centres, whitening, keys, np.array([3, 0, 1, 1, 2]), {'name': 'mine'})
    saved.save(tmp_path / 'clusters.npz')
    loaded = SavedClusters.load(tmp_path / 'clusters.npz')
    assert loaded.settings == saved.settings and loaded.id == saved.id and loaded.data == saved.data
    distances = loaded.distances(points)
    expected = [[np.linalg.norm((point - whitening.mean) @ whitening.axes - centre) for centre in centres] for point in points]
    assert np.allclose(distances, expected)
    order = [2, 0, 4, 1, 3]
    other = SavedClusters({}, centres, None, keys[order], saved.clusters[order], {})
    assert other.id == saved.id and SavedClusters({}, centres, None, keys, np.array([3, 0, 1, 1, 1]), {}).id != saved.id
    labels = np.array([0, 1, 0, 3])
    first, second = nearest(distances, labels)
    for row, near, far in zip(distances, first, second, strict=True):
        ordered = [labels[index] for index in np.argsort(row)]
        assert near == ordered[0] and far == next(label for label in ordered if label != near)
    assert nearest(distances[:, :1], np.array([0]))[1].tolist() == [-1] * 9


def test_other_files_are_no_clusters(tmp_path):
    path = tmp_path / 'clusters.npz'
    np.savez(path, description=np.array('{"settings": {}, "data": {}}'), centres=np.array([{'a': 1}], object),
             keys=np.zeros((1, 32)), clusters=np.zeros(1))
    for content in (path.read_bytes(), path.read_bytes()[:300], b'', b'PK\x03\x04'):  # the first has a pickle in it
        path.write_bytes(content)
        with pytest.raises(UserError, match='clusters.npz could not be read'):
            SavedClusters.load(path)
    np.savez(path, centres=np.zeros((2, 3)))
    with pytest.raises(UserError, match='could not be read'):
        SavedClusters.load(path)
    with pytest.raises(UserError, match='is missing: make clusters first'):
        SavedClusters.load(tmp_path / 'nothing.npz')


@pytest.mark.slow
def test_mistakes(clusters, mine, tmp_path, user_error):  # noqa: F811
    assert '--clusters 17: only 16 of the images have masks' in user_error(lambda: clusters('--clusters', '17'))
    assert '--clusters: must be auto or an integer' in user_error(lambda: clusters('--clusters', '0'))
    assert 'none.yml: there is no such file of names' in user_error(lambda: clusters('--names', str(tmp_path / 'none.yml')))
    assert 'run own_images.py --name other first' in user_error(lambda: clusters('--name', 'other'))
    (tmp_path / 'output' / 'mine' / 'network.yml').write_text('[]')
    assert 'network.yml could not be read' in user_error(clusters)


def test_what_is_clustered():
    trained = {'train_db_name': 'x', 'train_db_kwargs': {'saliency': 'm'}, 'num_workers': 0, 'backbone': 'resnet18',
               'backbone_kwargs': {'dilated': True}, 'head': 'deeplab', 'model_kwargs': {'ndim': 16}, 'pretraining': 'c',
               'transformation_kwargs': {'crop_size': 96}}
    ready = {**trained, 'head': 'none'}

    def chosen(network, images):
        settings, _ = clustering_settings(network, images, 5)
        return (settings['kmeans_kwargs']['features'], settings['val_db_kwargs']['hide_background'],
                settings['transformation_kwargs']['resolution'][0], settings['kmeans_kwargs']['whiten'],
                settings['backbone_kwargs'])
    assert chosen(ready, 60) == chosen(ready, 60_000) == ('layer4', False, 64, False, {'dilated': False})
    for images in (60, 60_000):
        assert chosen({**trained, 'from_random_weights': False}, images) == ('layer4', False, 64, False, {'dilated': True})
    assert chosen({**trained, 'from_random_weights': True}, 60) == ('layer3', True, 192, False, {'dilated': True})
    assert chosen({**trained, 'from_random_weights': True}, 2000) == ('embedding', False, 192, True, {'dilated': True})
    assert [clusters_for(images) for images in (1, 2, 3, 60, 241, 10 ** 6)] == [1, 2, 2, 8, 16, 50]
