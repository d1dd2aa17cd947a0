"""Small real data sets and experiments for the tests."""
import pytest
import torch
from helpers.devkits import broken, converted, originals  # noqa: F401 - fixtures
from helpers.experiments import PRETRAINING, SMALL, write_experiment
from helpers.mini import mini, problems  # noqa: F401 - fixtures
from helpers.toys import toy_checkpoint, toy_network, toys  # noqa: F401 - fixtures
from helpers.web import drive, server  # noqa: F401 - fixtures

from data.dataset import SegmentationDataset
from data.synthetic_shapes import draw_shapes
from models.factory import get_model

pytest.register_assert_rewrite('helpers.checks')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """The output may hold undecodable file names, which cannot be sent to the process that prints the report."""
    report = yield
    report.sections = [(name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """A db_root with a small `Shapes`: 12 training and 6 validation images of about 64 x 64. Not to be written to."""
    root = tmp_path_factory.mktemp('datasets')
    draw_shapes(root / 'Shapes', train=12, val=6, size=64)
    return root


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory, shapes_root):
    """A pre-training checkpoint as main.py leaves it, of a small random network whose batch norms know images of `Shapes`."""
    torch.manual_seed(0)
    network = get_model({**SMALL, 'model_kwargs': {'ndim': 8}})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    dataset = SegmentationDataset(shapes_root / 'Shapes', 'trainaug')
    images = torch.stack([torch.from_numpy(dataset[index]['image'][:48, :48]) for index in range(len(dataset))])
    with torch.no_grad():
        network(images.permute(0, 3, 1, 2) / 64 - 2)
    state = {f'module.{part}.{key}': value for part in ('model_q', 'model_k') for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp('weights') / 'checkpoint.pth.tar'
    torch.save({'model': {**state, 'module.queue': torch.zeros(8, 8), 'module.queue_ptr': torch.zeros(1)}, 'epoch': 1}, path)
    return path


@pytest.fixture
def experiment(tmp_path, shapes_root):
    """Write env.yml and an experiment file and return the arguments that every script takes.

    experiment(changes, name='small', db_root=None, base=PRETRAINING): `changes` of `base` map keys, nested ones with a dot,
    to values; `...` as a value removes the key. Results are in tmp_path / 'output' / name.
    """
    def write(changes=None, name='small', db_root=shapes_root, base=PRETRAINING):
        return write_experiment(tmp_path, changes, db_root, name, base)
    return write


@pytest.fixture
def user_error(capsys):
    """user_error(call) runs `call`, which must end with exit code 2 and one line on stderr, and returns that line."""
    def check(call):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call()
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2
        assert len(lines) == 1 and lines[0].startswith('error: '), lines
        return lines[0]
    return check
