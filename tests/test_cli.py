"The command line: bad input is one line and exit code 2; a smoke run writes all files, once."

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from avsrepro import cli
from avsrepro.core.paths import repo_root
from avsrepro.report.tables import RESULT_COLUMNS

NOTEBOOK = repo_root() / 'nbs' / 'papers' / 'sdavs' / 'tab03_modules.ipynb'


def fails(capsys, monkeypatch, *args) -> str:
    "What the command says when it ends with exit code 2: one line."
    monkeypatch.setattr(sys, 'argv', ['avsrepro', *map(str, args)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    err = capsys.readouterr().err.strip()
    assert e.value.code == 2, err
    return err


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def environment(cache: Path) -> dict:
    return {
        **os.environ,
        'AVSREPRO_CACHE': str(cache),
        'AVSREPRO_RESULTS': str(cache / 'results'),
        'HF_HUB_OFFLINE': '1',
    }


def reproduce_tab03(cache: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'avsrepro.cli', 'reproduce', '--paper', 'sdavs', '--only', 'tab03']
    command += ['--profile', 'smoke']
    return subprocess.run(command, env=environment(cache), capture_output=True, text=True)


@pytest.fixture(scope='module')
def smoke(cache) -> Path:
    "Results of `avsrepro reproduce --profile smoke`."
    done = reproduce_tab03(cache)
    assert done.returncode == 0, done.stderr[-3000:]
    return cache / 'results' / 'smoke' / 'procedural' / 'sdavs' / 'tab03'


@pytest.mark.parametrize(
    'args,words',
    [
        (('reproduce', '--profile', 'quik'), ('unknown profile', "'quick'")),
        (('reproduce', '--paper', 'sdvas'), ('unknown paper', "'sdavs'")),
        (('reproduce', '--paper', 'sdavs', '--only', 'tab3'), ('unknown table', "'tab03'")),
        (('reproduce', '--profile', 'smoke', '-p', 'profil=smoke'), ('unknown parameter', "'profile'")),
        (('reproduce', '--profile', 'smoke', '-p', 'profile'), ('NAME=VALUE',)),
        (('reproduce', '--data', 'no/such/folder'), ('no/such/folder',)),
        (('data', 'check', 'no/such/folder'), ('no/such/folder',)),
        (('data', 'make', 'x', '--setting', 'ms4'), ('unknown setting', "'s4'")),
        (('runs', 'import', 'no/such/runs.jsonl'), ('no/such/runs.jsonl',)),
    ],
)
def test_misspelt_and_missing(capsys, monkeypatch, tmp_path, args, words):
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    err = fails(capsys, monkeypatch, *args)
    assert err.count('\n') == 0 and all(w in err for w in words), err
    assert not (tmp_path / 'x').exists()


def test_unknown_option(capsys, monkeypatch):
    assert '--profil' in fails(capsys, monkeypatch, 'reproduce', '--profil', 'smoke')


def test_folder_that_is_no_data_set(capsys, monkeypatch, tmp_path):
    assert str(tmp_path) in fails(capsys, monkeypatch, 'reproduce', '--data', tmp_path)


def test_unknown_model_option():
    from avsrepro.core.errors import InputError
    from avsrepro.models import create_model

    with pytest.raises(InputError, match='snrpp'):
        create_model('sdavs', backbone='lcnet_050', audio='vggish_small', snrpp=False)
    with pytest.raises(InputError, match='multiply'):
        create_model('sdavs', backbone='lcnet_050', audio='vggish_small', interaction='multipy')


def test_unreadable_weights(tmp_path):
    from avsrepro.core.errors import InputError
    from avsrepro.models import create_model

    bad, other = tmp_path / 'bad.safetensors', tmp_path / 'other.safetensors'
    bad.write_bytes(b'not a checkpoint')
    save_file({'x': torch.zeros(1)}, other)
    for path in (bad, other, tmp_path / 'none.safetensors'):
        with pytest.raises(InputError, match=path.name):
            create_model('sdavs', backbone='lcnet_050', audio='vggish_small', weights=dict(visual=path))


def test_smoke_writes_every_file(smoke):
    assert {
        'table.csv',
        'table.md',
        'table.tex',
        'differences.csv',
        'figure.png',
        'figure.svg',
        'meta.json',
        'notebook.ipynb',
    } <= {p.name for p in smoke.iterdir()}
    with (smoke / 'table.csv').open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == RESULT_COLUMNS
    assert {(r['row'], r['setting'], r['metric']) for r in rows} == {
        (n, s, m)
        for n in ('w/o SNRP', 'w/o DAMF', 'SDAVS(Ours)', 'audio zeroed')
        for s in ('s4', 'ms3')
        for m in ('J', 'F', 'J&F', 'J_sounding')
    }
    full = next(r for r in rows if (r['row'], r['setting'], r['metric']) == ('SDAVS(Ours)', 'ms3', 'J'))
    assert float(full['published']) == 72.3 and 0 <= float(full['ours']) <= 100
    meta = json.loads((smoke / 'meta.json').read_text())
    assert (
        meta['command'].startswith('avsrepro reproduce')
        and len(meta['run_ids']) == 8
        and meta['environment']['commit']
    )


def test_second_call_trains_nothing(smoke, cache):
    runs = {p.name: p.stat().st_mtime_ns for p in (cache / 'runs').glob('*.json')}
    table, start = (smoke / 'table.csv').read_text(), time.time()
    done = reproduce_tab03(cache)
    print(f'{time.time() - start:.0f} s')
    assert done.returncode == 0 and len(runs) == 8
    assert {p.name: p.stat().st_mtime_ns for p in (cache / 'runs').glob('*.json')} == runs
    assert (smoke / 'table.csv').read_text() == table


def test_runs_can_be_exported_and_imported(smoke, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path))
    monkeypatch.setattr(
        sys, 'argv', ['avsrepro', 'runs', 'import', *map(str, (smoke.parent / 'runs').glob('*.jsonl'))]
    )
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert not e.value.code and '8 imported' in capsys.readouterr().out


def test_papermill_runs_it_and_refuses_a_misspelt_parameter(smoke, cache, tmp_path):
    def run(*p):
        return subprocess.run(
            [
                sys.executable,
                '-m',
                'papermill',
                '--no-progress-bar',
                str(NOTEBOOK),
                str(tmp_path / 'out.ipynb'),
                *p,
            ],
            env=environment(cache),
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    assert run('-p', 'profile', 'smoke').returncode == 0
    wrong = run('-p', 'profil', 'smoke')
    assert wrong.returncode != 0 and "unknown parameter 'profil'. Did you mean 'profile'?" in wrong.stderr


@pytest.mark.parametrize('setting,file', [('ms3', '*_1.png'), ('vpo-msmi', '*.jpg'), ('avis', '*.jpg')])
def test_generated_data_pass_the_checker(tmp_path, monkeypatch, setting, file):
    def code(*args):
        monkeypatch.setattr(sys, 'argv', ['avsrepro', 'data', *args])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return e.value.code or 0

    assert (
        code(
            'make',
            str(tmp_path / 'd'),
            '--setting',
            setting,
            '--size',
            '32',
            '--train',
            '1',
            '--val',
            '1',
            '--test',
            '1',
        )
        == 0
    )
    assert code('check', str(tmp_path / 'd'), '--setting', setting) == 0
    next((tmp_path / 'd').rglob(file)).unlink()
    assert code('check', str(tmp_path / 'd'), '--setting', setting) == 1


def test_table_whose_data_are_not_in_the_folder(capsys, monkeypatch, tmp_path):
    from avsrepro.data.scenes import SceneConfig, write_dataset

    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path / 'cache'))
    write_dataset(SceneConfig(size=32, train=1, val=1, test=1), tmp_path / 'data', jobs=1, progress=False)
    err = fails(
        capsys, monkeypatch, 'reproduce', '--paper', 'sdavs', '--only', 'tab12', '--data', tmp_path / 'data'
    )
    assert 'sdavs_tab12 needs vpo-ss and vpo-ms and vpo-msmi' in err and err.count('\n') == 0


def test_version(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['avsrepro', '--version'])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert not e.value.code and re.fullmatch(r'\d+\.\d+\.\d+', capsys.readouterr().out.strip())


def said(capsys, monkeypatch, *args) -> str:
    "What a command prints that ends well."
    monkeypatch.setattr(sys, 'argv', ['avsrepro', *map(str, args)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert not e.value.code
    return capsys.readouterr().out


def test_dry_run_says_what_is_there_and_makes_nothing(smoke, cache, tmp_path, capsys, monkeypatch):
    asked = 'reproduce --paper sdavs --only tab03 --profile smoke --dry-run'.split()
    monkeypatch.setenv('AVSREPRO_CACHE', str(cache))
    assert '8 of 8 runs are in the store, 0 would be trained.' in said(capsys, monkeypatch, *asked)
    longer = said(capsys, monkeypatch, *asked, '--set', 'train.ms3.epochs=2')
    assert '4 of 8 runs are in the store, 4 would be trained' in longer
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path))
    assert '0 of 8 runs are in the store' in said(capsys, monkeypatch, *asked)
    assert [p.name for p in tmp_path.iterdir()] in ([], ['runs'])


def test_a_profile_of_ones_own_has_its_own_folder(smoke, cache, tmp_path):
    mine = tmp_path / 'mine.yaml'
    mine.write_text('extends: smoke\npurpose: two epochs on MS3\ntrain: {ms3: {epochs: 2}}\n')
    args = f'--paper sdavs --only claims --profile {mine} --set train.s4.lr=2e-3'.split()
    done = subprocess.run(
        [sys.executable, '-m', 'avsrepro.cli', 'reproduce', *args],
        env=environment(cache),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = cache / 'results' / 'mine+train.s4.lr=2e-3' / 'procedural' / 'sdavs' / 'claims'
    meta = json.loads((folder / 'meta.json').read_text())
    assert (meta['extends'], meta['changes']) == ('smoke', ['train.s4.lr=2e-3'])
    assert "--profile mine.yaml --set 'train.s4.lr=2e-3'" in meta['command']
