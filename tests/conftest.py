"""Small real data sets and experiments for the tests."""
import pytest
from helpers.devkits import broken, converted, originals  # noqa: F401 - fixtures
from helpers.experiments import PRETRAINING, SMALL, write_experiment
from helpers.mini import mini, problems  # noqa: F401 - fixtures
from helpers.stored import pretraining_checkpoint
from helpers.toys import toy_checkpoint, toy_network, toys  # noqa: F401 - fixtures
from helpers.web import drive, server  # noqa: F401 - fixtures

from data.synthetic_shapes import draw_shapes

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
    """A pre-training checkpoint as main.py leaves it, of a small random network."""
    return pretraining_checkpoint(tmp_path_factory.mktemp('weights') / 'checkpoint.pth.tar', SMALL, shapes_root)


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
