"One run without a paper: the commands train, evaluate, export, runs show and compare, and what they refuse."

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from avsrepro import cli
from avsrepro.analysis.shared import weights_of_test
from avsrepro.data.loading import open_splits, write_generated
from avsrepro.experiments.run import run_specs
from avsrepro.experiments.single import find_subject, negative_table, score_table, single_run, subject_record
from avsrepro.train.store import RunStore


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A store with two seeds of one row and one of another."
    place, before = tmp_path_factory.mktemp('cache'), os.environ.get('AVSREPRO_CACHE')
    os.environ['AVSREPRO_CACHE'] = str(place)
    changed = single_run('sdavs', 'ms3', 'smoke', changes=['train.ms3.lr=0.01'])
    specs = [single_run('sdavs', 'ms3', 'smoke', seed=s) for s in (0, 1)] + [changed]
    yield run_specs(specs, jobs=1, progress=False)
    os.environ.pop('AVSREPRO_CACHE')
    if before is not None:
        os.environ['AVSREPRO_CACHE'] = before


def said(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    "Exit code, output and errors of a command."
    monkeypatch.setattr(sys, 'argv', ['avsrepro', *map(str, words)])
    with pytest.raises(SystemExit) as e:
        cli.main()
        raise SystemExit(0)
    shown = capsys.readouterr()
    return e.value.code or 0, shown.out, shown.err


def test_scores_are_those_of_the_test(trained):
    "J by hand from the masks' own counts, the intervals around it."
    result = trained[0]
    table = score_table(result, open_splits(result.spec.data, 'ms3')['test'])
    J = np.mean([j for clip in result.scores for j in clip['J']]) * 100
    line = table[(table.metric == 'J') & (table.protocol == 'avsbench')].iloc[0]
    assert line.score == pytest.approx(J) and line.low <= line.score <= line.high and line.clips == 3
    assert (table.low <= table.score + 1e-9).all() and (table.score <= table.high + 1e-9).all()


def test_train_prints_the_run_and_reads_it_the_next_time(trained, monkeypatch, capsys):
    words = 'train --model sdavs --setting ms3 --profile smoke --quiet'.split()
    first = said(monkeypatch, capsys, *words)
    assert first[0] == 0 and first[1].startswith(trained[0].run_id) and first[2] == ''
    assert said(monkeypatch, capsys, *words)[1] == first[1]
    other = said(monkeypatch, capsys, *words, '--set', 'train.ms3.lr=0.01')
    assert other[1].startswith(trained[2].run_id)


def test_evaluate_takes_a_run_or_its_folder_and_gives_the_same(trained, monkeypatch, capsys, tmp_path):
    run = trained[0].run_id
    code, where, _ = said(monkeypatch, capsys, 'export', run[:8], tmp_path / 'model', '-q')
    assert (code, where.strip()) == (0, str(tmp_path / 'model'))
    ask = ('--negatives', '--quiet')
    by_run = said(monkeypatch, capsys, 'evaluate', run[:8], *ask)
    by_folder = said(monkeypatch, capsys, 'evaluate', tmp_path / 'model', *ask)
    assert by_run[0] == by_folder[0] == 0
    assert by_run[1].splitlines()[1:] == by_folder[1].splitlines()[1:]
    assert 'silence FPR' in by_run[1] and 'robust-fixed' in by_run[1]


def test_negatives_count_what_is_marked_in_silence(trained):
    "Against the masks themselves, with what is heard taken away by hand."
    from dataclasses import replace

    import torch

    from avsrepro.data.derived import front_end_mel

    subject = find_subject(trained[0].run_id)
    shares = []
    for clip in subject.clips:
        quiet = replace(clip, mel=front_end_mel(torch.zeros(1, 80_000), 5))
        with torch.no_grad():
            frames = subject.model.normalise(quiet.frames)[None]
            z = subject.model(frames, subject.model.audio.hear(quiet)[None]).logits[0, :, 0]
        shares.append((z > 0).float().mean().item())
    table = negative_table(subject)
    found = table[(table.protocol == 'robust-fixed') & (table.metric == 'silence FPR')].score.item()
    assert found == pytest.approx(100 * np.mean(shares), abs=0.5)


def test_data_of_ones_own_in_the_released_layout(trained, monkeypatch, capsys, tmp_path):
    "A folder of clips of another size: frames are brought to the model's."
    write_generated(tmp_path / 'own', ['ms3'], 1, bank='procedural', size=64, train=2, val=1, test=2)
    words = ('evaluate', trained[0].run_id, '--data', tmp_path / 'own', '--protocol', 'avsbench', '-q')
    code, out, err = said(monkeypatch, capsys, *words)
    assert code == 0 and '(avsbench, test)' in out, err
    subject = find_subject(trained[0].run_id, str(tmp_path / 'own'))
    assert tuple(subject.clips[0].frames.shape[-2:]) == (48, 48) and len(subject_record(subject).scores) == 2


def test_what_is_refused_is_one_sentence(trained, monkeypatch, capsys, tmp_path):
    run, other = trained[0].run_id, trained[2].run_id
    for words, expected in (
        (('train', '--model', 'slem'), "'selm'"),
        (('train', '--model', 'selm', '--setting', 'ms4'), "'s4'"),
        (('train', '--model', 'selm', '--set', 'epochs'), 'KEY=VALUE'),
        (('evaluate', 'deadbeef'), 'none of that name'),
        (('evaluate', 'zzz'), 'nothing of that name'),
        (('evaluate', run, '--protocol', 'avs'), 'avsbench'),
        (('evaluate', run, '--setting', 'avss'), 'tells 1 class'),
        (('evaluate', run, '--split', 'tset'), "'test'"),
        (('evaluate', tmp_path / 'none'), 'config.json'),
        (('export', 'zz'), 'none of that name'),
        (('runs', 'show', 'zz'), 'none of that name'),
        (('runs', 'compare', f'{run},{other}', run), 'seed alone'),
        (('push', tmp_path / 'none', 'ann/x'), 'config.json'),
    ):
        code, out, err = said(monkeypatch, capsys, *words)
        assert code == 2 and expected in err and err.strip().count('\n') == 0, (words, err)
        assert out == ''


def test_scenes_of_every_split_are_clips_of_their_own():
    "`voc_esc_val` has as many letters as the id of a video has: all its scenes were taken for one video."
    run = single_run('sdavs', 'ms3', 'smoke')
    for split in ('train', 'val', 'test'):
        ids = [f'voc_esc_{split}_{k:05d}' for k in range(30)]
        weights, shared = weights_of_test(run, ids, 50)
        drawn = weights @ np.arange(30.0) / weights.sum(1)
        assert shared.count == 30 and shared.interval(drawn).low < shared.interval(drawn).high


def test_show_and_compare(trained, monkeypatch, capsys):
    first, second, third = (r.run_id for r in trained)
    code, out, _ = said(monkeypatch, capsys, 'runs', 'show', first[:8])
    assert code == 0 and first in out and f'{100 * trained[0].means["J"]:.1f} [' in out
    record = json.loads(said(monkeypatch, capsys, 'runs', 'show', first, '--json')[1])
    assert record['scores'] == RunStore().get(first).scores
    one = said(monkeypatch, capsys, 'runs', 'compare', first, third)[1]
    assert one.count('not judged (one seed)') == 3
    both = said(monkeypatch, capsys, 'runs', 'compare', f'{first},{second}', f'{first},{second}')[1]
    assert 'not judged' not in both and '+0.0 [' in both


def test_the_module_and_the_shell_know_the_command():
    module = subprocess.run(
        [sys.executable, '-m', 'avsrepro', 'runs', 'show', 'zz'], capture_output=True, text=True
    )
    assert module.returncode == 2 and module.stderr.startswith('avsrepro: run zz') and not module.stdout
    asked = dict(_AVSREPRO_COMPLETE='complete_bash', COMP_WORDS='avsrepro ev', COMP_CWORD='1')
    told = subprocess.run(
        [sys.executable, '-m', 'avsrepro'], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert told.stdout.split() == ['evaluate']


def test_quiet_leaves_results_and_errors(trained, monkeypatch, capsys):
    code, out, err = said(monkeypatch, capsys, '--quiet', 'train', '--model', 'sdavs', '--profile', 'smoke')
    assert code == 0 and out.startswith(trained[0].run_id) and err == ''
    code, out, err = said(monkeypatch, capsys, '--quiet', 'train', '--model', 'slem')
    assert code == 2 and 'unknown model' in err and out == ''
