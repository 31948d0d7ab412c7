"""README.md and docs/ against the tree that they describe."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_readme_is_at_most_9000_bytes():
    assert (ROOT / "README.md").stat().st_size <= 9_000


@each_page
def test_python_files_named_on_a_page_exist(page):
    named = re.findall(r"`((?:diva|benchmarks|tests)/[\w/]+\.py)`", page.read_text())
    assert [path for path in named if not (ROOT / path).is_file()] == []


@each_page
def test_tests_named_on_a_page_exist(page):
    written = "".join(file.read_text() for file in ROOT.glob("tests/**/test_*.py"))
    named = re.findall(r"`(test_\w+)`", page.read_text())
    assert [name for name in named if f"def {name}(" not in written] == []


@each_page
def test_commands_on_a_page_exist(page):
    text = page.read_text()
    modules = set(re.findall(r"\bpython -m ((?:diva|benchmarks)[\w.]*)", text))
    assert [name for name in sorted(modules) if find_spec(name) is None] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert sorted(made - targets) == []
