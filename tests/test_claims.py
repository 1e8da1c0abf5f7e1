"""What the claims say is what the papers say: quotes in the texts, stated effects from the printed tables."""

import re
import unicodedata
from pathlib import Path

import pytest

from avsrepro.core.paths import repo_root
from avsrepro.experiments.registry import claims

TEXTS = dict(sdavs='sdavs', ddeseg='ddeseg', robust='avsbench_robust', selm='selm')

# What only a table says, without a word in the text.
TABLE_ALONE = {
    'sdavs': {'swin-s4', 'swin-ms3', 'swin-avss'},
    'selm': {f'selm-pvt-{s}' for s in ('s4', 'f-s4', 'ms3', 'f-ms3', 'avss', 'f-avss')},
}


def papers() -> Path:
    "The folder of the papers' texts, beside a checkout or in /work/shared; the test is skipped without it."
    for folder in (repo_root() / 'shared' / 'papers', Path('/work/shared/papers')):
        if folder.is_dir():
            return folder
    pytest.skip("the papers' texts are not here")


def plain(text: str) -> str:
    "Letters, digits and signs alone: no white space, hyphens, mark-up of formulas, kinds of quotation marks."
    text = unicodedata.normalize('NFKC', text)
    text = re.sub(r'\\(?:mathcal|mathbf|text|mathbb)\s*', '', text).replace('\\beta', 'β')
    text = text.replace('’', "'").replace('‘', "'").replace('“', '"').replace('”', '"')
    return re.sub(r'[\s\-–—$\\{}*]', '', text)


def test_plain_joins_what_a_line_end_parts():
    assert plain('positive au-\n\ndio  metrics') == plain('positive audio metrics')
    assert plain(r'$\mathcal{J}\&\mathcal{F}_m$ \ufb01x') != plain('J&F_n')
    assert plain('$\\mathcal{J} \\& \\mathcal{F}_\\beta$ e\ufb03cient') == plain('J&F_β efficient')


@pytest.mark.parametrize('paper', TEXTS)
def test_quotes_are_the_papers_words(paper):
    text = plain((papers() / f'{TEXTS[paper]}.txt').read_text(encoding='utf-8'))
    quoted = [c for c in claims() if c.paper == paper and c.quote]
    assert quoted
    assert not [f'{c.id}: {c.quote}' for c in quoted if plain(c.quote) not in text]
    assert not [c.id for c in quoted if len(c.quote.split()) < 3 or len(c.quote) > 220]


@pytest.mark.parametrize('paper', TEXTS)
def test_claims_without_words_are_those_that_tables_make(paper):
    assert {c.id for c in claims() if c.paper == paper and not c.quote} == TABLE_ALONE.get(paper, set())
