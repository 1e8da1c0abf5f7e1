"Unknown users, shared caches, full disks, containers, killed processes: it works, or it is one sentence."

import errno
import math
import os
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from tiny_models import TINY
from torch import nn

from avsrepro import cli
from avsrepro.core import paths
from avsrepro.core.errors import InputError
from avsrepro.core.paths import (
    atomic_path,
    atomic_write,
    built,
    cache_dir,
    find_shared,
    locked,
    refusal,
    repo_root,
    results_dir,
)
from avsrepro.core.processes import cores, cpu_quota, lack
from avsrepro.models import create_model
from avsrepro.models.pretrained import from_pretrained, save_pretrained
from avsrepro.report.notebooks import execute_notebook
from avsrepro.train.checkpoints import Checkpoints, write_tensors
from avsrepro.train.jobs import run_all
from avsrepro.train.store import RunStore

UNKNOWN = 54321  # no line of /etc/passwd
POSIX_ROOT = hasattr(os, 'geteuid') and os.geteuid() == 0
as_root = pytest.mark.skipif(not POSIX_ROOT, reason='another user can be played by root alone')
posix = pytest.mark.skipif(os.name != 'posix', reason='modes and limits of POSIX')


def python(code: str, *args, env=None, drop=(), **options) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in drop}
    env = kept | dict(PYTHONPATH=str(repo_root()), PYTHONDONTWRITEBYTECODE='1') | (env or {})
    command = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **options)


def one_line(done: subprocess.CompletedProcess) -> str:
    "What a command that ended with exit code 2 said."
    assert done.returncode == 2, done.stderr[-2000:]
    said = done.stderr.strip()
    assert said.startswith('avsrepro: ') and '\n' not in said, said
    return said


@pytest.fixture
def open_folder():
    "A folder that every user may reach and write to."
    with tempfile.TemporaryDirectory(dir='/tmp') as d:
        Path(d).chmod(0o777)
        yield Path(d)


# the interpreter may lie in a home that is closed to others: it reads all that it needs before
STRANGER = f"""
import os, pwd, sys, time
import filelock, platformdirs, avsrepro.core.paths
os.setgroups([])
os.setgid({UNKNOWN})
os.setuid({UNKNOWN})
"""
REHEARSED = """
import os, sys, tempfile
from contextlib import suppress
import avsrepro.cli
before = dict(os.environ)
with tempfile.TemporaryDirectory() as d, suppress(SystemExit):
    os.environ['AVSREPRO_CACHE'] = d
    avsrepro.cli.main()
os.environ.clear()
os.environ.update(before)
"""


def as_stranger(code: str, *args, **options) -> subprocess.CompletedProcess:
    "The code, run by a user whom the system does not know."
    return python(STRANGER + code, *args, **options)


def command_of_stranger(*args, **options) -> subprocess.CompletedProcess:
    return python(REHEARSED + STRANGER + 'avsrepro.cli.main()', *args, **options)


# environment


@as_root
def test_a_user_without_name_and_home_is_told_which_variable_to_set(open_folder):
    stranger = dict(cwd=open_folder)
    drop = ('HOME', 'XDG_CACHE_HOME', 'AVSREPRO_CACHE', 'USER', 'LOGNAME')
    said = one_line(command_of_stranger('runs', 'list', drop=drop, **stranger))
    assert 'AVSREPRO_CACHE' in said and not list(open_folder.iterdir())
    said = one_line(
        command_of_stranger('runs', 'list', drop=drop, env=dict(AVSREPRO_CACHE='~/x'), **stranger)
    )
    assert '~/x' in said and not list(open_folder.iterdir())
    cache = dict(AVSREPRO_CACHE=str(open_folder / 'own'))
    done = command_of_stranger('runs', 'list', drop=drop, env=cache, **stranger)
    assert done.returncode == 0 and (open_folder / 'own').is_dir(), done.stderr


POOL = """
from avsrepro.core.processes import worker_pool
import tempfile
with worker_pool(1) as pool: print(pool.submit(abs, -7).result(), tempfile.gettempdir())
"""


def test_a_long_tmpdir_is_no_hindrance_for_workers(tmp_path):
    long = tmp_path / ('x' * 90)
    long.mkdir()
    done = python(POOL, env=dict(TMPDIR=str(long)))
    assert done.stdout == f'7 {long}\n', done.stderr[-2000:]


@pytest.mark.parametrize('given', ['two', '0', '-1', '1.5', ' x'])
def test_wrong_numbers_of_cores_are_named(monkeypatch, given):
    monkeypatch.setenv('AVSREPRO_CORES', given)
    with pytest.raises(InputError, match='AVSREPRO_CORES'):
        cores()


def test_an_empty_number_of_cores_is_none(monkeypatch):
    monkeypatch.delenv('AVSREPRO_CORES', raising=False)
    all_of_them = cores()
    monkeypatch.setenv('AVSREPRO_CORES', '')
    assert cores() == all_of_them
    monkeypatch.setenv('AVSREPRO_CORES', '1')
    assert cores() == 1


def test_home_is_expanded_in_every_variable(monkeypatch, tmp_path):
    (tmp_path / 'w').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    for name, value in dict(CACHE='~/c', RESULTS='~/r', WEIGHTS='~/w').items():
        monkeypatch.setenv(f'AVSREPRO_{name}', value)
    assert cache_dir('a') == tmp_path / 'c' / 'a'
    assert results_dir() == tmp_path / 'r'
    assert find_shared('weights') == (tmp_path / 'w').resolve()


def fails(capsys, monkeypatch, *words) -> str:
    "As `command` in this process."
    monkeypatch.setattr(sys, 'argv', ['avsrepro', *map(str, words)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert e.value.code == 2 and said.startswith('avsrepro: ') and '\n' not in said, said
    return said


def test_home_is_expanded_in_every_option_of_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ('HOME', 'USERPROFILE'):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path / 'cache'))
    for words in (
        ('data', 'check', '~/none'),
        ('reproduce', '--only', 'tab03', '--data=~/none'),
        ('convert', '~/none.pth', '~/out', '--setting', 's4'),
    ):
        assert str(tmp_path / 'none') in fails(capsys, monkeypatch, *words)
    assert not (tmp_path / '~').exists()


def test_relative_folders_hold_in_other_working_directories(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('AVSREPRO_CACHE', 'c')
    paths.settle_places()
    monkeypatch.chdir('/')
    assert cache_dir() == tmp_path / 'c'


# shared cache

HOLD = """
import sys
from avsrepro.core.paths import locked
try:
    with locked(sys.argv[1], timeout=0.2): print('held')
except TimeoutError as e:
    print('taken')
"""


@as_root
@pytest.mark.parametrize('mode', [0o644, 0o666])
def test_a_lock_of_another_user_is_the_same_lock(open_folder, mode):
    run, lock = open_folder / 'run', open_folder / 'run.lock'
    lock.touch()
    lock.chmod(mode)
    with locked(run):
        lock.chmod(mode)
        assert as_stranger(HOLD, run).stdout == 'taken\n'
    assert as_stranger(HOLD, run).stdout == 'held\n'


HOLD_LONG = """
import sys, time
from avsrepro.core.paths import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


@as_root
def test_another_user_keeps_us_out_by_a_lock_that_he_may_only_read(open_folder):
    lock = open_folder / 'run.lock'
    lock.touch(mode=0o644)
    lock.chmod(0o644)
    env = dict(os.environ, PYTHONPATH=str(repo_root()))
    other = subprocess.Popen(
        [sys.executable, '-c', STRANGER + HOLD_LONG, str(open_folder / 'run')],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(TimeoutError), locked(open_folder / 'run', timeout=0.1):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(open_folder / 'run', timeout=5):
        pass


@posix
def test_new_locks_are_for_everybody(tmp_path):
    before = os.umask(0o022)
    try:
        with locked(tmp_path / 'run'):
            assert stat.S_IMODE((tmp_path / 'run.lock').stat().st_mode) == 0o666
    finally:
        os.umask(before)


@as_root
def test_a_cache_of_another_user_is_one_sentence(open_folder):
    (open_folder / 'runs').mkdir(mode=0o755)
    words = ('runs', 'clear', 'abc', '--yes')
    said = one_line(command_of_stranger(*words, env=dict(AVSREPRO_CACHE=str(open_folder)), cwd='/'))
    assert 'Permission denied' in said and 'AVSREPRO_CACHE' in said


@as_root
def test_what_is_built_is_used_where_nothing_can_be_written(open_folder):
    (open_folder / 'sets' / 'a').mkdir(parents=True)
    for p in (open_folder / 'sets', open_folder / 'sets' / 'a'):
        p.chmod(0o755)
    code = 'import sys; from pathlib import Path; from avsrepro.core.paths import built; '
    code += 'print(built(Path(sys.argv[1]), None).name)'
    done = as_stranger(code, open_folder / 'sets' / 'a')
    assert done.stdout == 'a\n', done.stderr


@posix
@pytest.mark.parametrize('umask', [0o022, 0o027, 0o002, 0o077])
def test_files_have_the_mode_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / 'a.safetensors', dict(w=torch.ones(2)), {})
        atomic_write(tmp_path / 'b.txt', 'b')
        (tmp_path / 'plain').touch()
        folder = save_pretrained(create_model(**TINY), tmp_path / 'm', TINY) if umask == 0o022 else None
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o666 & ~umask}
    assert len(files) == (5 if folder else 3)


# kernels


def notebook(folder: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    (folder / 'page.ipynb').write_text(nbformat.writes(nb), encoding='utf-8')
    return folder / 'page.ipynb'


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def test_pages_do_not_depend_on_a_persons_settings(monkeypatch, tmp_path, cache):
    profile = tmp_path / '.ipython' / 'profile_default'
    (profile / 'startup').mkdir(parents=True)
    (profile / 'startup' / '00.py').write_text('intruder = 1\nprint("hello from the startup")\n')
    settings = "c = get_config()\nc.InlineBackend.figure_formats = ['svg']\n"
    for name in ('ipython_config.py', 'ipython_kernel_config.py'):
        (profile / name).write_text(settings)
    (tmp_path / 'matplotlibrc').write_text('figure.figsize: 1, 1\n')
    (tmp_path / 'start.py').write_text('intruder = 2\n')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / '.ipython'))
    monkeypatch.setenv('MATPLOTLIBRC', str(tmp_path / 'matplotlibrc'))
    monkeypatch.setenv('PYTHONSTARTUP', str(tmp_path / 'start.py'))
    draw = 'import matplotlib.pyplot as plt\nplt.plot([1]);'
    asked = "print(plt.rcParams['figure.figsize'], 'intruder' in globals())"
    out = nbformat.read(execute_notebook(notebook(tmp_path, draw, asked), {}), as_version=4)
    kinds = [set(o.get('data', {})) for o in out.cells[0].outputs]
    assert any('image/png' in k for k in kinds) and not any('image/svg+xml' in k for k in kinds)
    assert out.cells[1].outputs[0].text == '[6.4, 4.8] False\n'
    assert os.environ['IPYTHONDIR'] == str(tmp_path / '.ipython')


DEATHS = {
    'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)': 'kernel was killed.*memory.*--jobs 1',
    'raise MemoryError': 'page.ipynb: the memory of this machine',
    'raise OSError(28, "No space left on device", "/x/y.csv")': 'page.ipynb: /x/y.csv.*cannot be written',
}


@posix
@pytest.mark.parametrize('source', DEATHS)
def test_a_page_that_lacks_something_is_one_sentence(tmp_path, cache, source):
    with pytest.raises(InputError, match=DEATHS[source]) as e:
        execute_notebook(notebook(tmp_path, source), {})
    assert '\n' not in str(e.value)
    assert not list((cache / 'notebooks').iterdir())


# full disks


@pytest.fixture
def disk(tmp_path):
    "A disk of 4 MB."
    place = tmp_path / 'disk'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as e:
        pytest.skip(f'no disk can be mounted here ({e})')
    if done.returncode:
        pytest.skip(f'no disk can be mounted here ({done.stderr.strip()})')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def test_a_full_disk_leaves_nothing_half_written(disk):
    atomic_write(disk / 'a.bin', b'old')
    for write in (
        lambda: atomic_write(disk / 'a.bin', bytes(6_000_000)),
        lambda: write_tensors(disk / 'a.bin', dict(w=torch.zeros(2_000_000)), {}),
    ):
        with pytest.raises(InputError, match='No space left on device; 4 MB free'):
            write()
        assert [p.name for p in disk.iterdir()] == ['a.bin'] and (disk / 'a.bin').read_bytes() == b'old'


def test_a_set_that_does_not_fit_leaves_nothing(disk):
    def fill(folder):
        for n in range(10):
            (folder / f'{n}.bin').write_bytes(bytes(1_000_000))

    with pytest.raises(OSError, match='No space left'):
        built(disk / 'set', fill)
    assert [p.name for p in disk.iterdir()] == ['set.lock']


def test_a_model_that_does_not_fit_leaves_nothing(disk):
    (disk / 'ballast').write_bytes(bytes(3_500_000))
    with pytest.raises(InputError, match=r'/model: cannot be written \(No space left'):
        save_pretrained(create_model(**TINY), disk / 'model', TINY)
    assert [p.name for p in disk.iterdir()] == ['ballast']
    (disk / 'ballast').unlink()
    from_pretrained(save_pretrained(create_model(**TINY), disk / 'model', TINY))


def test_training_goes_on_from_the_last_epoch_that_fitted(disk):
    model = nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(disk / 'run', 'abc')
    checkpoints.save(model, optimizer, dict(epoch=1, selected=1))
    (disk / 'ballast').write_bytes(bytes(3_000_000))
    with pytest.raises(InputError, match='No space left'):
        checkpoints.save(model, optimizer, dict(epoch=2, selected=2))
        checkpoints.save(model, optimizer, dict(epoch=3, selected=3))
    (disk / 'ballast').unlink()
    assert checkpoints.resume(model, optimizer)['epoch'] in (1, 2)
    checkpoints.save(model, optimizer, dict(epoch=3, selected=3))


def test_data_make_on_a_full_disk_is_one_line(monkeypatch, capsys, disk):
    counts = ('--train', '1', '--val', '1', '--test', '1', '--jobs', '1')
    make = ('data', 'make', disk / 'set', *counts)
    (disk / 'ballast').write_bytes(bytes(4_100_000))
    said = fails(capsys, monkeypatch, *make)
    assert 'No space left on device' in said and str(disk) in said
    assert [p.name for p in disk.iterdir()] == ['ballast']
    (disk / 'ballast').unlink()
    monkeypatch.setattr(sys, 'argv', ['avsrepro', *map(str, make)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 0 and (disk / 'set').is_dir()


@posix
def test_a_limit_on_the_size_of_files_is_one_sentence(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for write in (
            lambda f: atomic_write(f, bytes(200_000)),
            lambda f: write_tensors(f, dict(w=torch.zeros(50_000)), {}),
        ):
            with pytest.raises(InputError, match='File too large'):
                write(tmp_path / 'a.bin')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', ['ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'EFBIG'])
def test_every_refusal_names_the_variable(monkeypatch, cache, number):
    number = getattr(errno, number)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(InputError, match='MB free.*AVSREPRO_CACHE'):
        RunStore()
        atomic_write(cache / 'runs' / 'a.json', '{}')
    assert not list((cache / 'runs').iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (KeyError('k'), FileNotFoundError(errno.ENOENT, 'gone'), ValueError('bad')):
        assert refusal(error) is None and lack(error) is None
    with pytest.raises(PermissionError), atomic_path(tmp_path / 'a'):
        raise PermissionError(errno.EACCES, 'Permission denied', '/elsewhere/photo.jpg')


# the command


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOSPC, 'No space left on device'),
        OSError(errno.EROFS, 'Read-only file system', '/x/y'),
        BrokenProcessPool('A process in the process pool was terminated abruptly'),
    ],
)
def test_what_the_machine_lacks_is_one_line(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, 'app', fail)
    with pytest.raises(SystemExit) as e:
        cli.main()
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.startswith('avsrepro: ') and said.count('\n') == 1, said


def test_a_mistake_of_the_code_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError('a bug')

    monkeypatch.setattr(cli, 'app', fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_killed_run_is_one_sentence(monkeypatch, cache):
    from avsrepro.train import jobs

    spec = SimpleNamespace(label='full ms3 seed 0')
    for error, said in ((BrokenProcessPool('x'), 'killed from outside'), (MemoryError(), 'the memory of')):
        with pytest.raises(InputError, match=f'{said}.*') as e:
            jobs._raise({'abc': error}, {'abc': spec})
        assert 'full ms3 seed 0 (abc)' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(RuntimeError, match='KeyError'):
        jobs._raise({'abc': KeyError('k')}, {'abc': spec})
    assert run_all([], jobs=1) == []


# containers


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace('__', '.')).write_text(text + '\n')


def test_quotas_of_the_second_version(tmp_path):
    told = tmp_path / 'cgroup'
    told.write_text('0::/a/b/c\n')
    assert cpu_quota(told, tmp_path / 'fs') == math.inf
    group(tmp_path / 'fs' / 'a' / 'b' / 'c', cpu__max='max 100000')
    assert cpu_quota(told, tmp_path / 'fs') == math.inf
    group(tmp_path / 'fs' / 'a' / 'b', cpu__max='300000 100000')
    group(tmp_path / 'fs' / 'a', cpu__max='800000 100000')
    assert cpu_quota(told, tmp_path / 'fs') == 3
    group(tmp_path / 'fs' / 'a', cpu__max='50000 100000')  # an outer group is narrower
    assert cpu_quota(told, tmp_path / 'fs') == 0.5


@pytest.mark.parametrize('mounted', ['cpu,cpuacct', 'cpu'])
def test_quotas_of_the_first_version(tmp_path, mounted):
    told, fs = tmp_path / 'cgroup', tmp_path / 'fs'
    told.write_text('12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n')
    group(fs / 'memory', cpu__cfs_quota_us='1000', cpu__cfs_period_us='100000')  # of no concern
    group(fs / mounted, cpu__cfs_quota_us='-1', cpu__cfs_period_us='100000')
    assert cpu_quota(told, fs) == math.inf
    group(fs / mounted, cpu__cfs_quota_us='200000', cpu__cfs_period_us='100000')  # seen from inside
    assert cpu_quota(told, fs) == 2
    group(fs / mounted / 'docker' / '1', cpu__cfs_quota_us='150000', cpu__cfs_period_us='100000')
    assert cpu_quota(told, fs) == 1.5


@pytest.mark.parametrize('quota, expected', [(0.2, 1), (1.5, 2), (2.0, 2), (math.inf, 8)])
def test_cores_are_bound_by_the_quota(monkeypatch, quota, expected):
    from avsrepro.core import processes

    monkeypatch.delenv('AVSREPRO_CORES', raising=False)
    monkeypatch.setattr(processes, 'cpu_quota', lambda: quota)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    assert cores() == expected


# Windows


@posix
def test_what_is_flushed_is_open_for_writing(monkeypatch, tmp_path):
    import fcntl

    modes = []
    monkeypatch.setattr(os, 'fsync', lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE))
    atomic_write(tmp_path / 'a', 'a')
    assert modes == [os.O_RDWR]


def test_a_file_that_is_being_read_is_tried_again(monkeypatch):
    calls = []

    def replace(*names):
        calls.append(names)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, 'used by another process')

    monkeypatch.setattr(paths, 'os', SimpleNamespace(name='nt', replace=replace))
    start = time.perf_counter()
    paths._rename('a', 'b')
    assert calls == [('a', 'b')] * 3 and time.perf_counter() - start < 2


def test_text_is_the_same_bytes_everywhere(tmp_path):
    assert atomic_write(tmp_path / 'a', 'é\n').read_bytes() == b'\xc3\xa9\n'
