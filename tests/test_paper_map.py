"""docs/paper_map.md leaves out nothing of the paper, and everything that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in (ROOT / 'docs/paper_map.md').read_text(encoding='utf-8').splitlines()
    if line.startswith('|') and not line.startswith(('|---', '| paper'))
]
NUMBERED = {
    *(f'Eq. {number}' for number in range(1, 13)),
    *(f'Table {number}' for number in range(1, 6)),
    *(f'Fig. {number}' for number in (1, 2, 3, 4, 5, '6a, 6b', '7a', '7b', '7c', '7d', '7e', '7f', 8)),
}


def missing(reference: str) -> str | None:
    """What is missing of ``file.py:Class.method``, ``file.py:function`` or a file, read without importing it."""
    path, _, qualified = reference.partition(':')
    if not (ROOT / path).is_file():
        return path
    body = ast.parse((ROOT / path).read_text(encoding='utf-8')).body
    for name in qualified.split('.') if qualified else ():
        found = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
        if not found:
            return f'{name} of {reference}'
        body = found[0].body
    return None


def references(cell: str) -> list[str]:
    """The files, functions, configs and commands that the last column of a row names."""
    spans = re.findall(r'`([^`]+)`', cell)
    commands = [re.search(r'tools/[\w/]+\.py', span)[0] for span in spans if span.startswith('python ')]
    return [span for span in spans if re.match(r'\w+/', span)] + commands


def test_no_equation_table_or_figure_is_left_out():
    assert {row[0] for row in ROWS if not row[0].startswith('Sec.')} == NUMBERED


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row[0]} {row[1]}'[:40])
def test_a_row_names_code_that_exists_or_says_that_there_is_none(row):
    assert len(row) == 3
    named = references(row[2])
    assert named or 'no code' in row[2]
    assert [absent for reference in named if (absent := missing(reference))] == []


@pytest.mark.parametrize(
    ('reference', 'absent'),
    [
        ('pixnerd_plugin/absent.py:f', 'pixnerd_plugin/absent.py'),
        ('pixnerd_plugin/sampling/guidance.py:guided', 'guided of pixnerd_plugin/sampling/guidance.py:guided'),
        ('pixnerd_plugin/sampling/guidance.py:guide', None),
        (
            'pixnerd_plugin/sampling/samplers.py:FlowSampler.absent',
            'absent of pixnerd_plugin/sampling/samplers.py:FlowSampler.absent',
        ),
        ('mm_configs/absent.py', 'mm_configs/absent.py'),
    ],
)
def test_what_was_renamed_is_found(reference, absent):
    assert missing(reference) == absent
