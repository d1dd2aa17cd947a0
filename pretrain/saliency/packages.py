"""Packages that only saliency networks need."""
import importlib

from utils.errors import UserError


def require(package):
    """Import `package` and return it. Raises `UserError` that says how to install it when it is missing or broken."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = '' if error.name == package else f' ({" ".join(str(error).split())})'
        raise UserError(f'this saliency network needs the package {package}{reason}: '
                        'pip install -r requirements-saliency.txt') from error
