"""What README.md, docs/ and CONTRIBUTING.md point to is there: headings, files, commands, messages, the code of each step."""
import ast
import re
from pathlib import Path

import pytest
import yaml

from utils.config.keys import KEYS, NOBODY

ROOT = Path(__file__).resolve().parents[2]
README, CONTRIBUTING = (ROOT / name for name in ('README.md', 'CONTRIBUTING.md'))
PAGES = sorted((ROOT / 'docs').glob('*.md'))
SOURCES = [file for tree in ('pretrain', 'segmentation') for file in (ROOT / tree).rglob('*.py')
           if tree == 'pretrain' or file.relative_to(ROOT / tree).parts[0] not in ('data', 'models', 'utils')]


def anchors(text):
    """What GitHub makes of headings, those in code blocks left out."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r'^#+ (.*)', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', [README, CONTRIBUTING, *PAGES], ids=lambda path: path.name)
def test_links(document):
    text = document.read_text()
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    assert targets
    for target in targets:
        if not target.startswith('http'):
            file, _, anchor = target.partition('#')
            assert not file or (document.parent / file).exists(), target
            if anchor:
                assert anchor in anchors((document.parent / file if file else document).read_text()), target


def test_the_contents_list_every_chapter():
    contents = README.read_text().partition('## Contents')[2].partition('\n## ')[0]
    listed = set(re.findall(r'\(#([^)]+)\)', contents))
    chapters = {anchor for anchor in anchors(README.read_text()) if anchor != 'contents'}
    assert listed == chapters - {'unsupervised-semantic-segmentation-by-contrasting-object-mask-proposals'}


def test_experiment_files_in_commands_exist():
    found = [name for page in (README, *PAGES) for name in re.findall(r'configs/[\w/]+\.yml', page.read_text())]
    assert len(set(found)) >= 8
    for name in found:
        assert any((ROOT / tree / name).exists() for tree in ('', 'pretrain', 'segmentation')), name


def test_messages_of_the_troubleshooting_are_the_codes():
    """Each is in a string of the code, where '...' stands for a value."""
    table = (ROOT / 'docs' / 'troubleshooting.md').read_text().partition('| the line says |')[2].partition('\n\n')[0]
    messages = [message for row in table.splitlines()[2:] for message in re.findall('`([^`]+)`', row.split('|')[1])]
    assert len(messages) >= 20
    texts = [text for file in SOURCES for text in strings(ast.parse(file.read_text()))]
    for message in messages:
        pattern = re.escape(message).replace(re.escape('...'), r'\{\}')
        assert any(re.search(pattern, text) for text in texts), message


def strings(tree):
    """The texts of a module, with {} in the place of values, adjacent ones joined as Python does; no docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in statements:
            continue
        if isinstance(node, ast.JoinedStr):
            yield ''.join(part.value if isinstance(part, ast.Constant) else '{}' for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_step_of_the_method_has_its_line():
    """Rows of the table name functions or classes of a file, which have to be there."""
    rows = re.findall(r'^\| (\w\.\d+) \| [^|]+ \| ([^|]+) \|$', CONTRIBUTING.read_text(), flags=re.MULTILINE)
    counts = {'1': range(1, 5), '2': range(1, 7), 'v': range(1, 8), '3': range(16), '4': range(1, 15), '5': [1], '6': [1]}
    assert [number for number, _ in rows] == [f'{part}.{number}' for part in counts for number in counts[part]]
    for number, places in rows:
        found = re.findall(r'`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)', places)
        assert found and len(found) == places.count('.py`'), number
        for file, names in found:
            content = (ROOT / file).read_text()
            for name in re.findall('`([^`]+)`', names):
                assert re.search(rf'^\s*(def|class) {name}\b|^\s*([A-Z_]+, )*{name}\b.* = ', content, flags=re.MULTILINE), name


def test_keys_of_the_configuration_are_all_described():
    text = (ROOT / 'docs' / 'configuration.md').read_text().partition('## What a run leaves')[0]
    for key in KEYS:
        if key.readers != NOBODY:
            group, _, inner = key.name.rpartition('.')
            rows = [line for line in text.splitlines() if f'`{group}.' in line]
            assert f'`{key.name}`' in text or any(f'`.{inner}`' in row for row in rows), key.name


def test_shipped_experiments_say_their_command():
    files = [file for tree in ('pretrain', 'segmentation') for file in (ROOT / tree / 'configs').rglob('*.yml')]
    assert len(files) > 15
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict)
        tree = next(parent for parent in file.parents if parent.name == 'configs').parent
        if file.name != 'env.yml':
            assert str(file.relative_to(tree)) in file.read_text(), file
