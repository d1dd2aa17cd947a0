"""The notebook, executed cell by cell in a kernel of its own."""
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from data.shapes import draw_shapes

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / 'notebooks' / 'segment_an_image.ipynb'


def executed(env, **parameters):
    """The notebook after all its cells, with these values in the place of its parameters'."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # as it is stored
    cell = next(cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    cell.source += ''.join(f'\n{name} = {value!r}' for name, value in {'ENV': str(env), **parameters}.items())
    NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(NOTEBOOK.parent)}}).execute()
    return notebook


@pytest.fixture
def env(tmp_path):
    (tmp_path / 'env.yml').write_text(yaml.safe_dump({'root_dir': str(tmp_path / 'output'), 'db_root': str(tmp_path / 'data')}))
    draw_shapes(tmp_path / 'data' / 'Shapes', train=32, val=20, size=64)  # a smaller one than the scripts would draw
    return tmp_path / 'env.yml'


def test_from_installation_to_a_segmented_image(env, tmp_path):
    notebook = executed(env, EPOCHS=1)
    *_, last = notebook.cells
    assert any('image/png' in output.get('data', {}) for output in last.outputs)
    best = torch.load(tmp_path / 'output' / 'notebook_linear' / 'best_model.pth.tar', weights_only=True)
    assert len(best['decoder.4.bias']) == 9
    printed = ''.join(output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ()))
    assert 'Epoch 1/1' in printed and 'mIoU is ' in printed


def test_a_failing_command_stops_it_with_its_error(env):
    with pytest.raises(CellExecutionError, match='error: .*epochs'):
        executed(env, EPOCHS=-1)
