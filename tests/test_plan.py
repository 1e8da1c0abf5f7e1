"Planning is pure: all experiments in all profiles, offline, on an empty cache; old records stay readable."

import os
import subprocess
import sys

import pytest

from avsrepro.core.paths import repo_root, results_dir
from avsrepro.nn.weights import catalogue
from avsrepro.train.store import RunStore, import_runs

PLAN_ALL = '''
import os, socket, sys, time
def closed(*_, **__): raise OSError('a plan opened the network')
socket.socket.connect = socket.create_connection = closed
from avsrepro.experiments.plan import plan
from avsrepro.experiments.profiles import built_in, get_profile
from avsrepro.experiments.registry import experiments
ids = set()
for profile in map(get_profile, built_in()):
    for e in experiments().values():
        ids |= {s.run_id for s in plan(e, profile)}
print(len(ids), sorted(os.listdir(os.environ['AVSREPRO_CACHE'])))
'''


def test_every_experiment_is_planned_in_every_profile_within_twenty_seconds(tmp_path):
    "The time is the issue's: a plan that makes anything takes minutes."
    weights = tmp_path / 'weights'
    weights.mkdir()
    for name, file in catalogue().items():  # a plan hashes a file and does not look inside
        (weights / file.stored).write_text(name)
    env = {**os.environ, 'AVSREPRO_WEIGHTS': str(weights), 'AVSREPRO_CACHE': str(tmp_path / 'cache')}
    (tmp_path / 'cache').mkdir()
    done = subprocess.run(
        [sys.executable, '-c', PLAN_ALL],
        env={**env, 'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, left = done.stdout.strip().split(' ', 1)
    assert int(count) > 300 and left == '[]'


def test_committed_records_are_imported_under_the_ids_that_they_had(tmp_path):
    files = sorted((repo_root() / 'results').glob('*/*/*/runs/*.jsonl'))
    if not files:
        pytest.skip(f'{results_dir()} holds no records')
    store = RunStore(tmp_path)
    for f in files[:: max(1, len(files) // 40)]:
        assert import_runs(f, store) == dict(imported=1, present=0)
        assert store.get(f.stem).run_id == f.stem
