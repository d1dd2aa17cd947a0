"""YAML files, in which the surprises of YAML 1.1 are errors: duplicate keys, `010` (it is 8) and `1:30` (it is 90)."""
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode

from utils.errors import UserError, one_line
from utils.storage.text import decoded_text

MERGE, INT, FLOAT = (f'tag:yaml.org,2002:{kind}' for kind in ('merge', 'int', 'float'))
LEADING_ZERO = re.compile(r'[-+]?0[0-9_]+')


class _Ambiguous(Exception):
    """A misleading value, in words."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        seen: dict[tuple[str, str], ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != MERGE:
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    raise _Ambiguous(f"the key '{key.value}' appears twice, in line {_line(first)} and in line {_line(key)}: "
                                     'remove one of them')
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        node = super().compose_scalar_node(anchor)
        assert node is not None
        text = node.value
        if node.tag == INT and LEADING_ZERO.fullmatch(text):
            number = self.construct_yaml_int(node)
            decimal = text.lstrip('+-0_').replace('_', '') or '0'
            meant = str(number) if abs(number) == int(decimal) else f'{"-" * text.startswith("-")}{decimal} or {number}'
            raise _Ambiguous(f"{text} in line {_line(node)} is an octal number in YAML: write {meant}, or '{text}' for a name")
        if node.tag in (INT, FLOAT) and ':' in text:
            number = self.construct_object(node)
            raise _Ambiguous(f"{text} in line {_line(node)} is a number in base 60 in YAML: write {number}, or '{text}' for a "
                             'name')
        return node


def _line(node: yaml.Node):
    return node.start_mark.line + 1


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises `UserError` with file and line for one that can't be read, is not a mapping, or
    contains a misleading value."""
    try:
        text = decoded_text(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(f'{path}: the configuration file could not be read ({reason})') from error
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected a YAML mapping of keys to values')
    return content


def parse_yaml(text: str, path: str | Path) -> Any:
    """The content of a YAML text: plain values alone. path: of its file, for messages. Raises as `read_yaml` does."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _Ambiguous as error:
        raise UserError(f'{path}: {error}') from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # `2020-13-45`, for example, is a ValueError
        mark = getattr(error, 'problem_mark', None)
        where = f' in line {mark.line + 1}' if mark else ''
        raise UserError(f'{path}: not valid YAML{where}: {getattr(error, "problem", None) or one_line(error)}') from error
