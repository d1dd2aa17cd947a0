"""The value of one key: converted to its type and checked against its range."""
import os
from pathlib import Path
from typing import Any

from utils.config.keys import Key
from utils.errors import UserError, nearest_name

TREE = Path(__file__).resolve().parents[2]  # the script tree: relative paths in YAML files start here


def checked_value(key: Key, value: Any, file: str | Path) -> Any:
    """`value` as `key` wants it, or a `UserError`."""
    if not key.readers:
        return value
    if value is None:
        if key.default is None or key.nullable:
            return None
        raise UserError(f'{file}: {key.name} needs a value ({_TYPE_NAMES[key.type]})')
    converted = _CONVERT[key.type](value)
    if converted is None:
        raise UserError(f'{file}: {key.name} must be {_TYPE_NAMES[key.type]}, not {value!r}')
    choices = key.choices() if callable(key.choices) else key.choices
    if choices and converted not in choices:
        valid = [*choices, *(['null'] if key.default is None else [])]
        near = nearest_name(converted, valid)
        hint = f" (nearest: '{near}')" if near else ''
        raise UserError(f"{file}: {key.name} must be one of {', '.join(valid)}, not '{value}'{hint}")
    for bound, broken, words in ((key.minimum, lambda v, b: v < b, 'at least'),
                                 (key.maximum, lambda v, b: v > b, 'at most'),
                                 (key.above, lambda v, b: v <= b, 'more than')):
        if bound is not None and broken(converted, bound):
            raise UserError(f'{file}: {key.name} must be {words} {bound}, not {value}')
    return converted


def _float(value: Any):
    """YAML 1.1 reads `1e-3` as a string: numbers written so are numbers. Infinity and not-a-number are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float('inf') else None


def _int(value: Any):
    number = _float(value)
    whole = number is not None and not isinstance(value, float) and number == int(number)
    return int(number) if whole else None


def _ints(value: Any):
    numbers = [_int(item) for item in value] if isinstance(value, (list, tuple)) else [None]
    return None if None in numbers else numbers


def _size(value: Any):
    numbers = _ints(value)
    return numbers if numbers and len(numbers) == 2 and min(numbers) > 0 else None


def _layers(value: Any):
    """YAML's 1 is a number here, not True."""
    number = value if isinstance(value, bool) or value == 'all' else _int(value)
    return number if number is False or number == 'all' or number is not None and number >= 1 else None


def _strs(value: Any):
    return list(value) if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value) else None


def _path(value: Any):
    """Absolute, from the script tree; `scheme://...` names are not files and stay as they are."""
    if not isinstance(value, str) or not value:
        return None
    return value if '://' in value else str((TREE / os.path.expanduser(value)).resolve())


_CONVERT = {
    'int': _int, 'float': _float, 'ints': _ints, 'size': _size, 'strs': _strs, 'path': _path, 'layers': _layers,
    'bool': lambda value: value if isinstance(value, bool) else None,
    'str': lambda value: value if isinstance(value, str) and value else None,
}
_TYPE_NAMES = {
    'int': 'an integer', 'float': 'a number', 'ints': 'a list of integers', 'size': 'two positive integers',
    'strs': 'a list of names', 'path': 'a path', 'bool': 'True or False', 'str': 'a name',
    'layers': 'True, False, a number of stages from 1, or all',
}
