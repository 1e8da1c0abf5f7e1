"""What the register says a paper writes, the paper writes."""

import re

import pytest
from papers_texts import TEXTS, plain, text_of

from avsrepro.report.register import REGISTER_COLUMNS, register, register_lines


@pytest.mark.parametrize('paper', TEXTS)
def test_quotes_are_the_papers_words_in_their_order(paper):
    text, lines = text_of(paper), register(paper)
    for line in lines[lines.quote != ''].itertuples():
        place = 0
        for piece in line.quote.split(' […] '):
            assert len(piece.split()) > 2, line.item
            found = text.find(plain(piece), place)
            assert found >= 0, f'{line.item}: {piece}'
            place = found + 1


def test_what_the_text_calls_it_is_quoted():
    # lines about a word of the text, without a number that a table could be asked for
    words = {
        'sdavs': ('significantly fewer', '+2.3 %'),
        'robust': ('minimal', 'F1, precision and recall weighed equally', '10^-5'),
        'selm': ('no gain',),
        'ddeseg': ('6.4 %', '11.25 %'),
    }
    for paper, printed in words.items():
        lines = register(paper).set_index('printed')
        assert all(lines.quote[p] for p in printed), paper
    assert sum(bool(q) for q in register().quote) >= 16


def test_numbers_in_a_quoted_percentage_stand_in_the_printed_column():
    lines = register('sdavs').set_index('item')
    e = lines.loc['Section IV-G, gain over CAVP on VPO-MSMI, mIoU']
    assert re.search(r'\+([\d.]+)%', e.quote)[1] == e.printed.strip('+ %')


def test_pages_show_lines_without_quotes():
    assert REGISTER_COLUMNS[-1] == 'quote'
    shown = register_lines('robust', r'^Supplement A.5')
    assert shown.count('\n') == 3 and 'quote' not in shown and 'competitive' in shown


def test_multiplication_over_addition_is_the_right_way_round():
    e = register('sdavs').set_index('item').loc['Table VIII, gain of multiplication over addition, MS3']
    exact = (72.3 + 80.8) / 2 - (71.6 + 79.9) / 2  # of Table VIII, both means unrounded
    rounded = 76.6 - (71.6 + 79.9) / 2  # with the full row's J&F as it is printed
    assert e.corrected.startswith(f'+{exact:.1f} (+{rounded:.2f} with the printed 76.6')
