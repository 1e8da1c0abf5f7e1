"Several processes train the run that one process trains: the same losses, and on after a kill."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from avsrepro.core.errors import InputError
from avsrepro.data.loading import describe
from avsrepro.train.running import run
from avsrepro.train.store import RunSpec, RunStore

SMALL = dict(backbone='test_resnet', audio='vggish_small', frozen=['audio', 'visual'])
TRAIN = dict(epochs=3, batch_size=4, test_batch=2, micro_batch=2, lr=0.002, loss_stride=4)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    before = os.environ.get('AVSREPRO_CACHE')
    os.environ['AVSREPRO_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    if before is None:
        del os.environ['AVSREPRO_CACHE']
    else:
        os.environ['AVSREPRO_CACHE'] = before


def spec_of(model: str = 'avsegformer', **options) -> RunSpec:
    data = describe('procedural', None, 'ms3', dict(size=48, train=10, val=2, test=2))
    own = dict(avsegformer=dict(dim=16, queries=4, layers=1, heads=2, points=2, dropout=0.1))
    options = SMALL | own.get(model, {}) | options
    return RunSpec(setting='ms3', model=model, options=options, data=data, train=TRAIN)


def losses(result) -> list[float]:
    return [h['total'] for h in result.history]


def test_two_processes_have_the_losses_of_one(cache, tmp_path):
    "With dropout, whose draws follow from the clips of a part, and with a step that is not full."
    one = run(spec_of(), RunStore(tmp_path / 'one'))
    two = run(spec_of(), RunStore(tmp_path / 'two'), processes=2)
    assert len(losses(one)) == 3 and losses(one)[-1] < losses(one)[0]
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert two.means['J'] == pytest.approx(one.means['J'], abs=1e-3)
    assert (RunStore(tmp_path / 'two').folder(two.run_id) / 'model.safetensors').is_file()


def test_two_processes_go_on_after_a_kill(cache, tmp_path):
    spec, store = spec_of(), RunStore(tmp_path / 'killed')
    long = replace(spec, train=dict(TRAIN, epochs=16))
    code = (
        'import json, sys\n'
        'from avsrepro.train.running import run\n'
        'from avsrepro.train.store import RunStore, spec_of\n'
        'run(spec_of(json.loads(sys.argv[1])), RunStore(sys.argv[2]), processes=2)\n'
    )
    given = json.dumps(asdict(long))
    started = subprocess.Popen(
        [sys.executable, '-c', code, given, str(store.root)], stderr=subprocess.DEVNULL
    )
    latest = store.folder(long.run_id) / 'latest.safetensors'
    end = time.monotonic() + 90
    while not latest.exists():
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert store.get(long.run_id) is None
    resumed = run(long, store, processes=2)
    undisturbed = run(long, RunStore(tmp_path / 'undisturbed'))
    assert len(resumed.history) == 16
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-4)


def test_a_batch_norm_that_trains_is_refused_on_cpus(cache, tmp_path):
    open_eyed = replace(spec_of(frozen=['audio']), train={**TRAIN, 'micro_batch': None})
    with pytest.raises(InputError, match='batch norms that train'):
        run(open_eyed, RunStore(tmp_path / 'norms'), processes=2)
