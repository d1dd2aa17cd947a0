"""Packages that only some parts of the project need."""
import importlib
from types import ModuleType

from utils.errors import UserError


def require(package: str, what: str) -> ModuleType:
    """Import `package` and return it. what: needs it, for the message.

    Raises `UserError` that says how to install it when it is missing or broken."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = '' if error.name == package else f' ({" ".join(str(error).split())})'
        raise UserError(f'{what} needs the package {package}{reason}: pip install -r requirements-optional.txt') from error
