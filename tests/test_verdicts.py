"""The rule of verdicts: errors against independent formulas, coverage, words, and files of either rule."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avsrepro.analysis.calibration import WORLDS, World, seed_sets, simulate, simulated, with_itself
from avsrepro.analysis.shared import weights_of_test
from avsrepro.core.errors import InputError
from avsrepro.core.paths import results_dir
from avsrepro.experiments.registry import claims, experiments
from avsrepro.metrics.differences import (
    Effect,
    effect_of,
    pairable,
    pooled_noise,
    score_difference,
    weighted_clips,
)
from avsrepro.metrics.statistics import draws, weighted_mean
from avsrepro.metrics.verdicts import NO_SIGN, bounded, equivalence, settling, survives_holm, verdict
from avsrepro.report.beside import claimed_differences
from avsrepro.report.judging import EARLIER, NOT_RUN, claims_table, judge, published_effect, read_results
from avsrepro.report.tables import DIFFERENCE_COLUMNS, RunScores, long_table
from avsrepro.train.store import RunResult, RunSpec

ROWS = {'SDAVS(Ours)': 0.1, 'w/o SNRP': 0.0, 'w/o DAMF': 0.09, 'audio zeroed': -0.2}


def run(row: str, setting: str, seed: int, shift: float, epochs: int = 12, rise: float = 0.0) -> RunResult:
    "A run with made-up scores of 50 clips."
    r = np.random.default_rng([seed, *f'{row}{setting}'.encode()])
    ease = np.random.default_rng(9).normal(0.55, 0.1, 50)
    J = np.clip(ease + shift + r.normal(0, 0.01) + r.normal(0, 0.04, 50), 0, 1)
    scores = [dict(id=f'c{k}', J=[float(j)], F=float(j), sounding=[True]) for k, j in enumerate(J)]
    audio = 'zeroed' if row == 'audio zeroed' else 'normal'
    spec = RunSpec(
        row=row, setting=setting, model='sdavs', data=dict(source='procedural'), seed=seed, audio=audio
    )
    rest = dict(means={}, environment={}, duration_s=0.0, parameters={}, selected=1)
    history = [dict(epoch=e, val=0.5 + rise * e) for e in range(epochs)]
    return RunResult(run_id=f'{seed:016x}', spec=spec, scores=scores, history=history, **rest)


def runs(seeds: int = 4, shifts: dict = ROWS, **more) -> list[RunResult]:
    return [
        run(row, s, k, x, **more) for row, x in shifts.items() for s in ('s4', 'ms3') for k in range(seeds)
    ]


def crossed(rows: int = 3, seeds: int = 6, clips: int = 80, seed: int = 0) -> np.ndarray:
    "Scores [rows, seeds, clips] of a crossed design."
    r = np.random.default_rng(seed)
    y = 50 + r.normal(0, 8, clips) + r.normal(0, 1.5, (rows, seeds, 1)) + r.normal(0, 5, (rows, 1, clips))
    return y + r.normal(0, 3, (rows, seeds, clips))


def test_both_parts_of_the_error_against_formulas():
    y = crossed()
    _, S, C = y.shape
    e = score_difference(y[0], y[1], pool=[y[2]], same_seeds=False, n=20_000)
    between = y.mean(2).var(1, ddof=1).mean()  # within rows, 15 degrees of freedom
    assert np.isclose(e.value, (y[0] - y[1]).mean())
    assert np.isclose(e.se_run, (2 * between / S) ** 0.5)
    left = y - y.mean(1, keepdims=True)
    left = left - left.mean(2, keepdims=True)  # a run with a clip
    within = (left**2).sum() / (3 * (S - 1) * (C - 1)) / C
    d = y[0].mean(0) - y[1].mean(0)
    assert np.isclose(e.se_clip**2, d.var(ddof=1) / C - 2 * within / S, rtol=0.05)
    drawn = stats.bootstrap((d,), np.mean, n_resamples=5000, random_state=0)
    assert np.isclose(e.se_clip**2 + 2 * within / S, drawn.standard_error**2, rtol=0.08)
    parts = (2 * between / S, 15), (d.var(ddof=1) / C, C - 1), (-2 * within / S, 15 * (C - 1))
    df = sum(v for v, _ in parts) ** 2 / sum(v**2 / n for v, n in parts)
    assert np.isclose(e.df, df, rtol=0.05)


def test_seeds_that_rows_share_are_taken_out():
    y = crossed(seeds=6) + 5 * np.random.default_rng(1).normal(0, 1, (1, 6, 1))
    by_seed = score_difference(y[0], y[1], pool=[y[2]])
    each = y.mean(2)
    half = np.mean([(each[a] - each[b]).var(ddof=1) / 2 for a, b in ((0, 1), (0, 2), (1, 2))])
    assert np.isclose(by_seed.se_run, (2 * half / 6) ** 0.5)
    apart = score_difference(y[0], y[1], pool=[y[2]], same_seeds=False)
    assert apart.se_run > 2 * by_seed.se_run and np.isclose(apart.value, by_seed.value)


def test_a_clip_that_is_there_five_times_is_one_clip():
    y = crossed(clips=40)
    five, groups = y.repeat(5, 2), np.arange(40).repeat(5)
    once, grouped, alone = (
        score_difference(x[0], x[1], groups=g) for x, g in ((y, None), (five, groups), (five, None))
    )
    assert np.isclose(grouped.se_clip, once.se_clip, rtol=0.1) and alone.se_clip < 0.6 * once.se_clip


def test_order_of_rows_and_unequal_seeds():
    y = crossed(seeds=5)
    forth, back = (score_difference(a, b) for a, b in ((y[0], y[1]), (y[1], y[0])))
    assert np.isclose(forth.value, -back.value) and np.isclose(forth.se, back.se)
    few = score_difference(y[0], y[1][:2])
    assert np.isclose(few.value, (y[0][:2] - y[1][:2]).mean()) and few.seeds == 2  # the common seeds
    with pytest.raises(InputError, match='same clips'):
        score_difference(y[0], y[1][:, :9])


def test_a_sum_of_four_rows_counts_a_shared_row_once():
    y, w = crossed(rows=4), draws(80)
    found = {(k, s): weighted_mean(y[k, s], w) for k in range(4) for s in range(6)}
    noise = dict.fromkeys(range(4), pooled_noise(found, 80, False))
    assert pairable(found, (0, 1))
    twice = effect_of(found, {0: 1.0, 1: -2.0, 2: 1.0}, noise, 80)  # (0 - 1) - (1 - 2)
    one = noise[0].run
    assert np.isclose(twice.se_run**2, one * (1 + 4 + 1) / 6)
    four = effect_of(found, {0: 1.0, 1: -1.0, 2: -1.0, 3: 1.0}, noise, 80)
    assert np.isclose(four.se_run**2, one * 4 / 6) and np.isclose(four.value, y.mean((1, 2)) @ [1, -1, -1, 1])


@pytest.mark.parametrize('name', ['plain', 'a row with itself', 'few seeds', 'runs dominate'])
def test_coverage(name):
    "300 simulated experiments: 5 % within four standard errors of the count; clips alone is far beyond."
    found = simulate(WORLDS[name], n=300, seed=11).set_index('rule').share
    assert 0.01 < found['the rule'] < 0.105
    assert found['clips alone'] > 2 * found['the rule'] and found['clips alone'] > 0.12


def test_a_true_difference_is_found():
    "What is called visible in 80 % of cases is found in about that many."
    rng, w, hits, n = np.random.default_rng(4), draws(60, 400), 0, 200
    smallest = 1.9
    for _ in range(n):
        scores, _ = simulated(World(clips=60, row_clip=0.0, run_clip=2.0), rng)
        found = {k: weighted_mean(x, w) for k, x in scores.items()}
        noise = pooled_noise(found, 60)
        e = effect_of(found, {'row 0': 1.0, 'row 1': -1.0}, dict.fromkeys(('row 0', 'row 1'), noise), 60)
        hits += replace(e, value=e.value + smallest).interval().low > 0
    df, se = 12, (2 * (1 + 4 / 60) / 5) ** 0.5  # as put in: runs, and what they make of 60 clips
    power = stats.nct.sf(stats.t.ppf(0.975, df), df, smallest / se)
    assert abs(hits / n - power) < 0.1


def test_one_row_against_itself():
    r, w = np.random.default_rng(0), draws(50, 400)
    one = {s: weighted_mean(50 + r.normal(0, 2) + r.normal(0, 3, 50), w) for s in range(16)}
    for size in (1, 2, 5):
        found = with_itself(one, 50, size, 150)
        assert found['clips alone'].mean() > 0.4 and found['the rule'].mean() < 0.2
        assert all(len(set(s)) == 2 * size for s in found.seeds)
    with pytest.raises(InputError, match='do not make two sets'):
        seed_sets(range(3), 2)


def test_words():
    e = Effect(1.0, 0.3, 0.0, 20, 5)
    half = stats.t.ppf(0.975, 20) * 0.3
    for printed, word in (
        (1 + half * 0.99, 'reproduced'),
        (1 + half * 1.01, 'direction reproduced'),
        (-1, 'contradicted'),
    ):
        assert verdict(printed, e).word == word
    assert verdict(1, replace(e, value=0.5)).word == 'inconclusive'
    assert verdict(0, e).word == 'not judged' == verdict(2, replace(e, reason='one seed')).word
    assert verdict(None, e).word == '' and math.isclose(verdict(4.0, e).ratio, 0.25)
    inside, outside = replace(e, value=0.1), replace(e, value=2.0)
    assert [equivalence(0.8, x).word for x in (inside, e, outside)] == [
        'reproduced',
        'inconclusive',
        'contradicted',
    ]
    assert [bounded(0.8, x).word for x in (inside, e, outside)] == [
        'reproduced',
        'inconclusive',
        'contradicted',
    ]
    assert equivalence(0.8, replace(outside, value=-2.0)).word == 'contradicted'
    assert bounded(0.8, replace(outside, value=-2.0)).word == 'reproduced'
    with pytest.raises(InputError, match='margin'):
        equivalence(0.0, e)


def test_holm_by_hand():
    p = [0.001, 0.02, 0.012, 0.04, 0.001]
    contrasts = ['a', 'b', 'c', 'd', 'a']
    order, kept = sorted({'a': 0.001, 'b': 0.02, 'c': 0.012, 'd': 0.04}.items(), key=lambda x: x[1]), set()
    for k, (name, v) in enumerate(order):
        if v > 0.05 / (4 - k):
            break
        kept.add(name)
    assert survives_holm(p, contrasts).tolist() == [c in kept for c in contrasts]


def test_settling_reads_the_mean_of_the_seeds():
    up, down = 50 + np.arange(12), 61 - np.arange(12)
    assert not settling(up).settled and settling([up, down]).settled and not settling(up[:5]).settled
    assert math.isclose(settling(up).rise, 3) and settling(up).epochs == 12


def test_tables_judge_only_what_may_be_judged():
    tab03 = experiments()['sdavs', 'tab03']

    def words(results):
        _, d = long_table(tab03, RunScores(results), 'procedural', 'smoke')
        assert list(d) == DIFFERENCE_COLUMNS
        own = d[(d.metric == 'J') & d.published_delta.notna()]
        return set(own.verdict), set(own.reason)

    assert words(runs())[1] == {''} and 'not judged' not in words(runs())[0]
    assert words(runs(1)) == ({'not judged'}, {'one seed'})
    deaf = words(runs(shifts=ROWS | {'audio zeroed': 0.1}))
    assert deaf == ({'not judged'}, {'SDAVS(Ours) no better than silence'})
    assert words(runs(epochs=3))[0] == {'not judged'} and 'too few epochs' in words(runs(epochs=3))[1].pop()
    rising = words(runs(rise=0.01))
    assert rising[0] == {'not judged'} and any('validation still +3.0' in r for r in rising[1])


def test_a_claim_reads_from_a_file_what_the_runs_say(tmp_path):
    tab03, scores = experiments()['sdavs', 'tab03'], RunScores(runs())
    table, differences = long_table(tab03, scores, 'procedural', 'quick')
    folder = tmp_path / 'sdavs' / 'tab03'
    folder.mkdir(parents=True)
    for name, t in dict(
        table=table, differences=differences, effects=claimed_differences(tab03, scores)
    ).items():
        t.to_csv(folder / f'{name}.csv', index=False, float_format='%.4f')
    found = claims_table(tmp_path / 'sdavs').set_index('id')
    more = next(c for c in claims() if c.id == 'snrp-more')
    full, without = more.rows
    pair = [{('ms3', full): 1.0, ('ms3', without): -1.0}, {('s4', full): 1.0, ('s4', without): -1.0}]
    a, b = (scores.effect(p, more.metric) for p in pair)
    assert np.isclose(found.ours['snrp-more'], a.value - b.value, atol=1e-3)
    assert np.isclose(found.se_run['snrp-more'], math.hypot(a.se_run, b.se_run), atol=1e-3)
    single = scores.effect(pair[1], 'J&F')
    assert np.allclose(
        found.loc['snrp-s4', ['ours', 'low', 'high']].astype(float), single.interval(), atol=1e-3
    )
    assert found.verdict['snrp-s4'] != 'not judged' and found.verdict['stc-flops'] == NOT_RUN


def test_a_claim_of_no_difference_needs_no_printed_sign(tmp_path):
    "Printed alike: a claim that nothing is lost is judged by its margin, a difference is not judged."
    kept = next(c for c in claims() if c.id == 'tpavi-kept-f-ms3')
    row, against = kept.rows
    where = dict(row=row, setting='ms3', metric='positive F')
    score = dict(where, table='robust_tab02', ours=79.0, low=78.0, high=80.0)
    line = dict(where, against=against, ours_delta=0.6, low=0.0, high=1.2, se_run=0.3, se_clip=0.1, df=9.0)
    assert published_effect(kept) == 0 and verdict(0.0, Effect(0.6, 0.3, 0.1, 9.0)).reason == NO_SIGN
    for size, word in ((0.6, 'reproduced'), (5.0, 'contradicted')):
        pd.DataFrame([score]).to_csv(tmp_path / 'table.csv', index=False)
        told = dict(line, ours_delta=size, low=size - 0.7, high=size + 0.7, reason=NO_SIGN)
        pd.DataFrame([told]).to_csv(tmp_path / 'differences.csv', index=False)
        found = judge(kept, dict(robust_tab02=read_results(tmp_path)))
        assert (found['verdict'], found['reason']) == (word, '')


def test_pages_of_the_earlier_rule_are_read_and_not_judged(tmp_path):
    line = dict(
        row='w/o SNRP',
        against='SDAVS(Ours)',
        setting='s4',
        metric='J&F',
        ours_delta=-2.0,
        low=-3.0,
        high=-1.0,
    )
    score = dict(
        table='sdavs_tab03', row='w/o SNRP', setting='s4', metric='J&F', ours=50.0, low=49.0, high=51.0
    )
    pd.DataFrame([score]).to_csv(tmp_path / 'table.csv', index=False)
    pd.DataFrame([line]).to_csv(tmp_path / 'differences.csv', index=False)
    snrp = next(c for c in claims() if c.id == 'snrp-s4')
    found = judge(snrp, dict(sdavs_tab03=read_results(tmp_path)))
    assert (found['ours'], found['verdict'], found['reason']) == (2.0, 'not judged', EARLIER)
    assert math.isnan(found['low'])


@pytest.mark.parametrize('paper', ['sdavs', 'robust', 'selm', 'ddeseg'])
def test_committed_pages_of_one_seed_have_no_verdict(paper):
    folder = results_dir('quick', 'procedural', paper)
    if not folder.is_dir():
        pytest.skip('no committed results')
    found = claims_table(folder)
    judged = found[~found.verdict.isin(['not judged', NOT_RUN])]
    assert (judged.se_run == 0).all()  # what was counted, such as parameters
    assert found.reason[found.verdict == 'not judged'].str.len().gt(0).all()


def test_linked_clips_against_a_sum_by_hand():
    r = np.random.default_rng(5)
    parts = [(f'p{r.integers(12)}', f's{r.integers(9)}') for _ in range(50)]
    w, clips = weighted_clips(parts)
    x = r.normal(60, 5, 50)
    d = (x - x.mean()) / 50
    pairs = [(a, b) for a in range(50) for b in range(50) if set(parts[a]) & set(parts[b])]
    by_hand = sum(d[a] * d[b] for a, b in pairs)
    assert np.isclose(clips.count, 50**2 / len(pairs))
    wanted = max(by_hand, (d**2).sum()) * clips.count / (clips.count - 1)
    assert np.isclose(clips.variance(weighted_mean(x, w)), wanted, rtol=0.01)
    found = {(k, s): weighted_mean(x + k + r.normal(0, 1, 50), w) for k in range(2) for s in range(4)}
    e = effect_of(found, {1: 1.0, 0: -1.0}, dict.fromkeys((0, 1), pooled_noise(found, clips, False)), clips)
    assert e.known and 0.5 < e.value < 1.5
    assert (
        effect_of(found, {1: 1.0, 0: -1.0}, dict.fromkeys((0, 1), None), clips).reason
        == 'noise of seeds not known'
    )


def test_names_say_which_video_or_picture():
    spec = RunSpec(setting='s4', model='sdavs', data=dict(source='avsbench', root='x', key='y'))
    names = ['_7qRtN-abc1_1', '_7qRtN-abc1_2', '--KCIeTv6PM_1', 'procedural_test_00001']
    w, clips = weights_of_test(spec, names, 50)
    assert clips.count == 3 and clips.links is None and (w[:, 0] == w[:, 1]).all()
