"""The benchmarks of the evaluations run, and what they compare is equal (they assert it)."""
import json

import pytest

import crf
import online_evaluation


@pytest.mark.parametrize('module, flags, keys', [
    (online_evaluation, ['--batch', '2', '--size', '32', '--rounds', '2'], ('counting_over_plain', 'whole_over_plain')),
    (crf, ['--images', '2', '--size', '64'], ('images_per_second_1_process', 'images_per_second_1_a_core', 'speed_up'))])
def test_prints_one_line_of_json(monkeypatch, capsys, module, flags, keys):
    monkeypatch.setattr('sys.argv', [module.__name__, *flags])
    module.main()
    report = json.loads(capsys.readouterr().out)
    assert report['benchmark'] == module.__name__ and all(report[key] > 0 for key in keys)
