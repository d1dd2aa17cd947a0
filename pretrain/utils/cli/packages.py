"""Third-party packages. Every script imports this module first, so that a missing package ends the script with one line."""
import importlib
import sys
from pathlib import Path
from types import ModuleType, TracebackType

from utils.errors import UserError, one_line

TREE = Path(__file__).resolve().parents[2]
# Import names that are not the names in requirements.txt
NAMES = {'cv2': 'opencv-python-headless', 'PIL': 'pillow', 'pydensecrf': 'pydensecrf2', 'skimage': 'scikit-image',
         'sklearn': 'scikit-learn', 'yaml': 'pyyaml'}
OPTIONAL = ('onnx', 'onnxruntime', 'onnxscript', 'rembg')  # in requirements-optional.txt


def require(package: str, what: str) -> ModuleType:
    """Import `package` and return it. what: the part that needs it, for the message.

    Raises `UserError` that says how to install it when it is missing or broken."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = '' if error.name == package else f' ({one_line(error)})'
        raise UserError(f'{what} needs the package {package}{reason}: pip install -r requirements-optional.txt') from error


def missing_package(error: ImportError) -> str | None:
    """The line for an import that failed because a third-party package is missing or broken; None for other reasons."""
    package = (error.name or '').partition('.')[0]
    own = (TREE / package).is_dir() or (TREE / f'{package}.py').is_file()
    if not package or own or package in sys.stdlib_module_names:
        return None
    called = f' ({NAMES[package]})' if package in NAMES else ''
    reason = '' if isinstance(error, ModuleNotFoundError) else f', which cannot be imported ({one_line(error)})'
    file = 'requirements-optional.txt' if package in OPTIONAL else 'requirements.txt'
    return f'this script needs the package {package}{called}{reason}: pip install -r {file}'


def _is_script(file: str | None):
    """Whether the program that Python runs, whose file this is, belongs to this tree."""
    return file is not None and Path(file).resolve().is_relative_to(TREE)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None):
    """End a script that fails before its `main`, with the exit code of a user's error."""
    line = missing_package(error) if isinstance(error, ImportError) else None
    if line is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f'error: {line}', file=sys.stderr)
    raise SystemExit(2)


if _is_script(getattr(sys.modules['__main__'], '__file__', None)):  # a program that only imports this keeps its own hook
    sys.excepthook = _report
