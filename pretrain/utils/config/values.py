"""The value of one key: converted to its type and checked against its range."""
import datetime
import os
import re
from pathlib import Path
from typing import Any

from utils.config.keys import Key
from utils.errors import UserError, nearest_name

TREE = Path(__file__).resolve().parents[2]  # the script tree: relative paths in YAML files start here
VARIABLE = re.compile(r'\$(?:\$|(\w+)|\{([^}]*)\})')  # $$ is a $
NULL = 'None'  # Python's word; that of YAML is null


def checked_value(key: Key, value: Any, file: str | Path) -> Any:
    """`value` converted to the type of `key`, or a `UserError`."""
    if not key.readers:
        return value
    if value is None:
        if key.default is None or key.nullable:
            return None
        raise UserError(f'{file}: {key.name} needs a value ({_TYPE_NAMES[key.type]})')
    if value == NULL and (key.default is None or key.nullable):
        raise UserError(f'{file}: {key.name}: write null instead of {NULL}, which YAML reads as text')
    converted = _path(value, f'{file}: {key.name}') if key.type == 'path' else _CONVERT[key.type](value)
    if converted is None:
        raise UserError(f'{file}: {key.name} must be {_TYPE_NAMES[key.type]}, not {value!r}{_hint(key.type, value)}')
    if key.choices and converted not in key.choices:
        valid = [*key.choices, *(['null'] if key.default is None else [])]
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
    if isinstance(value, str) and re.match(r'\s*[-+]?0[\d_]', value):  # octal or decimal? YAML takes 08 for a string
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


def path_text(path: str | Path) -> str:
    """How a path is written into a YAML file, where `$` begins the name of a variable."""
    return str(path).replace('$', '$$')


def _path(value: Any, where: str):
    """Absolute, from the script tree, with `~` and environment variables replaced; `scheme://...` names are not files and stay
    as they are. where: file and key, for messages."""
    if not isinstance(value, str) or not value:
        return None

    def content(found: re.Match[str]):
        name = found[1] if found[2] is None else found[2]
        if found[0] == '$$':
            return '$'
        if not os.environ.get(name):
            raise UserError(f'{where}: {value} names the environment variable {name}, which is '
                            f'{"empty" if name in os.environ else "not set"}: set it, or write the path itself ($$ for a $)')
        return os.environ[name]
    path = VARIABLE.sub(content, os.path.expanduser(value))
    if '://' in path:
        return path
    if path.startswith('~'):
        raise UserError(f'{where}: {value}: there is no user {path[1:].partition("/")[0]} on this machine (write ./~ for a '
                        'name that starts with ~)')
    return str((TREE / path).resolve())


def _hint(kind: str, value: Any):
    """The hint for a name that YAML reads as another type."""
    taken = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, (bool, datetime.date))]
    if taken and kind in ('str', 'strs', 'path'):
        return ': YAML does not read yes, no, on, off and dates as text; put quotes around such a name'
    return ''


_CONVERT = {
    'int': _int, 'float': _float, 'ints': _ints, 'size': _size, 'strs': _strs, 'layers': _layers,
    'bool': lambda value: value if isinstance(value, bool) else None,
    'str': lambda value: value if isinstance(value, str) and value else None,
}
_TYPE_NAMES = {
    'int': 'an integer', 'float': 'a number', 'ints': 'a list of integers', 'size': 'two positive integers',
    'strs': 'a list of names', 'path': 'a path', 'bool': 'True or False', 'str': 'a name',
    'layers': 'True, False, a number of stages from 1, or all',
}
