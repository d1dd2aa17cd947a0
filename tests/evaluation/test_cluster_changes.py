"""What `own_clusters.py` says of a number of clusters that is not the only good one, and of names that got lost."""
import logging

import numpy as np
import pytest

from evaluation.cluster_names import names_for, write_names
from evaluation.cluster_number import NEARLY, counts_to_try, how_many, silhouettes
from evaluation.saved_clusters import SavedClusters


def test_the_smallest_number_that_is_nearly_as_good(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    points = np.random.default_rng(11).normal(size=(40, 2))
    counts = counts_to_try(40, 50)
    scores = silhouettes(points, counts, [0]).tolist()
    best = counts[scores.index(max(scores))]
    near = min(count for count, score in zip(counts, scores, strict=True) if score >= max(scores) - NEARLY)
    assert near < best  # of these points
    assert how_many('auto', None, points, [0], tmp_path, 'image') == best
    assert f'{near} clusters are nearly as good' in caplog.text


def clusters(numbers):
    keys = np.zeros((len(numbers), 32), np.uint8)
    keys[:, 0] = range(len(numbers))
    return SavedClusters({}, np.zeros((max(numbers) + 1, 2)), None, keys, np.array(numbers), {})


@pytest.mark.parametrize('earlier, after, names, lost', [
    ({1: 'dog', 2: 'cat'}, [0, 0, 0, 1, 1, 2], {1: 'dog', 2: 'cat', 3: 'cat'}, ''),
    ({1: 'dog', 2: 'cat'}, [0, 0, 1, 0, 0, 1], {}, 'No cluster has these names any more: cat, dog'),
    ({1: 'dog', 2: 'cat'}, [0, 0, 0, 0], {1: 'dog'}, 'No cluster has these names any more: cat'),
    ({1: 'dog', 2: 'cat'}, [0, 0, 0, 0, 0, 1], {1: 'dog', 2: 'cat'}, ''),
    ({1: 'dog'}, [0, 0, 1, 1, 1, 1], {1: 'dog'}, ''),  # most of the second cluster had no name
    ({1: 'dog'}, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0], {1: 'dog'}, '')])  # the last four are new
def test_names_that_got_lost(tmp_path, caplog, earlier, after, names, lost):
    before = clusters([0, 0, 0, 1, 1, 1])
    write_names(tmp_path / 'names.yml', before.id, earlier)
    assert names_for(clusters(after), before, tmp_path / 'names.yml') == names
    assert lost in caplog.text and bool(lost) == ('any more' in caplog.text)
