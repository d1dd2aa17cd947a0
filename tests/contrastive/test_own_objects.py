"""`own_images.py --objects`: what it hands on to masks, clusters and a training, also when it isn't said again."""
import json
import shutil

import pytest
import yaml
from helpers.own import own_weights  # noqa: F401 - a fixture

import own_clusters
import own_images
import segment
from data.dataset import SegmentationDataset
from data.instances import read_instances
from saliency import feature_cues

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path):
    path = tmp_path / 'env.yml'
    path.write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'datasets')}))
    return str(path)


def test_objects_stay_what_is_clustered(env, shapes_root, own_weights, tmp_path, monkeypatch, user_error):  # noqa: F811
    monkeypatch.setattr(feature_cues, 'SIDE', 64)
    images, output = tmp_path / 'photographs', tmp_path / 'output' / 'mine'
    images.mkdir()
    for number in range(3):
        shutil.copy(shapes_root / 'Shapes' / 'images' / f'train_000{number}.jpg', images)

    def begin(*flags):
        own_images.main(['--config_env', env, '--images', str(images), '--device', 'cpu', '--weights', str(own_weights),
                         *flags])
        return yaml.safe_load((output / 'network.yml').read_text())
    line = user_error(lambda: begin('--model', 'robust_background', '--objects', 'cuts'))
    assert '--objects cuts cuts the features of a backbone' in line
    network = begin('--objects', 'parts', '--clusters', '4')  # more than there are images
    assert network['train_db_kwargs'] == {'saliency': 'feature_cues', 'instances': True}
    assert network['masks']['objects'] == 'parts'
    assert begin() == network
    folder = tmp_path / 'datasets' / 'mine'
    data = SegmentationDataset(folder, 'trainaug', 'feature_cues', instances=True, drop_missing=True)
    objects = [f'{sample["id"]}#{number}' for sample in data for number in range(1, sample['instances'].max() + 1)]
    own_clusters.main(['--config_env', env, '--device', 'cpu', '--clusters', '2'])
    results = json.loads((tmp_path / 'output' / 'mine_clusters' / 'results.json').read_text())
    assert list(results['clusters']) == objects and len(data) == 3
    # Other photographs are cut into objects too.
    other = tmp_path / 'other'
    other.mkdir()
    shutil.copy(shapes_root / 'Shapes' / 'images' / 'train_0007.jpg', other)
    own_images.main(['--config_env', env, '--images', str(other), '--device', 'cpu', '--segment'])
    made = tmp_path / 'datasets' / 'mine_segment' / 'other' / 'instances_feature_cues' / 'train_0007.png'
    assert read_instances(made).max() >= 1
    segment.main(['--config_env', env, '--clusters', 'mine_clusters', '--images', str(other), '--device', 'cpu'])
    table = (tmp_path / 'output' / 'mine_segment' / 'other' / 'segments.csv').read_text()
    assert table.startswith('file,object,cluster,') and 'train_0007.jpg,train_0007#1,' in table
    # And back
    network = begin('--objects', 'none')
    assert network['train_db_kwargs'] == {'saliency': 'feature_cues'} and 'objects' not in network['masks']
    assert '--clusters must be auto or from 1 to 254' in user_error(lambda: begin('--clusters', '4'))
