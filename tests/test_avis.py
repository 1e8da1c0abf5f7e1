"Long videos with tracks: a bad file is one clear sentence, and parallel writing gives the same files."

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from avsrepro.core.errors import InputError
from avsrepro.data.avis import open_avis
from avsrepro.data.avis_scenes import AVISConfig, write_avis

CONFIG = AVISConfig(size=24, frames=4, train=1, val=1, test=1)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('avis')
    write_avis(CONFIG, folder, jobs=1, progress=False)
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'avis')


def change(root, edit):
    "Apply `edit` to the annotations of the test split; the file."
    path = root / 'test.json'
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))
    return path


def refused(path, action, *words):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert os.path.basename(str(path)) in message and '\n' not in message, message
    for word in words:
        assert word in message, message


def masked(table):
    "The first run-length code of the file."
    return next(code for a in table['annotations'] for code in a['segmentations'] if code)


def test_reads(root):
    data = open_avis(root, 'test')
    clip = data[0]
    assert len(data) == 1 and clip.frames.shape == (4, 3, 24, 24) and clip.mel.shape == (4, 1, 96, 64)
    assert len(clip.instances) >= 1 and set(np.unique(clip.target)) - {0} <= set(
        clip.instances.labels.tolist()
    )


@pytest.mark.parametrize(
    'edit',
    [
        lambda t: t.pop('annotations'),
        lambda t: t['annotations'].clear(),
        lambda t: t.update(annotations=None),
    ],
)
def test_without_tracks(root, edit):
    path = change(root, edit)
    refused(path, lambda: open_avis(root, 'test'), 'no tracks', 'expected')


def test_truncated_json(root):
    path = root / 'test.json'
    path.write_text(path.read_text()[:-40])
    refused(path, lambda: open_avis(root, 'test'), 'not complete JSON')


def test_missing_json(root):
    (root / 'test.json').unlink()
    refused('test.json', lambda: open_avis(root, 'test'), 'expected')


def test_not_a_table(root):
    (root / 'test.json').write_text('[1, 2]')
    refused('test.json', lambda: open_avis(root, 'test'), "'videos'")


@pytest.mark.parametrize(
    'edit, word',
    [
        (lambda t: t['annotations'][0].update(video_id=99), 'video 99'),
        (lambda t: t['annotations'][0].update(category_id=99), 'category 99'),
        (lambda t: t['annotations'][0]['segmentations'].pop(), '3 segmentations'),
        (lambda t: t['annotations'][0].pop('segmentations'), "lacks 'segmentations'"),
        (lambda t: t['videos'][0].update(file_names=[]), 'no frames'),
        (lambda t: t['videos'].clear(), 'no videos'),
    ],
)
def test_inconsistent(root, edit, word):
    refused(change(root, edit), lambda: open_avis(root, 'test'), word)


@pytest.mark.parametrize(
    'edit, word',
    [
        (lambda t: masked(t).update(size=[12, 12]), '12x12'),
        (lambda t: masked(t).update(counts=[5]), 'add up'),
        (lambda t: masked(t).update(counts='~~~'), 'damaged'),
        (lambda t: masked(t).update(counts=masked(t)['counts'][:-2]), 'damaged'),
        (lambda t: masked(t).pop('counts'), 'run-length'),
    ],
)
def test_bad_mask(root, edit, word):
    refused(change(root, edit), lambda: open_avis(root, 'test')[0], word, 'expected')


def test_missing_frame(root):
    path = open_avis(root, 'test').raw_paths(0).frames[2]
    path.unlink()
    refused(path, lambda: open_avis(root, 'test')[0], 'expected a frame')
    assert len(open_avis(root, 'test').window(0, 0, 2).frames) == 2


def test_damaged_frame(root):
    path = open_avis(root, 'test').raw_paths(0).frames[1]
    path.write_bytes(path.read_bytes()[:60])
    refused(path, lambda: open_avis(root, 'test')[0], 'frame')


def test_frame_of_another_size(root):
    path = open_avis(root, 'test').raw_paths(0).frames[1]
    Image.new('RGB', (20, 24)).save(path)
    refused(path, lambda: open_avis(root, 'test')[0], '24x20', '24x24')


def test_missing_sound(root):
    path = open_avis(root, 'test').raw_paths(0).audio
    path.unlink()
    refused(path, lambda: open_avis(root, 'test')[0], 'expected WAV')


def test_wrong_names(root):
    with pytest.raises(InputError, match="Did you mean 'test'"):
        open_avis(root, 'tets')
    with pytest.raises(InputError, match='no such folder'):
        open_avis(root / 'nowhere', 'test')
    with pytest.raises(InputError, match='none of the given classes'):
        open_avis(root, 'test', classes=['background', 'dog'])


def test_same_files_in_parallel(tmp_path):
    "One process and two give the same bytes."
    config = AVISConfig(size=24, frames=3, train=6, val=5, test=5)
    for jobs in (1, 2):
        write_avis(config, tmp_path / str(jobs), jobs=jobs, progress=False)
    one, two = (
        {p.relative_to(tmp_path / j): p.read_bytes() for p in (tmp_path / j).rglob('*') if p.is_file()}
        for j in '12'
    )
    assert one == two and len(one) == 4 + 16 * 4
