"""`segment.py`: other photographs in saved clusters."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.own import MASKS, mine, own_weights, small_features  # noqa: F401 - fixtures
from PIL import Image

import own_clusters
import segment
from evaluation.cluster_names import write_names
from evaluation.mask_features import BATCH
from evaluation.saved_clusters import SavedClusters

TREE = Path(__file__).resolve().parents[2] / 'segmentation'
MANY = 96  # photographs, so that there is time to interrupt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('small_features')]


@pytest.fixture
def clusters(mine, tmp_path):  # noqa: F811
    """The folder of saved clusters of `mine`."""
    own_clusters.main(['--config_env', mine, '--device', 'cpu', '--clusters', '4'])
    return tmp_path / 'output' / 'mine_clusters'


@pytest.fixture
def put(clusters, mine, tmp_path):  # noqa: F811
    """put(images, flags) runs segment.py, and returns the rows of its table by file."""
    def call(images=tmp_path / 'datasets' / 'mine', *flags):
        segment.main(['--config_env', mine, '--clusters', 'mine_clusters', '--images', str(images), '--device', 'cpu',
                      '--num_workers', '0', *flags])
        with open(tmp_path / 'output' / 'mine_segment' / Path(images).name / 'segments.csv', newline='') as file:
            return {row['file']: row for row in csv.DictReader(file)}
    return call


@pytest.fixture
def others(toys, tmp_path):
    """Photographs, and their masks where `make segment` puts them: one has none."""
    photographs, made = tmp_path / 'new ones', tmp_path / 'datasets' / 'mine_segment' / 'new ones'
    (made / 'images').mkdir(parents=True)
    (made / f'saliency_{MASKS}').mkdir()
    (made / 'sets').mkdir()
    photographs.mkdir()
    ids = [f'val_{index:04d}' for index in range(12)]
    for name in ids:
        image = Image.open(toys / 'Toys' / 'images' / f'{name}.jpg')
        image.save(photographs / f'{name}.png')
        shutil.copy(toys / 'Toys' / 'images' / f'{name}.jpg', made / 'images')
        if name != ids[4]:
            shutil.copy(toys / 'Toys' / f'saliency_{MASKS}' / f'{name}.png', made / f'saliency_{MASKS}')
    (made / 'sets' / 'trainaug.txt').write_text('\n'.join(ids))
    return photographs


def test_the_same_photographs_are_in_the_same_clusters(put, clusters, tmp_path):
    rows, before = put(), json.loads((clusters / 'results.json').read_text())['clusters']
    assert {name.removesuffix('.jpg'): int(row['cluster']) for name, row in rows.items()} == before
    for name in before:
        same = [np.array(Image.open(folder / 'predictions' / f'{name}.png'))
                for folder in (clusters, tmp_path / 'output' / 'mine_segment' / 'mine')]
        assert np.array_equal(*same)
    saved = SavedClusters.load(clusters / 'clusters.npz')
    by_cluster = [float(rows[f'{name}.jpg']['distance']) for name in before]
    assert saved.settings['weights_sha256'] and max(by_cluster) > 0


def test_table_and_pictures(put, others, clusters, tmp_path):
    rows, output = put(others), tmp_path / 'output' / 'mine_segment' / 'new ones'
    assert list(rows) == sorted(path.name for path in others.iterdir())
    assert list(rows['val_0004.png'].values()) == ['val_0004.png', *[''] * 6]
    assert not (output / 'predictions' / 'val_0004.png').exists()
    saved, seen = SavedClusters.load(clusters / 'clusters.npz'), set()
    from evaluation.mask_features import feature_network
    network = feature_network(saved.settings, torch.device('cpu'))
    for name, row in rows.items():
        if name == 'val_0004.png':
            continue
        vector = plain_vector(network, tmp_path / 'datasets' / 'mine_segment' / 'new ones', Path(name).stem)
        distances = np.linalg.norm(saved.centres - vector, axis=1)
        near, far = np.argsort(distances)[:2]
        assert (int(row['cluster']), int(row['second_nearest'])) == (near + 1, far + 1)
        assert float(row['distance']) == pytest.approx(distances[near], abs=2e-4)
        assert float(row['second_distance']) == pytest.approx(distances[far], abs=2e-4)
        prediction = Image.open(output / 'predictions' / name)
        assert prediction.mode == 'P' and set(np.unique(np.array(prediction))) <= {0, near + 1}
        shown, original = Image.open(output / 'overlays' / f'{Path(name).stem}.jpg'), Image.open(others / name)
        assert shown.width == original.width and shown.height > original.height  # with a legend
        seen.add(near)
    assert seen


def plain_vector(network, folder, name):
    """Pooled in the mask at 64 x 64, from the backbone's own last grid."""
    import cv2
    image = cv2.resize(np.asarray(Image.open(folder / 'images' / f'{name}.jpg')), (64, 64), interpolation=cv2.INTER_CUBIC)
    mask = np.asarray(Image.open(folder / f'saliency_{MASKS}' / f'{name}.png')) == 255
    mask = cv2.resize(mask.astype(np.uint8), (64, 64), interpolation=cv2.INTER_NEAREST)
    x = (torch.tensor(image) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        grid = network.backbone(x.permute(2, 0, 1)[None])
        up = torch.nn.functional.interpolate(grid, (64, 64), mode='bilinear', align_corners=False)[0]
    vector = (up * torch.tensor(mask)).sum((1, 2)).numpy()
    return vector / max(np.linalg.norm(vector), 1e-12)


def test_names_make_one_of_two(put, others, clusters, tmp_path, user_error, mine):  # noqa: F811
    before = put(others)
    saved = SavedClusters.load(clusters / 'clusters.npz')
    write_names(clusters / 'names.yml', saved.id, {1: 'a, "b"', 3: 'a, "b"', 4: 'c'})
    first, output = stamps(tmp_path), tmp_path / 'output' / 'mine_segment' / 'new ones'
    rows, names = put(others), {1: 'a, "b"', 2: '', 4: 'c'}
    for name, row in rows.items():
        if row['cluster']:
            assert int(row['cluster']) == {3: 1}.get(int(before[name]['cluster']), int(before[name]['cluster']))
            assert row['name'] == names[int(row['cluster'])] and row['second_name'] == names[int(row['second_nearest'])]
            assert row['second_nearest'] != row['cluster'] and float(row['second_distance']) >= float(row['distance'])
            values = set(np.unique(np.array(Image.open(output / 'predictions' / name))))
            assert values <= {0, int(row['cluster'])}
    redrawn = {name for name, stamp in stamps(tmp_path).items() if first[name] != stamp}
    assert redrawn == {name for name, row in rows.items() if row['name']}  # their legend is another one
    other = tmp_path / 'other.yml'
    write_names(other, 'abc', {1: 'a'})
    assert 'these names belong to other clusters' in user_error(lambda: put(others, '--names', str(other)))


def stamps(tmp_path):
    return {path.name: path.stat().st_mtime_ns
            for path in (tmp_path / 'output' / 'mine_segment' / 'new ones' / 'predictions').iterdir()}


def test_only_what_is_new_or_changed_is_done(put, others, tmp_path, capsys):
    put(others)
    first, made = stamps(tmp_path), tmp_path / 'datasets' / 'mine_segment' / 'new ones'
    capsys.readouterr()
    put(others)
    assert 'features of 0 new' in (said := capsys.readouterr().out) and 'pictures of 0' in said and stamps(tmp_path) == first
    size = Image.open(made / 'images' / 'val_0004.jpg').size  # which has a mask now
    Image.open(made / f'saliency_{MASKS}' / 'val_0003.png').resize(size, Image.Resampling.NEAREST).save(
        made / f'saliency_{MASKS}' / 'val_0004.png')
    (tmp_path / 'output' / 'mine_segment' / 'new ones' / 'overlays' / 'val_0007.jpg').unlink()
    (others / 'val_0001.png').unlink()
    (made / 'sets' / 'trainaug.txt').write_text('\n'.join(f'val_{index:04d}' for index in (0, *range(2, 12))))
    rows = put(others)
    assert 'features of 1 new' in (said := capsys.readouterr().out) and 'pictures of 2' in said
    second = stamps(tmp_path)
    assert second.keys() == first.keys() - {'val_0001.png'} | {'val_0004.png'} and rows['val_0004.png']['cluster']
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == {'val_0007.png'}


def test_ctrl_c_and_again(put, clusters, mine, others, tmp_path, capsys):  # noqa: F811
    made, ids = tmp_path / 'datasets' / 'mine_segment' / 'new ones', []
    for index in range(MANY):
        name, source = f'more_{index:03d}', f'val_{index % 4:04d}'
        image = np.array(Image.open(made / 'images' / f'{source}.jpg'))
        image[0, 0] = index
        Image.fromarray(image).save(made / 'images' / f'{name}.jpg')
        Image.fromarray(image).save(others / f'{name}.jpg')
        shutil.copy(made / f'saliency_{MASKS}' / f'{source}.png', made / f'saliency_{MASKS}' / f'{name}.png')
        ids.append(name)
    (made / 'sets' / 'trainaug.txt').write_text('\n'.join(ids))
    command = [sys.executable, 'segment.py', '--config_env', mine, '--clusters', str(clusters), '--images', str(others),
               '--device', 'cpu', '--num_workers', '0']
    output = tmp_path / 'output' / 'mine_segment' / 'new ones'
    process = subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not any(path.stat().st_size > 21 for path in output.glob('features/*')):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130 and said.splitlines()[-1] == 'error: interrupted', said
    assert not (output / 'segments.csv').exists()
    capsys.readouterr()
    put(others)
    done = capsys.readouterr().out
    known = int(done.partition(f' of {MANY} images are already saved')[0].split()[-1])
    assert BATCH <= known < MANY and f'features of {MANY - known} new' in done and f'pictures of {MANY}' in done


def test_mistakes(put, others, own_weights, clusters, tmp_path, mine, user_error):  # noqa: F811
    shutil.rmtree(tmp_path / 'datasets' / 'mine_segment')
    assert 'there are no masks supervised_model of these photographs' in user_error(lambda: put(others))
    assert 'is missing: make clusters first' in user_error(lambda: segment.main(
        ['--config_env', mine, '--clusters', 'nothing', '--images', str(others)]))
    weights = own_weights.read_bytes()
    try:
        state = torch.load(own_weights, weights_only=True)
        torch.save({key: value + 0.5 for key, value in state.items()}, own_weights)
        line = user_error(lambda: put(tmp_path / 'datasets' / 'mine'))
        assert 'does not hold the weights with which the clusters were made' in line
    finally:
        own_weights.write_bytes(weights)
