"What the files of a download hold: the name of the data, and what changes it."

import multiprocessing
import os
import shutil

import pytest

from avsrepro.data import fingerprints
from avsrepro.data.fingerprints import fingerprint, one_look, used_files, verify_root
from avsrepro.data.layouts import table_path
from avsrepro.data.loading import describe, write_generated
from avsrepro.train.memory import memory_recipe

SETTINGS = ['s4', 'ms3', 'avss', 'vpo-ss', 'vpo-msmi', 'avis']


@pytest.fixture(scope='module')
def composed(tmp_path_factory):
    "One small folder in the released layouts, that no test changes."
    place = tmp_path_factory.mktemp('sets') / 'sets'
    return write_generated(place, SETTINGS, jobs=1, size=48, train=2, val=1, test=1)


@pytest.fixture
def root(composed, tmp_path, monkeypatch):
    "A copy of it, and a cache of its own."
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path / 'cache'))
    shutil.copytree(composed, tmp_path / 'sets')
    return (tmp_path / 'sets').resolve()


def forget():
    "What another process would not know."
    fingerprints._held.clear()


def flip(path, keep=False):
    "Another last byte, with the time stamp of before if asked."
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    stamp = before.st_mtime_ns if keep else before.st_mtime_ns + 10**9
    os.utime(path, ns=(before.st_atime_ns, stamp))


@pytest.mark.parametrize('setting', SETTINGS)
def test_every_file_that_is_read_counts(root, setting, capsys):
    "Every tenth file of a setting, changed by a bit, gives another name, and the line names it."
    names = {fingerprint(root, setting)}
    files = [group[0] for group in used_files(root, setting)]
    there = [f for f in files if (root / f).is_file()]
    assert len(there) > 10 and not any('raw_videos' in f for f in files)
    changed = [f for f in there if f.endswith(('.png', '.jpg', '.wav', '.pkl'))][:: max(1, len(there) // 8)]
    for name in changed:
        capsys.readouterr()
        flip(root / name)
        names.add(fingerprint(root, setting))
        said = capsys.readouterr().err
        assert said.count('\n') == 1 and f'{root / name} has changed since 20' in said
    assert len(names) == 1 + len(changed)


def test_the_files_are_those_that_the_readers_open(root):
    "All pictures and sounds of the folder are of some setting, but for the colours of AVSS."
    used = {group[0] for setting in SETTINGS for group in used_files(root, setting)}
    held = {
        p.relative_to(root).as_posix()
        for p in root.rglob('*')
        if p.suffix in ('.png', '.jpg', '.wav', '.pkl')
    }
    assert {f for f in held - used if 'labels_rgb' not in f} == set()


def test_place_and_time_do_not_count(root, tmp_path, capsys):
    first = fingerprint(root, 's4')
    for path in root.rglob('*.png'):
        os.utime(path)
    assert fingerprint(root, 's4') == first
    forget()
    assert fingerprint(str(root) + '/', 's4') == first
    shutil.move(root, tmp_path / 'elsewhere')
    assert fingerprint(tmp_path / 'elsewhere', 's4') == first
    assert not capsys.readouterr().err
    assert fingerprint(tmp_path / 'elsewhere', 'ms3') != first


def test_only_what_changed_is_read_again(root, monkeypatch):
    read = []
    digest = fingerprints._digest
    monkeypatch.setattr(fingerprints, '_digest', lambda path: read.append(path) or digest(path))
    first, files = fingerprint(root, 'ms3'), used_files(root, 'ms3')
    assert len(read) == len(files)
    forget()
    assert fingerprint(root, 'ms3') == first and len(read) == len(files)
    sound = next((root / 'Multi-sources').rglob('*.wav'))
    flip(sound)
    assert fingerprint(root, 'ms3') != first and read[len(files) :] == [str(sound)]


def test_a_hidden_change_is_found_by_reading(root):
    first = fingerprint(root, 's4')
    assert verify_root(root, 's4') == []
    mask = next((root / 'Single-source').rglob('gt_masks/**/*.png'))
    flip(mask, keep=True)
    assert fingerprint(root, 's4') == first
    (found,) = verify_root(root, 's4')
    assert found.startswith(f'{mask}: ') and found.endswith('under the same size and time stamp.')
    assert fingerprint(root, 's4') != first and verify_root(root, 's4') == []
    flip(mask, keep=True)
    assert fingerprint(root, 's4', verify=True) == first


def test_a_damaged_record_is_written_anew(root, tmp_path):
    first = fingerprint(root, 's4')
    (record,) = (tmp_path / 'cache' / 'fingerprints').glob('s4-*.json')
    record.write_text(record.read_text()[:-9])
    forget()
    assert fingerprint(root, 's4') == first and verify_root(root, 's4') == []


def test_files_that_go_and_come(root, capsys):
    first = fingerprint(root, 's4')
    mel = next((root / 'Single-source').rglob('*.pkl'))
    data = mel.read_bytes()
    mel.unlink()
    assert fingerprint(root, 's4') != first and mel.name in capsys.readouterr().err
    mel.write_bytes(data)
    assert fingerprint(root, 's4') == first and mel.name in capsys.readouterr().err
    clip = table_path(root, 's4')
    lines = clip.read_text().splitlines(keepends=True)
    clip.write_text(''.join(lines[:-1]))
    assert fingerprint(root, 's4') != first and clip.name in capsys.readouterr().err


def test_a_colour_mask_counts_where_it_stands_in(root):
    first = fingerprint(root, 'avss')
    colour = next(root.rglob('labels_rgb/*.png'))
    flip(colour)
    assert fingerprint(root, 'avss') == first
    (colour.parents[1] / 'labels_semantic' / colour.name).unlink()
    second = fingerprint(root, 'avss')
    flip(colour)
    assert len({first, second, fingerprint(root, 'avss')}) == 3


def test_one_look(root):
    with one_look():
        first = fingerprint(root, 's4')
        flip(next((root / 'Single-source').rglob('*.wav')))
        assert fingerprint(root, 's4') == first
    assert fingerprint(root, 's4') != first


def _ask(root, cache, ready, answers):
    os.environ['AVSREPRO_CACHE'] = cache
    read, digest = [], fingerprints._digest
    fingerprints._digest = lambda path: read.append(path) or digest(path)
    ready.wait()
    answers.put((fingerprint(root, 's4'), len(read)))


def test_two_processes_at_once(root, tmp_path):
    "They agree, and every file is read once."
    context = multiprocessing.get_context('fork')
    ready, answers = context.Barrier(2), context.Queue()
    work = [
        context.Process(target=_ask, args=(root, str(tmp_path / 'cache'), ready, answers)) for _ in range(2)
    ]
    for p in work:
        p.start()
    found = [answers.get(timeout=60) for _ in work]
    for p in work:
        p.join()
    assert len({name for name, _ in found}) == 1
    assert sorted(n for _, n in found) == [0, len(used_files(root, 's4'))]


@pytest.mark.parametrize('setting', ['s4', 'ms3', 'vpo-ss'])
def test_the_memory_of_sounds_follows_the_files(root, setting, tmp_path):
    "Its key changes with a sound that it is made from or must not know, and not with the place."
    data = describe('avsbench', root, setting, {})
    key = memory_recipe({}, data, setting)['key']
    there = tmp_path / 'there'
    shutil.copytree(root, there)
    assert memory_recipe({}, describe('avsbench', there, setting, {}), setting)['key'] == key
    sounds = (root / 'VGGSound') if setting == 'vpo-ss' else root / 'Single-source'
    names = {group[0] for group in used_files(root, 'vpo-ss' if setting == 'vpo-ss' else 's4')}
    flip(next(p for p in sorted(sounds.rglob('*.wav')) if p.relative_to(root).as_posix() in names))
    assert memory_recipe({}, data, setting)['key'] != key
