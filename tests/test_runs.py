"""Runs survive whatever ends their process: same scores after `kill -9`, one trainer per run, nothing lost.

What a notebook cannot hold: real processes, really killed. Children come from a fork server that has the
package imported, so starting one takes a moment only."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from avsrepro.core.paths import atomic_write
from avsrepro.core.seeding import generator
from avsrepro.data.clips import Clip
from avsrepro.train.jobs import run_all
from avsrepro.train.running import run
from avsrepro.train.store import RunSpec, RunStore

torch.set_num_threads(1)
servers = multiprocessing.get_context('forkserver')
servers.set_forkserver_preload(['avsrepro.models', 'avsrepro.train.engine', 'avsrepro.train.jobs', 'timm'])


class Listed(list):
    ids = property(lambda self: [c.info['id'] for c in self])


def clip(split, n, T=2, size=32):
    g = generator('test_runs', split, n)
    frames = torch.randint(0, 256, (T, 3, size, size), dtype=torch.uint8, generator=g)
    mel = torch.randn(T, 1, 96, 64, generator=g)
    target = (frames[:, 0].float() / 255 + mel.mean((1, 2, 3))[:, None, None] > 0.5).long()
    return Clip(
        frames=frames,
        audio=torch.zeros(1, 32000),
        mel=mel,
        target=target,
        supervised=torch.ones(T, dtype=torch.bool),
        info=dict(id=f'{split}{n}'),
    )


def splits(data, setting):
    "Made-up clips; a process that asks for them signs a log, if there is one."
    if log := os.environ.get('TEST_RUNS_LOG'):
        with open(log, 'a') as f:
            f.write(f'{os.getpid()}\n')
    return {s: Listed(clip(s, n) for n in range(k)) for s, k in (('train', 8), ('val', 2), ('test', 3))}


def spec(seed=0, epochs=6):
    return RunSpec(
        setting='ms3',
        model='sdavs',
        options=dict(backbone='test_resnet', audio='vggish_small', frozen=['audio', 'visual'], dim=8),
        data=dict(source='test_runs'),
        train=dict(epochs=epochs, batch_size=2, lr=3e-3, loss_stride=4),
        seed=seed,
    )


def die_at(name, when):
    "Kill this process when a file `name...` is about to be renamed, was just renamed, or is half written."
    rename = os.replace

    def replace(src, dst):
        hit = Path(dst).name.startswith(name)
        if hit and when == 'half written':
            os.truncate(src, os.path.getsize(src) // 2)
        if hit and when != 'after':
            os.kill(os.getpid(), signal.SIGKILL)
        rename(src, dst)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def train(cache, root, log='', death=None):
    "What the children do. Each epoch takes a moment longer than it needs, so that kills hit something."
    os.environ.update(AVSREPRO_CACHE=str(cache), TEST_RUNS_LOG=str(log))
    torch.set_num_threads(1)
    if death:
        die_at(*death)
    run(spec(), RunStore(root), splits, report=lambda done, of: time.sleep(0.05), device='cpu')


def start(*args):
    p = servers.Process(target=train, args=args)
    p.start()
    return p


def exit_code(p):
    p.join(60)
    assert p.exitcode is not None, 'a child did not end'
    return p.exitcode


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('AVSREPRO_CACHE', str(path))
        m.setenv('CUDA_VISIBLE_DEVICES', '')
        yield path


@pytest.fixture(scope='module')
def undisturbed(cache, tmp_path_factory):
    return run(spec(), RunStore(tmp_path_factory.mktemp('undisturbed')), splits, device='cpu')


def history(result):
    return [{k: v for k, v in h.items() if k != 'seconds'} for h in result.history]


def test_same_seed_same_scores(undisturbed, cache, tmp_path):
    again, other = (
        run(spec(), RunStore(tmp_path), splits, device='cpu'),
        run(spec(seed=1), RunStore(tmp_path), splits, device='cpu'),
    )
    assert again.scores == undisturbed.scores and history(again) == history(undisturbed)
    assert other.scores != undisturbed.scores


def test_killed_at_every_write(undisturbed, cache, tmp_path):
    "Every kind of file, before, in and after the moment it appears; each attempt goes on from the leftovers."
    store, run_id = RunStore(tmp_path), undisturbed.run_id
    for death in [
        ('best-', 'before'),
        ('best-', 'after'),
        ('latest', 'half written'),
        ('latest', 'before'),
        ('latest', 'after'),
        ('latest', 'after'),
        ('model', 'half written'),
        ('model', 'after'),
        (f'{run_id}.json', 'before'),
    ]:
        assert exit_code(start(cache, tmp_path, '', death)) == -signal.SIGKILL, f'{death} did not happen'
        assert store.get(run_id) is None
    assert exit_code(start(cache, tmp_path, '', (f'{run_id}.json', 'after'))) == -signal.SIGKILL
    assert store.get(run_id).scores == undisturbed.scores and history(store.get(run_id)) == history(
        undisturbed
    )
    assert exit_code(start(cache, tmp_path)) == 0
    assert [p.name for p in store.folder(run_id).iterdir()] == ['model.safetensors']


def test_killed_at_random_moments(undisturbed, cache, tmp_path):
    rng, store, kills = random.Random(2), RunStore(tmp_path), 0
    for delay in [0.05] + [rng.uniform(0.1, 1.2) for _ in range(6)]:
        p = start(cache, tmp_path)
        p.join(delay)
        if p.exitcode is None:
            p.kill()
            kills += 1
        exit_code(p)
    assert exit_code(start(cache, tmp_path)) == 0 and kills
    result = store.get(undisturbed.run_id)
    assert result.scores == undisturbed.scores and history(result) == history(undisturbed)


def test_two_processes_one_trainer(undisturbed, cache, tmp_path):
    log = tmp_path / 'log'
    both = [start(cache, tmp_path / 'runs', log) for _ in range(2)]
    assert [exit_code(p) for p in both] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert run(spec(), RunStore(tmp_path / 'runs'), splits).scores == undisturbed.scores


def test_spoiled_files_cost_no_more_than_their_run(undisturbed, cache, tmp_path, capfd):
    store = RunStore(tmp_path)
    exit_code(start(cache, tmp_path, '', ('latest', 'after')))
    atomic_write(store.folder(undisturbed.run_id) / 'latest.safetensors', b'not a checkpoint')
    assert run(spec(), store, splits, device='cpu').scores == undisturbed.scores
    assert 'starts again from its first epoch' in capfd.readouterr().err
    store.path(undisturbed.run_id).write_text('{"run_id": "')
    assert store.get(undisturbed.run_id) is None and 'moved to' in capfd.readouterr().err
    assert run(spec(), store, splits, device='cpu').scores == undisturbed.scores


def train_table(cache, root):
    os.environ.update(AVSREPRO_CACHE=str(cache), CUDA_VISIBLE_DEVICES='')
    run_all(
        [spec(), spec(seed=1, epochs=400)], jobs=2, store=RunStore(root), open_splits=splits, progress=False
    )


def test_workers_follow_their_parent(undisturbed, cache, tmp_path):
    "A table in two processes: when their parent is killed they stop; a new call finds what is finished."
    store, long = RunStore(tmp_path), spec(seed=1, epochs=400)
    p = servers.Process(target=train_table, args=(cache, tmp_path))
    p.start()
    deadline = time.time() + 60
    while not (
        store.path(undisturbed.run_id).exists()
        and (store.folder(long.run_id) / 'latest.safetensors').exists()
    ):
        assert time.time() < deadline and p.is_alive(), 'the table did not get going'
        time.sleep(0.1)
    p.kill()
    with store.lock(long.run_id, timeout=20):
        assert store.get(long.run_id) is None
    assert run_all([spec()], store=store, open_splits=splits)[0].scores == undisturbed.scores
