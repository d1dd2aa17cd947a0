"""`pretrain/` and `segmentation/` carry the same copies of data/, models/ and utils/."""
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def first_difference(left, right):
    """The first relative path whose bytes differ or that only one folder has, or None."""
    files = {path.relative_to(tree) for tree in (left, right) for path in tree.rglob('*')
             if path.is_file() and '__pycache__' not in path.parts}
    for file in sorted(files):
        a, b = left / file, right / file
        if not a.is_file() or not b.is_file() or a.read_bytes() != b.read_bytes():
            return file
    return None


@pytest.mark.parametrize('folder', ['data', 'models', 'utils'])
def test_twin_folders_are_equal(folder):
    assert (ROOT / 'pretrain' / folder).is_dir()
    file = first_difference(ROOT / 'pretrain' / folder, ROOT / 'segmentation' / folder)
    assert file is None, f'{folder}/{file} differs between the trees: edit pretrain/{folder}/{file}, then `make sync`'


def test_first_difference_is_named(tmp_path):
    for tree, text in (('a', 'same'), ('b', 'same')):
        (tmp_path / tree / 'sub').mkdir(parents=True)
        (tmp_path / tree / 'sub' / 'one.py').write_text(text)
    assert first_difference(tmp_path / 'a', tmp_path / 'b') is None
    (tmp_path / 'b' / 'sub' / 'two.py').write_text('only here')
    (tmp_path / 'b' / 'sub' / 'zwo.py').write_text('and here')
    assert first_difference(tmp_path / 'a', tmp_path / 'b') == Path('sub/two.py')
