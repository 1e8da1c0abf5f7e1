"""The papers' texts, where they are, and what counts as the same words."""

import re
import unicodedata
from functools import cache

import pytest

from avsrepro.core.paths import repo_root

TEXTS = dict(sdavs='sdavs', ddeseg='ddeseg', robust='avsbench_robust', selm='selm')


def plain(text: str) -> str:
    "Letters, digits and signs alone: no white space, hyphens, mark-up of formulas, kinds of quotation marks."
    text = unicodedata.normalize('NFKC', text)
    text = re.sub(r'\\(?:mathcal|mathbf|text|mathbb)\s*', '', text).replace('\\beta', 'β')
    text = text.replace('’', "'").replace('‘', "'").replace('“', '"').replace('”', '"')
    return re.sub(r'[\s\-–—$\\{}*]', '', text)


@cache
def text_of(paper: str) -> str:
    "The plain text of a paper; the test is skipped where it is not here."
    for folder in (repo_root() / 'shared' / 'papers', repo_root().parent / 'shared' / 'papers'):
        path = folder / f'{TEXTS[paper]}.txt'
        if path.is_file():
            return plain(path.read_text(encoding='utf-8'))
    pytest.skip(f'the text of {paper} is not here')
