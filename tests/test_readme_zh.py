"""The README in Chinese says what the README says: the same commands, tables, links and figures, section by section."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN_LINKS = {"README.md", "README.zh.md"}  # to the other language
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))


def sections(page):
    """The page cut at its headings, the level of each before its text."""
    parts = re.split(r"^(#+) .*$", page, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code(text):
    """The lines of code blocks, without their comments, which are translated."""
    lines = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    return [re.sub(r" +# .*", "", line) for line in lines]


def rows(text):
    """The cells of each line of its tables."""
    return [re.split(r" *\| *", line.strip("| ")) for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)]


def spans(text):
    """Code within sentences, on one line each."""
    return sorted(re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def links(text):
    return sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - OWN_LINKS)


def figures(text):
    """The numbers, of one digit and more."""
    return sorted(re.findall(r"\d+(?:\.\d+)*", text))


def test_both_have_the_same_sections():
    assert [level for level, _ in sections(ENGLISH)] == [level for level, _ in sections(CHINESE)]


@pytest.mark.parametrize("part", [code, spans, links, figures])
@pytest.mark.parametrize("index", range(len(sections(ENGLISH))))
def test_every_section_has_the_same(part, index):
    (_, english), (_, chinese) = sections(ENGLISH)[index], sections(CHINESE)[index]
    assert part(chinese) == part(english)


def test_the_tables_have_the_same_shape_and_figures():
    english, chinese = rows(ENGLISH), rows(CHINESE)
    assert len(english) >= 17
    assert [len(row) for row in chinese] == [len(row) for row in english]
    for own, other in zip(chinese, english, strict=True):
        for cell, plain in zip(own, other, strict=True):
            assert (figures(cell), spans(cell), links(cell)) == (figures(plain), spans(plain), links(plain))
            assert bool(cell) == bool(plain)


def test_it_is_chinese():
    """Half of the letters outside of code and links, and more."""
    prose = re.sub(r"^ {4,}.*$|`[^`]*`|\]\([^)]*\)", "", CHINESE, flags=re.MULTILINE)
    han, latin = len(re.findall(r"[\u4e00-\u9fff]", prose)), len(re.findall(r"[A-Za-z]", prose))
    assert han > latin > 0
