"Bad VPO data: each kind is refused with one sentence that names the file and says what was expected."

import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from avsrepro.core.errors import InputError
from avsrepro.data.stereo import pan, require_stereo, stereo_mel
from avsrepro.data.vpo import (
    VPO_CLASSES,
    VPO_SETTINGS,
    Sample,
    SoundSource,
    VPOData,
    held_out,
    to_clip,
    vpo_table,
    write_sample,
    write_vpo_table,
)
from avsrepro.data.vpo_scenes import VPOConfig, write_vpo

WAV = 0.1 * torch.sin(torch.arange(48_000) / 5)


def sample_of(setting, image=42, split='train', positions=(0.25, 0.75)):
    mask = np.zeros((16, 24), np.uint8)
    mask[4:8, 2:9] = 9
    mask[4:8, 15:20] = 255
    name = f'{image:012d}_{7:012d}' if setting == 'vpo-ss' else f'{image:012d}'
    sources = tuple(
        SoundSource(c, WAV, p)
        for c, p in zip(('dog', 'cell phone'), positions[:1] if setting == 'vpo-ss' else positions)
    )
    return Sample(name, setting, split, setting, np.full((16, 24, 3), 90, np.uint8), mask, sources)


def make(root, setting, samples=None, change=None):
    "A small set of one training sample; `change(rows)` spoils its table. Returns its paths."
    rows = [r for s in samples or [sample_of(setting)] for r in write_sample(root, s, VPO_CLASSES)]
    write_vpo_table(root, setting, rows)
    files = VPOData(root, setting, 'train').raw_paths(0)
    if change:
        change(rows)
        write_vpo_table(root, setting, rows)
    return files


def refused(path, action, *words):
    "The action raises one sentence that names `path` and holds `words`, and the sentence is one line."
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert os.path.basename(str(path)) in message and '\n' not in message, message
    for word in words:
        assert word in message, message


every = pytest.mark.parametrize('setting', VPO_SETTINGS)


@every
def test_round_trip(tmp_path, setting):
    make(tmp_path, setting)
    clip, made = VPOData(tmp_path, setting, 'train')[0], to_clip(sample_of(setting))
    assert (
        clip.info == made.info
        and torch.equal(clip.target, made.target)
        and set(clip.target.unique().tolist()) == {0, 9, 255}
    )
    assert (
        clip.frames.shape == (1, 3, 16, 24)
        and clip.audio.shape == (2, 48_000)
        and clip.mel.shape == (1, 2, 96, 64)
        and clip.supervised.all()
    )


@every
def test_missing_table(tmp_path, setting):
    refused(
        vpo_table(tmp_path, setting), lambda: VPOData(tmp_path, setting, 'train'), 'no such table', 'VGGSound'
    )


@every
@pytest.mark.parametrize('kind', ['image', 'mask'])
def test_missing_picture(tmp_path, setting, kind):
    path = getattr(make(tmp_path, setting), kind)
    path.unlink()
    refused(path, lambda: VPOData(tmp_path, setting, 'train')[0], 'cannot be read', 'remove its rows')


@every
def test_missing_sound(tmp_path, setting):
    path = make(tmp_path, setting).audio[-1]
    path.unlink()
    refused(path, lambda: VPOData(tmp_path, setting, 'train')[0], 'no such sound file', 'expected')


def test_damaged_picture(tmp_path):
    path = make(tmp_path, 'vpo-ms').mask
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, lambda: VPOData(tmp_path, 'vpo-ms', 'train')[0], 'damaged')


@every
def test_mask_of_another_size(tmp_path, setting):
    path = make(tmp_path, setting).mask
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    refused(path, lambda: VPOData(tmp_path, setting, 'train')[0], '16x16', '16x24')


@pytest.mark.parametrize('value', [1, 95, 254])
def test_unknown_category(tmp_path, value):
    path = make(tmp_path, 'vpo-ss').mask
    Image.fromarray(np.full((16, 24), value, np.uint8)).save(path)
    refused(path, lambda: VPOData(tmp_path, 'vpo-ss', 'train')[0], f'category id {value}', 'classes.json')


@every
@pytest.mark.parametrize('value', ['', 'nan', 'left', '-0.1', '1.01', 'inf'])
def test_no_position(tmp_path, setting, value):
    make(tmp_path, setting, change=lambda rows: rows[-1].update(audio_pos=value))
    refused(
        vpo_table(tmp_path, setting),
        lambda: VPOData(tmp_path, setting, 'train'),
        'line',
        'audio_pos',
        'from 0 (left) to 1 (right)',
    )


@pytest.mark.parametrize('value', ['', '2', 'nan', 'maybe'])
def test_broken_multi_instance(tmp_path, value):
    make(tmp_path, 'vpo-msmi', change=lambda rows: rows[0].update(multi_instance=value))
    refused(
        vpo_table(tmp_path, 'vpo-msmi'),
        lambda: VPOData(tmp_path, 'vpo-msmi', 'train'),
        'line 2',
        'not 0 or 1',
    )


@pytest.mark.parametrize('column,value', [('multi_instance', 0), ('split', 'val')])
def test_rows_of_one_image_disagree(tmp_path, column, value):
    make(tmp_path, 'vpo-msmi', change=lambda rows: rows[1].update({column: value}))
    refused(
        vpo_table(tmp_path, 'vpo-msmi'),
        lambda: VPOData(tmp_path, 'vpo-msmi', 'train'),
        'line 3',
        column,
        'one sample',
    )


@pytest.mark.parametrize('column', ['audio_pos', 'multi_instance', 'img_Id'])
def test_missing_column(tmp_path, column):
    make(tmp_path, 'vpo-msmi')
    table = vpo_table(tmp_path, 'vpo-msmi')
    table.write_text(table.read_text().replace(column, 'other', 1))
    refused(table, lambda: VPOData(tmp_path, 'vpo-msmi', 'train'), 'lacks the column', column)


@pytest.mark.parametrize(
    'column,value',
    [
        ('img_Id', 'x'),
        ('img_Id', 10**12),
        ('split', 'dev'),
        ('vgg_file', '../up'),
        ('cateName', ''),
        ('ann_Ids', '[1, 2]'),
    ],
)
def test_other_bad_values(tmp_path, column, value):
    make(tmp_path, 'vpo-ss', change=lambda rows: rows[0].update({column: value}))
    refused(vpo_table(tmp_path, 'vpo-ss'), lambda: VPOData(tmp_path, 'vpo-ss', 'train'), 'line 2', column)


def test_row_of_another_length(tmp_path):
    make(tmp_path, 'vpo-ms')
    table = vpo_table(tmp_path, 'vpo-ms')
    table.write_text(table.read_text() + 'dog,18\n')
    refused(table, lambda: VPOData(tmp_path, 'vpo-ms', 'train'), 'line 4', '2 fields under 7 columns')


@pytest.mark.parametrize(
    'content', ['{', '[]', '{}', '{"a": 0}', '{"a": 3, "b": 3}', '{"a": 255}', '{"a": true}']
)
def test_broken_class_table(tmp_path, content):
    make(tmp_path, 'vpo-ss')
    path = vpo_table(tmp_path, 'vpo-ss').with_name('classes.json')
    path.write_text(content)
    refused(path, lambda: VPOData(tmp_path, 'vpo-ss', 'train'), 'expected')


def test_empty_split_and_unknown_names(tmp_path):
    make(tmp_path, 'vpo-ss')
    refused(
        vpo_table(tmp_path, 'vpo-ss'),
        lambda: VPOData(tmp_path, 'vpo-ss', 'test'),
        "no rows for the split 'test'",
    )
    refused('vpo-sss', lambda: VPOData(tmp_path, 'vpo-sss', 'test'), "Did you mean 'vpo-ss'")
    refused('tset', lambda: VPOData(tmp_path, 'vpo-ss', 'tset'), "Did you mean 'test'")


def test_mono_where_stereo_is_expected():
    stereo = stereo_mel(pan([WAV], [0.2]))
    assert require_stereo(stereo) is stereo
    for mel in (stereo[:, :1], stereo.mean(1), torch.zeros(96, 64)):
        name = 'the mel of VPO-MS'
        refused(name, partial(require_stereo, mel, name), 'two channels', 'VPOData')
    refused('1.5', lambda: pan([WAV], [1.5]), 'between 0 (left) and 1 (right)')
    refused('nan', lambda: pan([WAV], [float('nan')]), 'between 0 (left) and 1 (right)')


def test_annotations_of_one_image_stay_in_one_split(tmp_path):
    image = next(i for i in range(1000) if held_out(i))
    samples = [sample_of('vpo-ss')]
    for ann in (1, 2):
        samples.append(sample_of('vpo-ss', image, 'val'))
        samples[-1].name = f'{image:012d}_{ann:012d}'
    make(tmp_path, 'vpo-ss', samples)
    assert len(VPOData(tmp_path, 'vpo-ss', 'val')) == 2 and len(VPOData(tmp_path, 'vpo-ss', 'train')) == 1


def test_masks_in_category_folders_are_found(tmp_path):
    path = make(tmp_path, 'vpo-ss').mask
    inside = path.parent / 'dog' / path.name
    inside.parent.mkdir()
    path.rename(inside)
    data = VPOData(tmp_path, 'vpo-ss', 'train')
    assert data.raw_paths(0).mask == inside and (data[0].target == 9).any()


def test_part_of_msmi_lies_in_ms(tmp_path):
    one = sample_of('vpo-msmi')
    one.folder = 'vpo-ms'
    files = make(tmp_path, 'vpo-msmi', [one])
    assert (
        files.image.parts[-3] == 'VPO-MS'
        and VPOData(tmp_path, 'vpo-msmi', 'train')[0].info['source'] == 'vpo-ms'
    )


def test_several_processes_write_the_same_files(tmp_path):
    cfg = VPOConfig(setting='vpo-msmi', size=32, train=60, val=2, test=2, plain=0.3)
    for jobs in (1, 2):
        write_vpo(cfg, tmp_path / str(jobs), jobs, progress=False)
    files = [
        sorted(p.relative_to(tmp_path / j) for p in (tmp_path / j).rglob('*') if p.is_file()) for j in '12'
    ]
    assert files[0] == files[1] and all(
        (tmp_path / '1' / p).read_bytes() == (tmp_path / '2' / p).read_bytes() for p in files[0]
    )
