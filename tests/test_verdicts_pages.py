"Pages that ask their own questions: measures run by run, words by the one rule, and no second rule."

import json
import re

import numpy as np
import pandas as pd
import pytest

from avsrepro.analysis.responses import Factor, effects
from avsrepro.analysis.scores import with_freedom
from avsrepro.core.paths import repo_root
from avsrepro.experiments.registry import experiments
from avsrepro.experiments.schema import Experiment, Row
from avsrepro.metrics.differences import Effect, score_difference
from avsrepro.metrics.verdicts import VERDICTS, Verdict, equivalence, sided
from avsrepro.report.measures import (
    Answers,
    answer_text,
    covered,
    drawn_measures,
    gap_text,
    read_answers,
    told,
)
from avsrepro.report.tables import DIFFERENCE_COLUMNS, word_with
from avsrepro.report.template import page_text, short_table
from avsrepro.train.store import RunResult, RunSpec

PAGES = {
    'selm': ('q1_alignment', 'q2_sequences', 'q3_slip', 'q4_illusions', 'fig05_selection'),
    'robust': ('q1_front_ends', 'q3_others', 'q4_sdavs', 'fig04_similarity'),
    'ddeseg': ('q1_derivation', 'q4_protocols', 'q6_released', 'fig06_embeddings'),
    'sdavs': ('fig05_selectors', 'fig06_damf', 'fig07_parts', 'fig08_responses', 'tab07_consistency'),
}
TWO = Experiment('selm', 'q1', 'A question', ('ms3',), (Row('one', 'selm'), Row('other', 'selm')), 'one')


def run(row: str, seed: int, rise: float = 0.0) -> RunResult:
    "A run of 30 clips whose validation rises so much an epoch."
    spec = RunSpec(row=row, setting='ms3', model='selm', data=dict(source='procedural'), seed=seed)
    rest = dict(means={}, environment={}, duration_s=0.0, parameters={}, selected=1)
    history = [dict(epoch=e, val=0.3 + rise * e) for e in range(12)]
    scores = [dict(id=f'c{k}') for k in range(30)]
    return RunResult(run_id=f'{row}{seed}', spec=spec, scores=scores, history=history, **rest)


def measured(seeds: int, gap: float = 0.0, rise: float = 0.0) -> tuple[list[RunResult], pd.DataFrame]:
    "Runs of two rows, and J of three frames of every clip, the second row `gap` above."
    results = [run(row, seed, rise) for row in ('one', 'other') for seed in range(seeds)]
    r, parts = np.random.default_rng(3), []
    ease = r.normal(50, 6, 30)
    for result in results:
        J = ease + gap * (result.spec.row == 'other') + r.normal(0, 1) + r.normal(0, 2, 30)
        where = dict(row=result.spec.row, seed=result.spec.seed, id=[c['id'] for c in result.scores])
        for frame in range(3):
            fall = 1 + 0.1 * result.spec.seed if result.spec.row == 'one' else 0.0
            parts.append(pd.DataFrame(where | dict(frame=frame, J=J, fall=fall)))
    return results, pd.concat(parts, ignore_index=True)


def test_a_measure_has_the_error_of_the_rule():
    results, found = measured(5, gap=4.0)
    scores = drawn_measures(results, found, ('J', 'fall'))
    per_clip = found.groupby(['row', 'seed', 'id'], sort=False).J.mean()
    a, b = (per_clip[row].to_numpy().reshape(5, 30) for row in ('other', 'one'))
    ours, rule = scores.effect({('ms3', 'other'): 1.0, ('ms3', 'one'): -1.0}, 'J'), score_difference(a, b)
    assert np.isclose(ours.value, (a - b).mean()) and np.isclose(ours.se_run, rule.se_run)
    assert np.isclose(ours.se, rule.se) and np.isclose(ours.df, rule.df)
    assert covered(results) == 'over seeds and clips' and covered(results[:5]) == 'over seeds and clips'


def test_what_a_row_does_within_itself_has_its_own_noise():
    "What moves in one row says nothing of another in which nothing moves."
    results, found = measured(5)
    scores = drawn_measures(results, found, ('fall',))
    assert scores.score('other', 'ms3', 'fall') == (0, 0, 0)
    of_one = scores.effect({('ms3', 'one'): 1.0}, 'fall')
    assert np.isclose(of_one.se, np.std(1 + 0.1 * np.arange(5), ddof=1) / 5**0.5) and np.isclose(of_one.df, 4)


@pytest.mark.parametrize('gap,word', [(6.0, 'better'), (-6.0, 'worse'), (0.0, 'inconclusive')])
def test_five_seeds_are_judged(gap, word):
    results, found = measured(5, gap)
    answers = Answers(TWO, drawn_measures(results, found, ('J',)))
    line = answers.ask('other', 'one', 'ms3', 'J', above='better', below='worse')
    assert line['verdict'] == word and np.isfinite(line['smallest'])
    assert line['low'] < line['ours_delta'] < line['high']
    assert word in answer_text(line) and list(answers.table) == DIFFERENCE_COLUMNS
    assert ('visible from' in answer_text(line)) == (word == 'inconclusive')


def test_one_seed_is_not_judged_and_has_no_interval_of_seeds():
    results, found = measured(1, 20.0)
    scores = drawn_measures(results, found, ('J', 'fall'))
    answers = Answers(TWO, scores)
    line = answers.ask('other', 'one', 'ms3', 'J', printed=20.0)
    assert (line['verdict'], line['reason']) == ('not judged', 'one seed') and np.isnan(line['low'])
    within = answers.ask('one', 'itself', 'ms3', 'fall', rows={'one': 1.0}, above='loses')
    assert within['verdict'] == 'not judged' and '[' not in gap_text(within)
    assert covered(results) == 'over clips of one run'
    text = read_answers(answers.table)
    assert 'nan' not in text and '- ->' not in text and text.count('not judged (one seed)') == 2


def test_a_row_that_still_learns_is_not_judged():
    results, found = measured(5, 20.0, rise=0.05)
    answers = Answers(TWO, drawn_measures(results, found, ('J',)))
    line = answers.ask('other', 'one', 'ms3', 'J')
    assert line['verdict'] == 'not judged' and 'not settled' in line['reason'] and line['low'] > 0
    sure = Effect(3.0, 0.1, 0.1, 8, 5)
    assert told(answers, sure, 'ms3', ['one']).startswith('not judged (one not settled')
    assert told(answers, sure, 'ms3') == 'higher'  # an untrained model has no curve


def test_words_without_a_printed_number():
    "The words of the rule, and a page's own for the two sides; nothing else."
    wide, near, far = Effect(0.2, 2.0, 1.0, 8, 5), Effect(0.2, 0.1, 0.1, 8, 5), Effect(4.0, 0.3, 0.3, 8, 5)
    asked = dict(above='direction reproduced', below='contradicted', within='equal')
    assert [sided(e, **asked).word for e in (far, Effect(-4.0, 0.3, 0.3, 8, 5), near, wide)] == [
        'direction reproduced',
        'contradicted',
        'equal',
        'inconclusive',
    ]
    assert equivalence(1.0, near).word == 'reproduced' and np.isclose(
        sided(near, **asked).p, equivalence(1.0, near).p
    )
    assert sided(Effect(4.0, 0.3, 0.3, 8, 1, 'one seed')).text() == 'not judged (one seed)'
    assert 'nan' not in Verdict('direction reproduced').text() and sided(wide).word in VERDICTS


def test_changes_of_responses_cover_seeds():
    "A change between the steps of a model is taken in every run, in logarithms, and comes back as a factor."
    r, parts = np.random.default_rng(0), []
    for seed in range(4):
        x = r.normal(0, 0.5, (12, 2))
        for step, log in (('before', x), ('after', x + 0.7 + 0.05 * seed)):
            for k, frame in np.ndindex(*x.shape):
                parts.append(dict(seed=seed, id=f'c{k}', frame=frame, step=step, value=log[k, frame]))
    frames = pd.DataFrame(parts).assign(row='a', log=True)
    one = effects(frames, dict(row=['a']), 'step', dict(after='before'), ['before', 'after']).iloc[1]
    change = 0.7 + 0.05 * np.arange(4)
    assert isinstance(one.change, Factor) and np.isclose(one.change.value, np.exp(change.mean()))
    assert np.isclose(one.effect.se_run, change.std(ddof=1) / 2) and one.effect.seeds == 4
    assert one.change.low > 1 and one.frames == 24
    first = effects(
        frames[frames.seed == 0], dict(row=['a']), 'step', dict(after='before'), ['before', 'after']
    )
    assert np.isnan(first.change[1].low) and np.isfinite(first.value[1].low)  # over the clips of that run
    assert first.effect[1].reason == 'one seed'


def test_answers_stand_on_the_page_below_its_short_table():
    results, found = measured(5, 6.0)
    answers = Answers(TWO, drawn_measures(results, found, ('J',)))
    line = answers.ask('other', 'one', 'ms3', 'J', printed=3.0)
    page = experiments()['selm', 'q1']
    said = [f'What it is: {answer_text(line)} points.']
    text = page_text(page, '# Q', '# Q\n\nAll of it.', answers.table, ['figure'], 'links', '', said)
    order = [
        text.index(part) for part in ('# Q', '![figure]', '| other', '- What it is', 'Smallest', '<details>')
    ]
    assert order == sorted(order) and 'nan' not in text
    assert max(map(len, short_table(answers.table).splitlines())) <= 120


OLD = re.compile(r'\b(word_of|over_clips|paired_bootstrap|class_interval|score_interval|t_interval)\b')


@pytest.mark.parametrize('paper', PAGES)
def test_pages_have_no_second_rule(paper):
    "No page words an interval over clips by itself."
    found = {}
    for name in PAGES[paper]:
        path = repo_root() / 'nbs' / 'papers' / paper / f'{name}.ipynb'
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
        found[name] = sorted(set(OLD.findall(code)))
    assert not {name: words for name, words in found.items() if words}


@pytest.mark.parametrize(
    'words,expected',
    [
        (('above 1', 'above 1', 'above 1', 'above 1', 'below 1'), 'direction reproduced'),
        (('above 1', 'above 1', 'above 1', 'inconclusive', 'above 1'), 'inconclusive'),
        (('above 1', 'below 1', 'above 1', 'below 1', 'above 1'), 'inconclusive'),
        (('below 1', 'inconclusive', 'above 1', 'above 1', 'above 1'), 'contradicted'),
        (('above 1', 'above 1', 'below 1', 'above 1', 'above 1'), 'contradicted'),
        (('below 1', 'above 1', 'above 1', 'not judged', 'above 1'), 'not judged (one seed)'),
    ],
)
def test_the_word_for_a_stage_of_what_the_selection_leaves(words, expected):
    "Figure 5 of SelM: four changes make the word, the fifth does not."
    path = repo_root() / 'nbs' / 'papers' / 'selm' / 'fig05_selection.ipynb'
    cells = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    (rule,) = (c.split('\n\n\n')[0] for c in cells if c.startswith('def stage_word'))
    changes = ['by BCSM', 'by BCSM, beyond untrained', 'with over without']
    changes += ['with over without, beyond untrained', 'owed to the sound']
    known = dict(NEEDED=changes[:4], word_with=word_with)
    exec(rule, known)
    rest = dict(metric='log2 factor', ratio=np.nan, smallest=0.1)
    of = {c: rest | dict(verdict=w, reason='one seed' * (w == 'not judged')) for c, w in zip(changes, words)}
    assert known['stage_word'](of) == expected


def test_less_than_one_degree_of_freedom_is_no_interval():
    "Two seeds and two clips leave nothing to make an interval from; the page says so instead of 1e40."
    results, found = measured(2, 1.0)
    few = found[found.id.isin(['c0', 'c1'])]
    scores = drawn_measures(results, few, ('J', 'fall'))
    for row in ('one', 'other'):
        i = scores.score(row, 'ms3', 'J')
        assert np.isnan(i.low) or i.high - i.low < 1e4
    assert with_freedom(Effect(1.0, 0.2, 0.2, 0.4, 2)).reason == 'too few runs and clips'
