"The project holds together: one list of dependencies, a true README, whole notebooks and modules."

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import cache

import nbformat
import pytest
import yaml
from execnb.nbio import nb2str, read_nb
from nbdev.clean import clean_nb
from nbdev.config import get_config

from avsrepro.core.paths import repo_root
from avsrepro.report.readme import export_readme

ROOT = repo_root()
NOTEBOOKS = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts)
)
SOURCES = sorted((ROOT / 'avsrepro').rglob('*.py'))


def git(*args):
    if not (ROOT / '.git').exists() or shutil.which('git') is None:
        pytest.skip('not a git checkout')
    return subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def commands():
    "The one-line commands of README: the contents of its bash blocks."
    return re.findall(r'^```bash\n(.*?)\n```$', (ROOT / 'README.md').read_text(encoding='utf-8'), re.M | re.S)


# dependencies and README


def test_conda_environment_equals_settings():
    wanted = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    pip = next(d['pip'] for d in wanted if isinstance(d, dict))
    cfg = settings()
    assert pip == cfg['requirements'].split() + cfg['dev_requirements'].split()
    python = next(d for d in wanted if isinstance(d, str) and d.startswith('python'))
    assert python.startswith(f"python>={cfg['min_python']},")


def test_readme_is_in_sync():
    assert export_readme(check=True) is False


def test_readme_opens_with_the_two_commands():
    install = 'python3 -m venv .venv && .venv/bin/pip install -q -e '
    job, tests = commands()[:2]
    assert '\n' not in job + tests
    assert job == install + '. && .venv/bin/avsrepro reproduce --paper sdavs --only tab03'
    assert tests.startswith(install + '".[dev]" && ') and 'nbdev_test' in tests and 'pytest' in tests


def test_ci_runs_the_second_command_of_readme():
    if shutil.which('bash') is None:
        pytest.skip('there is no bash')
    shown = subprocess.run(
        ['bash', '.ci/run', '--show'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == commands()[1]


def test_links_of_readme_lead_somewhere():
    links = re.findall(r'\]\((?![a-z]+:|#)([^)\s]+)\)', (ROOT / 'README.md').read_text(encoding='utf-8'))
    assert links and not [link for link in links if not (ROOT / link).exists()]


# notebooks


@cache
def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook_is_valid(path):
    "Valid format 4.5; every cell has an id of its own; nothing failed when it ran."
    nb = read(path)
    nbformat.validate(nb)
    assert (nb['nbformat'], nb['nbformat_minor']) == (4, 5)
    ids = [c['id'] for c in nb['cells']]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r'[\w-]{1,64}', i) for i in ids)
    assert not [o for c in nb['cells'] for o in c.get('outputs', ()) if o['output_type'] == 'error']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook_is_as_nbdev_clean_leaves_it(path):
    config, nb = get_config(path=ROOT), read_nb(path)
    keys = config.get('allowed_metadata_keys').split(), config.get('allowed_cell_metadata_keys').split()
    clean_nb(nb, config.clear_all, *keys, config.clean_ids)
    remedy = f'run: nbdev_clean --fname {name_of(path)}'
    assert nb2str(nb) == path.read_text(encoding='utf-8'), (
        f'{name_of(path)} is not as nbdev_clean leaves it; {remedy}'
    )


ROOTS = r'/(?:home|Users|root|work|tmp|opt|mnt|srv|media|private|var|usr)/'
LOCAL = re.compile(rf'(?<![\w.)\]}}>~*])(?:{ROOTS}|[A-Z]:\\+Users\\+)[^\s"\'`]*')


def texts(nb):
    "All that a reader sees of a notebook as text: sources, printed output, all but pictures."
    for c in nb['cells']:
        yield ''.join(c['source'])
        for o in c.get('outputs', ()):
            yield ''.join(o.get('text', ''))
            for kind, data in o.get('data', {}).items():
                if not kind.startswith('image/') or kind == 'image/svg+xml':
                    yield data if isinstance(data, str) else ''.join(map(str, data))


def test_what_counts_as_a_local_path():
    for text in ('see /home/ann/avs.py:3', '"/tmp/x.png"', 'C:\\Users\\ann'):
        assert LOCAL.search(text)
    for text in ('https://a.org/home/x', 'results/tmp/x', '{root}/work/x', '.../tmp/x', 'a/b/c'):
        assert not LOCAL.search(text)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook_has_no_local_path(path):
    found = [m[0] for text in texts(read(path)) for m in LOCAL.finditer(text)]
    assert not found, f'{name_of(path)} holds paths of the machine it ran on: {found}'


# files


def test_no_large_file_is_under_version_control():
    files = git('ls-files', '-z').stdout.split('\0')[:-1]
    sizes = {f: (ROOT / f).stat().st_size for f in files if (ROOT / f).is_file()}
    assert sizes and not {f: n for f, n in sizes.items() if n > 2_000_000}


def test_no_source_is_ignored_by_git():
    "A pattern in .gitignore that also matches a topic's folder would leave it out of every clone."
    ignored = git('check-ignore', *map(str, NOTEBOOKS + SOURCES)).stdout.split()
    assert not ignored, f'.gitignore leaves out {ignored}'


# modules

IMPORTS = '''
import importlib, os, sys, traceback
import torch, timm
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            sys.stderr.write(f"cannot import {name}\\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_every_module_can_be_imported_first():
    """Each module is the first of the package that its process imports, so it leans on no other import.

    The processes are forks of one that has imported torch and timm and nothing of the package;
    `.ci/run` does the same in processes that are wholly new."""
    modules = [name_of(p).removesuffix('.py').removesuffix('/__init__').replace('/', '.') for p in SOURCES]
    done = subprocess.run(
        [sys.executable, '-c', IMPORTS, *modules], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_package_has_no_folder_without_init():
    "A folder of modules without `__init__.py` works in a checkout and is missing from a wheel."
    assert not [name_of(p) for p in SOURCES if not (p.parent / '__init__.py').exists()]


# data_prep


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'data_prep' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_scripts_of_data_prep(tmp_path, capsys):
    make, check, place = script('make_scenes'), script('check_avsbench'), tmp_path / 'scenes'
    few = '--size 32 --train 1 --val 1 --test 1 --jobs 1'.split()
    assert make([str(place), '--setting', 's4', 'ms3', *few]) == 0
    assert sorted(p.name for p in place.iterdir()) == [
        'Multi-sources',
        'Single-source',
        'scenes_ms3.json',
        'scenes_s4.json',
    ]
    assert check([str(place), '--setting', 's4', 'ms3']) == 0
    wav = next((place / 'Single-source').rglob('*.wav'))
    wav.unlink()
    capsys.readouterr()
    assert check([str(place), '--setting', 's4']) == 1 and wav.name in capsys.readouterr().out
    for main, args, word in (
        (make, [place, *few], 'exists already'),
        (make, [tmp_path / 'new', '--setting', 'ms4', *few], "'s4'"),
        (check, [place, '--setting', 's5'], "'s5'"),
        (check, [tmp_path / 'nowhere', '--setting', 's4'], 'no such folder'),
    ):
        assert main([str(a) for a in args]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count('\n') == 1
    assert [p.name for p in tmp_path.iterdir()] == ['scenes']


def test_the_index_of_results_is_in_sync():
    from avsrepro.report.results import results_text

    assert (ROOT / 'results' / 'README.md').read_text(encoding='utf-8') == results_text(ROOT / 'results')


def test_the_table_of_papers_is_in_sync():
    from avsrepro.report.readme import relink
    from avsrepro.report.results import papers_table

    assert relink(papers_table(ROOT / 'results')) in (ROOT / 'README.md').read_text(encoding='utf-8')
