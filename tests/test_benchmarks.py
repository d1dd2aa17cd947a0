"""The benchmarks of the evaluations run, and what they compare is equal (they assert it)."""
import json

import numpy as np
import pytest
import torch

import crf
import online_evaluation
import saliency_masks


@pytest.mark.parametrize('module, flags, keys', [
    (online_evaluation, ['--batch', '2', '--size', '32', '--rounds', '2'], ('counting_over_plain', 'whole_over_plain')),
    (crf, ['--images', '2', '--size', '64'], ('images_per_second_1_process', 'images_per_second_1_a_core', 'speed_up'))])
def test_prints_one_line_of_json(monkeypatch, capsys, module, flags, keys):
    monkeypatch.setattr('sys.argv', [module.__name__, *flags])
    module.main()
    report = json.loads(capsys.readouterr().out)
    assert report['benchmark'] == module.__name__ and all(report[key] > 0 for key in keys)


def test_quality_of_masks(shapes_root, capsys):
    threads = torch.get_num_threads()
    try:
        saliency_masks.main(['--folder', str(shapes_root / 'Shapes'), '--split', 'val', '--side', '96'])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(capsys.readouterr().out)
    assert report['images'] == 6 and 0 < report['mean_IoU'] <= 100 and report['images_per_second'] > 0
    mask, labels = np.array([[1, 1, 0, 0]]), np.array([[3, 255, 5, 0]])
    assert saliency_masks.intersection_over_union(mask, labels) == 0.5  # one of two labelled pixels; void does not count
