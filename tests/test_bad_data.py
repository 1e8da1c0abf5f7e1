"Bad input data: each kind is refused with one sentence that names the file, or read if it is valid."

import os
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avsrepro.core.errors import InputError
from avsrepro.data.audio import log_mel, read_audio, robust_log_mel
from avsrepro.data.check import check_dataset
from avsrepro.data.clips import Clip, metadata_row, open_dataset, write_clip
from avsrepro.data.layouts import write_metadata
from avsrepro.data.pickles import load_log_mel, save_log_mel

SOUND = 0.1 * torch.sin(torch.arange(80_000) / 5)[None]
MEL = log_mel(SOUND[0])


def clip_of(setting, split='train', id='clip', T=5):
    target = torch.eye(16, dtype=torch.int64).repeat(T, 1, 1)
    info = dict(id=id, split=split, category='dog', source='v2' if T == 10 else 'v1m')
    frames = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(T, 3, 16, 16)
    return Clip(frames, SOUND, MEL, target, torch.ones(T, dtype=torch.bool), info=info)


def make(root, setting, ids=('clip',), split='train'):
    "A small data set; the files of its first clip."
    clips = [clip_of(setting, split, id) for id in ids]
    files = [write_clip(root, setting, clip) for clip in clips]
    table = write_metadata(root, setting, [metadata_row(setting, c) for c in clips], ['background', 'dog'])
    return files[0], table


def refused(path, action, *words):
    "The action raises one sentence that names `path` and holds `words`, and the sentence is one line."
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert os.path.basename(str(path)) in message and '\n' not in message, message
    for word in words:
        assert word in message, message


KINDS = ['frames', 'masks', 'audio']


@pytest.mark.parametrize('setting', ['s4', 'ms3', 'avss'])
@pytest.mark.parametrize('kind', KINDS)
def test_missing_file(tmp_path, setting, kind):
    files, _ = make(tmp_path, setting)
    found = getattr(files, kind)
    path = found[0] if isinstance(found, tuple) else found
    path.unlink()
    if setting == 'avss' and kind == 'masks':
        files.colours[0].unlink()  # else the colour mask stands in
    refused(path, lambda: open_dataset(tmp_path, setting, 'train')[0], 'expected')
    assert any(path.name in p for p in check_dataset(tmp_path, setting).problems)


@pytest.mark.parametrize('kind', ['frames', 'masks'])
def test_truncated_image(tmp_path, kind):
    files, _ = make(tmp_path, 'ms3')
    path = getattr(files, kind)[2]
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, lambda: open_dataset(tmp_path, 'ms3', 'train')[0], 'damaged')


def test_not_an_image(tmp_path):
    files, _ = make(tmp_path, 's4')
    files.frames[4].write_text('<html>')
    refused(files.frames[4], lambda: open_dataset(tmp_path, 's4', 'train')[0], 'not an image')


@pytest.mark.parametrize('size', [None, (8, 8)])
def test_mask_of_another_size(tmp_path, size):
    files, _ = make(tmp_path, 'ms3')
    Image.new('L', (16, 12)).save(files.masks[1])
    refused(files.masks[1], lambda: open_dataset(tmp_path, 'ms3', 'train', size=size)[0], '12x16', '16x16')


def test_frame_of_another_size(tmp_path):
    files, _ = make(tmp_path, 'ms3')
    Image.new('RGB', (16, 12)).save(files.frames[3])
    refused(files.frames[3], lambda: open_dataset(tmp_path, 'ms3', 'train')[0], '12x16', '16x16')


def test_mask_with_a_third_value(tmp_path):
    files, _ = make(tmp_path, 's4')
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(files.masks[0])
    refused(files.masks[0], lambda: open_dataset(tmp_path, 's4', 'train')[0], 'binary mask')


def test_wrong_class_id(tmp_path):
    files, _ = make(tmp_path, 'avss')
    names = ['background', *(f'class {i}' for i in range(1, 71))]
    write_metadata(tmp_path, 'avss', [metadata_row('avss', clip_of('avss'))], names)
    Image.new('L', (16, 16), 70).save(files.masks[0])
    assert open_dataset(tmp_path, 'avss', 'train')[0].target.max() == 70
    Image.new('L', (16, 16), 71).save(files.masks[0])
    refused(files.masks[0], lambda: open_dataset(tmp_path, 'avss', 'train')[0], '[71]', '0 to 70')


def test_bad_targets_are_not_written(tmp_path):
    clip = clip_of('ms3')
    clip.target[0, 0, 0] = 3
    with pytest.raises(InputError, match="'clip'"):
        write_clip(tmp_path, 'ms3', clip)
    clip = clip_of('ms3')
    with pytest.raises(InputError, match='5x16x16'):
        write_clip(tmp_path, 'ms3', replace(clip, target=clip.target[:, :8]))
    assert not list(tmp_path.rglob('*.*'))


def test_nan_log_mel(tmp_path):
    files, _ = make(tmp_path, 'ms3')
    files.mel.write_bytes(pickle.dumps(torch.full((5, 1, 96, 64), float('nan'))))
    refused(files.mel, lambda: open_dataset(tmp_path, 'ms3', 'train')[0], 'NaN')
    with pytest.raises(InputError, match='NaN'):
        save_log_mel(tmp_path / 'new.pkl', MEL * float('nan'))
    assert not (tmp_path / 'new.pkl').exists()


@pytest.mark.parametrize(
    'content', [pickle.dumps(MEL[:, 0]), pickle.dumps([1, 2]), pickle.dumps(MEL)[:500], b'']
)
def test_log_mel_that_is_none(tmp_path, content):
    path = tmp_path / 'odd.pkl'
    path.write_bytes(content)
    refused(path, lambda: load_log_mel(path), '[T,1,96,64]')


class Command:
    "A pickle that runs a command when it is loaded."

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize(
    'wrap', [pickle.dumps, lambda c: pickle.dumps((MEL, c)), lambda c: pickle.dumps({'mel': c})]
)
def test_malicious_pickle(tmp_path, wrap):
    files, _ = make(tmp_path, 'ms3')
    files.mel.write_bytes(wrap(Command(f'touch {tmp_path}/owned')))
    refused(files.mel, lambda: open_dataset(tmp_path, 'ms3', 'train')[0], 'system')
    assert any('system' in p for p in check_dataset(tmp_path, 'ms3').problems)
    assert not (tmp_path / 'owned').exists()


def test_malicious_bytes_inside_a_storage(tmp_path):
    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Command(f'touch {tmp_path}/owned')),)

    path = tmp_path / 'inner.pkl'
    path.write_bytes(pickle.dumps(Storage()))
    refused(path, lambda: load_log_mel(path))
    torch.save(Command(f'touch {tmp_path}/owned'), path)
    refused(path, lambda: load_log_mel(path))
    assert not (tmp_path / 'owned').exists()


@pytest.mark.parametrize('suffix', ['wav', 'flac'])
def test_truncated_sound(tmp_path, suffix):
    path = tmp_path / f'cut.{suffix}'
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    path.write_bytes(path.read_bytes()[:9_000])
    refused(path, lambda: read_audio(path), 'expected' if suffix == 'flac' else 'truncated')


def test_sound_that_is_none(tmp_path):
    for name, write in dict(
        empty=lambda p: soundfile.write(p, np.zeros(0), 16_000),
        text=lambda p: p.write_text('no sound'),
        nan=lambda p: soundfile.write(p, np.array([0, np.nan]), 16_000, subtype='FLOAT'),
    ).items():
        path = tmp_path / f'{name}.wav'
        write(path)
        refused(path, partial(read_audio, path))


@pytest.mark.parametrize(
    'rate,subtype,channels,scale',
    [
        (16_000, 'PCM_16', 1, 0),
        (16_000, 'PCM_16', 2, 0.1),
        (8_000, 'PCM_U8', 1, 0.1),
        (96_000, 'PCM_24', 2, 0.1),
        (44_100, 'FLOAT', 6, 0.1),
        (16_001, 'PCM_32', 1, 0.1),
    ],
)
def test_unusual_sound_is_read(tmp_path, rate, subtype, channels, scale):
    "Silent, stereo, 8-bit, 24-bit, float, 96 kHz: handled, also inside a data set."
    files, _ = make(tmp_path, 'ms3')
    soundfile.write(
        files.audio,
        scale * np.sin(np.arange(5 * rate) / 9)[:, None].repeat(channels, 1),
        rate,
        subtype=subtype,
    )
    files.mel.unlink()
    clip = open_dataset(tmp_path, 'ms3', 'train')[0]
    assert clip.audio.shape == (channels, 80_000) and clip.mel.shape == (5, 1, 96, 64)
    assert clip.mel.isfinite().all() and robust_log_mel(clip.audio.mean(0)).isfinite().all()


def test_short_sound_is_filled(tmp_path):
    files, _ = make(tmp_path, 'ms3')
    soundfile.write(files.audio, np.zeros(800), 16_000)
    files.mel.unlink()
    assert open_dataset(tmp_path, 'ms3', 'train')[0].mel.shape == (5, 1, 96, 64)


@pytest.mark.parametrize(
    'content,word',
    [
        ('', 'lacks the columns'),
        ('name,category,split\n', 'no clips'),
        ('name,split\nclip,train\n', 'lacks the column'),
        ('name,start,category,split\nclip,0,dog\n', 'line 2'),
        ('name,start,category,split\nclip,0,dog,tset\n', 'tset'),
        ('name,start,category,split\n../clip,0,dog,train\n', '../clip'),
        ('name,start,category,split\n,0,dog,train\n', 'line 2'),
    ],
)
def test_malformed_table(tmp_path, content, word):
    _, table = make(tmp_path, 's4')
    table.write_text(content)
    refused(table, lambda: open_dataset(tmp_path, 's4', 'train'), word)


def test_duplicate_rows_are_reported(tmp_path):
    _, table = make(tmp_path, 'ms3')
    table.write_text(table.read_text() + 'clip,test\n')
    problems = check_dataset(tmp_path, 'ms3').problems
    assert any(table.name in p and "'clip' is listed 2 times" in p for p in problems)


@pytest.mark.parametrize('labels', ['{', '{"background": 0, "dog": 1}', '{"background": 1, "dog": 3}', '[]'])
def test_malformed_labels(tmp_path, labels):
    make(tmp_path, 'avss')
    (tmp_path / 'label2idx.json').write_text(labels)
    refused('label2idx.json', lambda: open_dataset(tmp_path, 'avss', 'train'))
    assert any('label2idx.json' in p for p in check_dataset(tmp_path, 'avss').problems)


def test_unknown_names_and_places(tmp_path):
    make(tmp_path, 'ms3')
    refused('ms33', lambda: open_dataset(tmp_path, 'ms33', 'train'), "Did you mean 'ms3'")
    refused('tset', lambda: open_dataset(tmp_path, 'ms3', 'tset'), "Did you mean 'test'")
    refused('nowhere', lambda: open_dataset(tmp_path / 'nowhere', 'ms3', 'train'), 'no such folder')
    refused('s4_meta_data.csv', lambda: open_dataset(tmp_path, 's4', 'train'), 'Single-source')


def test_many_problems_in_one_report(tmp_path):
    files, _ = make(tmp_path, 'ms3', ('clip', 'other'), 'val')
    files.frames[0].unlink()
    files.masks[0].write_text('x')
    files.audio.write_text('x')
    files.mel.write_bytes(b'x')
    report = check_dataset(tmp_path, 'ms3')
    assert report.counts == {'val': 2} and len(report.problems) == 4
    for path in (files.frames[0], files.masks[0], files.audio, files.mel):
        assert str(path) in str(report)
