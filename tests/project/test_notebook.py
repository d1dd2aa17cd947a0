"""The notebook, executed cell by cell in a kernel of its own."""
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from helpers.stored import PRETRAINING, weights_of
from nbclient import NotebookClient

from data.synthetic_shapes import draw_shapes

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'notebooks' / 'segment_an_image.ipynb'
INSTALLATION = "run(sys.executable, '-m', 'pip', 'install', '--quiet', '-r', 'requirements.txt')"


def prepared(folder, **parameters):
    """The notebook with these values in the place of its parameters'."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # as it is stored
    assert sum(cell.source.count(INSTALLATION) for cell in notebook.cells) == 1
    cell = next(cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    cell.source += ''.join(f'\n{name} = {value!r}' for name, value in parameters.items())
    cell.source += f'\nOUTPUT, DATA = {str(folder / "output")!r}, {str(folder / "data")!r}'
    return notebook


def executed(folder, **parameters):
    """The notebook after all its cells, run in a kernel."""
    notebook = prepared(folder, **parameters)
    NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(NOTEBOOK.parent)}}).execute()
    return notebook


def run_here(monkeypatch, folder, **parameters):
    """The cells but for the installation, run in this process, which spares a kernel's start. Returns what they define."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(plt, 'show', lambda: None)
    names = {}
    for cell in prepared(folder, **parameters).cells:
        if cell.cell_type == 'code':
            exec(compile(cell.source.replace(INSTALLATION, ''), str(NOTEBOOK), 'exec'), names)
    return names


def has_picture(notebook):
    return any('image/png' in output.get('data', {}) for output in notebook.cells[-1].outputs)


@pytest.mark.slow
def test_from_installation_to_a_segmented_image(tmp_path):
    draw_shapes(tmp_path / 'data' / 'Shapes', train=16, val=4, size=64)  # a smaller one than the scripts would draw
    notebook = executed(tmp_path, EPOCHS=1)
    assert has_picture(notebook)
    best = torch.load(tmp_path / 'output' / 'notebook_linear' / 'best_model.pth.tar', weights_only=True)
    assert len(best['decoder.4.bias']) == 9
    printed = ''.join(output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ()))
    assert 'Epoch 1/1' in printed and 'mIoU is ' in printed


@pytest.mark.slow
def test_an_own_image_and_network(tmp_path, monkeypatch):
    network = weights_of({'num_classes': 4}, tmp_path / 'weights.pth.tar')
    cv2.imwrite(str(tmp_path / 'photo.jpg'), np.full((50, 80, 3), 90, np.uint8))
    given = {'IMAGE': str(tmp_path / 'photo.jpg'), 'WEIGHTS': str(tmp_path / 'weights.pth.tar'), 'SIZE': (64, 64)}
    names = run_here(monkeypatch, tmp_path, **given)
    with torch.no_grad():
        wanted = network(names['prepare'](np.full((50, 80, 3), 90, np.uint8)))[0].argmax(0)
    assert names['prediction'].shape == (50, 80) and set(np.unique(names['prediction'])) <= set(wanted.unique().tolist())
    found = sorted(set(np.unique(names['prediction']).tolist()) - {0})
    assert names['figure'].axes[1].get_title() == (', '.join(map(str, found)) or 'background only')
    weights_of(PRETRAINING, tmp_path / 'weights.pth.tar')
    with pytest.raises(ValueError, match='is a pre-training, which has no classes'):
        run_here(monkeypatch, tmp_path, **given)
    assert not (tmp_path / 'output').exists()


@pytest.mark.slow
def test_a_failing_command_stops_it_with_its_error(tmp_path, monkeypatch, capfd):
    draw_shapes(tmp_path / 'data' / 'Shapes', train=1, val=1, size=48)
    with pytest.raises(RuntimeError, match='main.py ended with 2: see the line above'):
        run_here(monkeypatch, tmp_path, EPOCHS=-1)
    assert 'error: ' in (printed := capfd.readouterr().out) and 'epochs' in printed
