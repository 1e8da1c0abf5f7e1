"""A run's name follows the code that it depends on, and nothing else.

The package is copied to a folder of its own and edited there, one edit for each fresh process: what a
process has imported, it does not read again."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import avsrepro

NAMED = [('sdavs', 'sdavs', 's4'), ('selm', 'selm', 's4'), ('sdavs on VPO', 'sdavs', 'vpo-ss')]
RUNS = tuple(name for name, *_ in NAMED)
PROGRAM = """
import json
import avsrepro
from avsrepro.train.store import RunSpec

assert avsrepro.__file__.startswith({folder!r}), avsrepro.__file__
common = dict(data=dict(source='x', key='1'), options=dict(backbone='resnet18', audio='vggish'))
runs = dict()
for name, model, setting in {runs!r}:
    runs[name] = RunSpec(setting=setting, model=model, **common).run_id
print(json.dumps(runs))
"""


def statement(path: Path) -> None:
    "An edit of code: one more function."
    path.write_text(path.read_text() + '\n\ndef _one_more():\n    return 1\n')


def comment(path: Path) -> None:
    path.write_text('# a word of explanation\n' + path.read_text())


def layout(path: Path) -> None:
    "The same syntax as Python itself would write it: quotes, line breaks, no comments."
    path.write_text(ast.unparse(ast.parse(path.read_text())))


@pytest.fixture(scope='module')
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('package')
    skip = shutil.ignore_patterns('__pycache__')
    return Path(shutil.copytree(Path(avsrepro.__file__).parent, folder / 'avsrepro', ignore=skip))


def ids(package: Path) -> dict[str, str]:
    "Names of the runs as a fresh process gives them."
    folder = str(package.parent)
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM.format(folder=folder, runs=NAMED)],
        env=dict(os.environ, PYTHONPATH=folder, HF_HUB_OFFLINE='1', PYTHONDONTWRITEBYTECODE='1'),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def before(package) -> dict[str, str]:
    found = ids(package)
    assert tuple(found) == RUNS and len(set(found.values())) == 3
    return found


def renamed(package: Path, before: dict[str, str], edits: dict[str, Callable]) -> set[str]:
    "The runs that get another name when the modules are edited; the package is left as it was."
    files = {package / f'{module}.py': edit for module, edit in edits.items()}
    whole = {path: path.read_bytes() for path in files}
    try:
        for path, edit in files.items():
            edit(path)
        after = ids(package)
    finally:
        for path, text in whole.items():
            path.write_bytes(text)
    return {name for name in RUNS if before[name] != after[name]}


def test_what_only_carries_renames_nothing(package, before):
    carriers = ('train/checkpoints', 'train/running', 'train/jobs', 'train/artifacts', 'train/store')
    carriers += ('core/errors', 'core/paths', 'core/identity', 'models/registry')
    assert renamed(package, before, dict.fromkeys(carriers, statement)) == set()


@pytest.mark.parametrize('module', ['train/engine', 'metrics/segmentation', 'nn/features', 'nn/backbones'])
def test_what_computes_renames_every_run(package, before, module):
    assert renamed(package, before, {module: statement}) == set(RUNS)


@pytest.mark.parametrize(
    ('module', 'runs'),
    [
        ('models/sdavs', {'sdavs', 'sdavs on VPO'}),
        ('models/selm', {'selm'}),
        ('data/vpo', {'sdavs on VPO'}),
        ('models/tpavi', set()),
        ('nn/htsat', set()),
    ],
)
def test_what_some_runs_pass_through_renames_those(package, before, module, runs):
    assert renamed(package, before, {module: statement}) == runs


def test_words_and_layout_rename_nothing(package, before):
    edits = {'train/engine': layout, 'models/sdavs': layout, 'nn/features': comment, 'models/selm': comment}
    assert renamed(package, before, edits) == set()


def test_a_docstring_renames_nothing(package, before):
    losses = package / 'nn' / 'losses.py'
    whole = losses.read_text()
    try:
        statement(losses)
        plain = ids(package)
        losses.write_text(losses.read_text().replace('more():\n', 'more():\n    "Why it is here."\n'))
        assert ids(package) == plain != before
    finally:
        losses.write_text(whole)
