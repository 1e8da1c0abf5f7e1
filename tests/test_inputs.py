"Inputs that could be read as something else: the right value, or one sentence that names the file."

import io
import json
import struct
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from test_bad_data import MEL, SOUND, clip_of, make, refused

from avsrepro.core.errors import InputError
from avsrepro.data.audio import read_audio
from avsrepro.data.avis import open_avis
from avsrepro.data.check import check_dataset
from avsrepro.data.clips import open_dataset
from avsrepro.data.images import decode_binary, decode_classes, decode_colours, decode_frame, voc_palette
from avsrepro.data.layouts import csv_lines, read_classes, read_table, table_text
from avsrepro.data.loading import describe
from avsrepro.data.pickles import load_log_mel, save_log_mel
from avsrepro.data.vpo import read_vpo_table, vpo_table

OBJECT = np.zeros((16, 16), np.uint8)
OBJECT[4:12, 4:16] = 1  # 96 pixels


def image(values, mode=None, palette=None):
    made = Image.fromarray(np.asarray(values))
    if palette is not None:
        made.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    return made.convert(mode) if mode else made


def png(values, mode=None, palette=None, kind='PNG', **options):
    buffer = io.BytesIO()
    image(values, mode, palette).save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(colour, alpha):
    return np.dstack([np.broadcast_to(np.uint8(colour), (16, 16))] * 3 + [np.uint8(alpha)])


WHITE, BLACK, GREY = 255 * np.ones_like(OBJECT), 0 * OBJECT, [[i, i, i] for i in range(256)]
FLIPPED = [[255 - i] * 3 for i in range(256)]
INVERTED = [[255] * 3, [0] * 3]
BINARY = {
    'alpha on white': (png(with_alpha(255, 255 * OBJECT)), OBJECT),
    'alpha on black': (png(with_alpha(0, 255 * OBJECT)), OBJECT),
    'alpha on white, nothing there': (png(with_alpha(255, BLACK)), BLACK),
    'opaque alpha': (png(with_alpha(255 * OBJECT, WHITE)), OBJECT),
    'opaque and black': (png(with_alpha(0, WHITE)), BLACK),
    'alpha and colour agree': (png(with_alpha(255 * OBJECT, 255 * OBJECT)), OBJECT),
    'alpha and colour differ': (png(with_alpha(255 * OBJECT, 255 - 255 * OBJECT)), None),
    'colour behind full transparency': (png(with_alpha(255 * OBJECT, BLACK)), None),
    'half transparent': (png(with_alpha(255, 128 * OBJECT)), None),
    'grey and alpha': (png(np.dstack([WHITE, 255 * OBJECT])), OBJECT),
    'grey and other alpha': (png(np.dstack([255 * OBJECT, 255 - 255 * OBJECT])), None),
    'white is transparent': (png(255 * OBJECT, transparency=255), None),
    'black is transparent': (png(255 * OBJECT, transparency=0), OBJECT),
    '16 bits, 0 and 65535': (png(OBJECT.astype(np.uint16) * 65535), OBJECT),
    '16 bits, 0 and 1': (png(OBJECT.astype(np.uint16)), OBJECT),
    '16 bits, 0 and 256': (png(OBJECT.astype(np.uint16) * 256), None),
    '1 bit': (png(255 * OBJECT, '1'), OBJECT),
    'palette of greys': (png(OBJECT, palette=GREY), OBJECT),
    'palette of colours': (png(OBJECT, palette=[[0, 0, 0], [200, 0, 0]]), OBJECT),
    'inverted palette': (png(OBJECT, palette=INVERTED), None),
    'inverted palette, all object': (png(OBJECT | 1, palette=INVERTED), None),
    'inverted palette of 256': (png(255 * OBJECT, palette=FLIPPED), None),
    'palette, background transparent': (png(OBJECT, palette=GREY, transparency=b'\0\xff'), OBJECT),
    'palette, object transparent': (png(OBJECT, palette=GREY, transparency=b'\xff\0'), None),
    'JPEG': (png(255 * OBJECT, kind='JPEG'), None),
    'WebP': (png(255 * OBJECT, 'RGB', kind='WEBP', lossless=True), None),
    'CMYK': (png(255 * OBJECT, 'CMYK', kind='TIFF'), None),
    'float': (png(OBJECT.astype(np.float32), kind='TIFF'), None),
    '32 bits': (png(OBJECT.astype(np.int32), kind='TIFF'), None),
    'inverted TIFF': (png(255 * OBJECT, '1', kind='TIFF', tiffinfo={262: 0}), None),
    'animated': (png(255 * OBJECT, save_all=True, append_images=[image(255 - 255 * OBJECT)]), None),
    'animated GIF': (png(255 * OBJECT, kind='GIF', save_all=True, append_images=[image(OBJECT)]), None),
    'one GIF': (png(255 * OBJECT, kind='GIF'), None),
    'interlaced or not': (png(255 * OBJECT, optimize=True), OBJECT),
    'colours': (png(np.dstack([OBJECT, 0 * OBJECT, OBJECT]) * 255), None),
    'empty file': (b'', None),
}


@pytest.mark.parametrize('case', BINARY)
def test_binary_mask(tmp_path, case):
    data, wanted = BINARY[case]
    path = tmp_path / 'm.png'
    if wanted is None:
        refused(path, lambda: decode_binary(data, path))
    else:
        found = decode_binary(data, path)
        assert found.dtype == np.uint8 and found.sum() == wanted.sum() and (found == wanted).all()


def test_a_mask_with_alpha_is_read_in_a_data_set(tmp_path):
    files, _ = make(tmp_path, 's4')
    files.masks[0].write_bytes(BINARY['alpha on white'][0])
    assert open_dataset(tmp_path, 's4', 'train')[0].target[0].sum() == 96
    files.masks[0].write_bytes(BINARY['inverted palette'][0])
    refused(files.masks[0], lambda: open_dataset(tmp_path, 's4', 'train')[0], 'palette')
    assert any('palette' in p for p in check_dataset(tmp_path, 's4').problems)


def turned(values, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png(values, exif=exif, **options)


def gamma(data, value=100_000):
    chunk = b'gAMA' + struct.pack('>I', value)
    import zlib

    return data[:33] + struct.pack('>I', 4) + chunk + struct.pack('>I', zlib.crc32(chunk)) + data[33:]


IDS = (np.arange(256).reshape(16, 16) % 71).astype(np.uint8)
ORDER = np.random.default_rng(0).permutation(71)
CLASSES = {
    'grey': (png(IDS), IDS),
    'grey with gamma': (gamma(png(IDS)), IDS),
    'upright': (turned(IDS, 1), IDS),
    'turned': (turned(IDS, 6), None),
    'VOC palette': (png(IDS, palette=voc_palette()), IDS),
    'own palette': (png(IDS % 2, palette=[[0, 0, 9], [7, 90, 3]]), IDS % 2),
    'sorted VOC palette': (png(IDS, palette=voc_palette()[ORDER]), None),
    'renumbered greys': (png(OBJECT, palette=[[0, 0, 0], [7, 7, 7]]), None),
    '16 bits': (png(IDS.astype(np.uint16)), IDS),
    '16 bits, shifted': (png(IDS.astype(np.uint16) * 256), None),
    'RGB': (png(np.dstack([IDS] * 3)), IDS),
    'alpha': (png(np.dstack([IDS] * 3 + [WHITE - 1])), None),
    '1 bit': (png(255 * OBJECT, '1'), None),
    '1 bit, nothing there': (png(BLACK, '1'), BLACK),
    'JPEG': (png(IDS, kind='JPEG', quality=100), None),
}


@pytest.mark.parametrize('case', CLASSES)
def test_class_mask(tmp_path, case):
    data, wanted = CLASSES[case]
    path = tmp_path / 'm.png'
    if wanted is None:
        refused(path, lambda: decode_classes(data, path, 71))
    else:
        assert (decode_classes(data, path, 71) == wanted).all()


def test_grey_of_four_bits_is_no_class_id(tmp_path):
    "Pillow stretches four bits to eight: id 1 would be read as 17."
    import zlib

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    row = zlib.compress(b'\0\x01' * 2)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 2, 4, 0, 0, 0, 0))
    data += chunk(b'IDAT', row) + chunk(b'IEND', b'')
    assert np.asarray(Image.open(io.BytesIO(data)))[0, 1] == 17
    refused('m.png', lambda: decode_classes(data, tmp_path / 'm.png', 71), '4 bits')


def test_colour_mask(tmp_path):
    path = tmp_path / 'c.png'
    assert (decode_colours(png(voc_palette()[IDS]), path, 71) == IDS).all()
    for data in (
        png(np.dstack([voc_palette()[IDS], WHITE - 1])),
        png(IDS * 3),  # ids where colours belong
        png(voc_palette()[IDS], kind='JPEG'),
    ):
        refused(path, partial(decode_colours, data, path, 71))


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.dstack([RAMP, RAMP[::-1], RAMP.T])
FRAMES = {
    'RGB': (png(COLOURS), COLOURS),
    'grey': (png(RAMP), np.dstack([RAMP] * 3)),
    'opaque alpha': (png(np.dstack([COLOURS, WHITE])), COLOURS),
    'palette': (png(RAMP, palette=FLIPPED), np.dstack([255 - RAMP] * 3)),
    '16 bits': (png(RAMP.astype(np.uint16) * 257), None),
    'alpha': (png(np.dstack([COLOURS, RAMP])), None),
    'palette with alpha': (png(RAMP, palette=GREY, transparency=b'\xff\0'), None),
    'transparent colour': (png(COLOURS, transparency=tuple(COLOURS[0, 0].tolist())), None),
    'CMYK': (png(COLOURS, 'CMYK', kind='JPEG'), None),
    'float': (png(RAMP.astype(np.float32), kind='TIFF'), None),
    'animated': (png(COLOURS, save_all=True, append_images=[image(COLOURS[::-1])]), None),
    'animated WebP': (png(COLOURS, kind='WEBP', save_all=True, append_images=[image(COLOURS[::-1])]), None),
    'turned': (turned(COLOURS, 3, kind='JPEG'), None),
    'turned PNG': (turned(COLOURS, 8), None),
}


@pytest.mark.parametrize('case', FRAMES)
def test_frame(tmp_path, case):
    data, wanted = FRAMES[case]
    path = tmp_path / 'f.png'
    if wanted is None:
        refused(path, lambda: decode_frame(data, path))
    else:
        assert (decode_frame(data, path) == wanted).all()


def flac(samples, stated=None, rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format='FLAC', subtype='PCM_16')
    data = buffer.getvalue()
    word = int.from_bytes(data[18:26], 'big') >> 36 << 36
    return data if stated is None else data[:18] + (word | stated).to_bytes(8, 'big') + data[26:]


def wav(samples, subtype='PCM_16'):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format='WAV', subtype=subtype)
    return buffer.getvalue()


def stating(data, length, riff=None):
    "A WAV file whose header states another length of its samples."
    at = data.index(b'data') + 4
    head = data[:4] + struct.pack('<I', riff) + data[8:] if riff is not None else data
    return head[:at] + struct.pack('<I', length) + head[at + 4 :]


NOISE = np.round(np.random.default_rng(1).uniform(-0.9, 0.9, (70_001, 2)) * 32768) / 32768


@pytest.mark.parametrize('stated', [0, 1, 35_000, 70_001])
@pytest.mark.parametrize('length', [70_001, 65_536, 4_096, 131_072])
def test_flac_is_read_to_its_end(tmp_path, stated, length):
    path, samples = tmp_path / 'a.flac', np.resize(NOISE, (length, 2))
    path.write_bytes(flac(samples, min(stated, length)))
    assert torch.equal(read_audio(path), torch.from_numpy(samples.T).float())


def test_flac_that_ends_early(tmp_path):
    path = tmp_path / 'a.flac'
    path.write_bytes(flac(NOISE, 90_000))
    refused(path, lambda: read_audio(path), 'truncated', '70001 of 90000')
    for stated in (0, 70_001):
        path.write_bytes(flac(NOISE, stated)[:90_000])
        refused(path, lambda: read_audio(path), 'truncated')


@pytest.mark.parametrize('length', [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize('riff', [None, 0, 0xFFFFFFFF])
def test_wav_of_unstated_length(tmp_path, length, riff):
    path = tmp_path / 'a.wav'
    path.write_bytes(stating(wav(NOISE), length, riff))
    assert torch.equal(read_audio(path), torch.from_numpy(NOISE.T).float())


def test_wav_whose_header_is_wrong(tmp_path):
    path = tmp_path / 'a.wav'
    path.write_bytes(stating(wav(NOISE), NOISE.size))
    refused(path, lambda: read_audio(path), 'follow the samples')
    path.write_bytes(stating(wav(NOISE), NOISE.size * 4))
    refused(path, lambda: read_audio(path), 'truncated')
    path.write_bytes(wav(NOISE) + b'LIST\x04\0\0\0INFO')
    assert read_audio(path).shape == (2, 70_001)


def test_float_sound_in_another_unit(tmp_path):
    files, _ = make(tmp_path, 'ms3')
    sound = 0.1 * np.sin(np.arange(80_000) / 5)
    for scale, peak in ((32767, '3276.7'), (21, '2.1')):
        files.audio.write_bytes(wav(scale * sound, 'FLOAT'))
        refused(files.audio, lambda: read_audio(files.audio), peak)
        assert any(peak in p for p in check_dataset(tmp_path, 'ms3').problems)
    files.audio.write_bytes(wav(11 * sound, 'DOUBLE'))
    wanted = torch.from_numpy(11 * sound).float().clamp(-1, 1)[None]
    assert torch.equal(read_audio(files.audio), wanted) and wanted.max() == 1
    report = check_dataset(tmp_path, 'ms3')
    assert report.ok and any('1 clip has a sound with float samples above 1' in n for n in report.notes)


@pytest.mark.parametrize('seconds,words', [(1, 'shorter'), (5, ''), (5.9, ''), (60, 'longer')])
@pytest.mark.parametrize('setting', ['ms3', 'avss'])
def test_sound_of_another_length(tmp_path, setting, seconds, words, capsys):
    files, _ = make(tmp_path, setting, ('clip', 'other'))
    files.audio.write_bytes(wav(np.resize(SOUND[0].numpy(), int(16_000 * seconds))))
    clip = open_dataset(tmp_path, setting, 'train')[0]
    assert clip.mel.shape == (5, 1, 96, 64) and clip.audio.shape[1] == int(16_000 * seconds)
    report = check_dataset(tmp_path, setting)
    assert report.ok
    wanted = [f'1 clip has a sound {words} than the frames (first: {files.audio})'] if words else []
    assert report.notes == wanted and (not words or f'note: {wanted[0]}' in str(report))


@pytest.mark.parametrize('length,word', [(3, 'fewer'), (10, 'more')])
def test_log_mel_of_another_length(tmp_path, length, word):
    files, _ = make(tmp_path, 's4', ('clip',))
    save_log_mel(files.mel, torch.cat([MEL, MEL])[:length])
    mel = open_dataset(tmp_path, 's4', 'train')[0].mel
    assert torch.equal(mel, torch.cat([MEL[:3], MEL[2:3], MEL[2:3]]) if length == 3 else MEL)
    notes = check_dataset(tmp_path, 's4').notes
    assert notes == [f'1 clip has a log-mel of {word} examples than frames (first: {files.mel})']


def test_a_process_prints_one_note_at_most(tmp_path):
    for name in ('clip', 'other'):
        files, _ = make(tmp_path, 'ms3', (name,))
        files.audio.write_bytes(wav(np.zeros(16_000)))
        files.mel.unlink()
    (tmp_path / 'Multi-sources' / 'ms3_meta_data.csv').write_text('name,split\nclip,train\nother,train\n')
    read = f'from avsrepro.data.clips import open_dataset; open_dataset({str(tmp_path)!r}, "ms3", "train")[:]'
    done = subprocess.run([sys.executable, '-c', read], capture_output=True, text=True, check=True)
    assert done.stderr.count('note: ') == 1 and 'shorter than the frames' in done.stderr
    assert any(n.startswith('2 clips have a sound shorter') for n in check_dataset(tmp_path, 'ms3').notes)


TABLE = 'name,start,category,split\nclip,0,dög,train\n'
ENCODED = {
    'UTF-16': (TABLE.encode('utf-16'), 'UTF-8'),
    'UTF-16 without mark': (TABLE.encode('utf-16-le'), 'UTF-8'),
    'cp1252': (TABLE.encode('cp1252'), 'line 2'),
    'byte 0': (TABLE.encode() + b'a\0,0,dog,train\n', 'UTF-8'),
}


@pytest.mark.parametrize('case', ENCODED)
def test_table_in_another_encoding(tmp_path, case):
    "Reader, checker and the description of a run say the same sentence."
    _, table = make(tmp_path, 's4')
    data, word = ENCODED[case]
    table.write_bytes(data)
    said = set()
    for action in (
        lambda: table_text(table),
        lambda: open_dataset(tmp_path, 's4', 'train'),
        lambda: describe('avsbench', tmp_path, 's4', {}),
    ):
        refused(table, action, word, 'save it as UTF-8')
        with pytest.raises(InputError) as e:
            action()
        said.add(str(e.value))
    assert said == set(check_dataset(tmp_path, 's4').problems) and len(said) == 1


@pytest.mark.parametrize('name', ['label2idx.json', 'test.json', 'classes.json'])
def test_json_in_another_encoding(tmp_path, name):
    path = tmp_path / ('VPO/VPO-SS/classes.json' if name == 'classes.json' else name)
    path.parent.mkdir(parents=True, exist_ok=True)
    read = {
        'label2idx.json': lambda: read_classes(tmp_path),
        'test.json': lambda: open_avis(tmp_path, 'test'),
        'classes.json': lambda: check_dataset(tmp_path, 'vpo-ss').problems.index('') or None,
    }[name]
    for encoding in ('utf-16', 'cp1252'):
        path.write_bytes('{"background": 1, "bär": 2}'.encode(encoding))
        if name == 'classes.json':
            assert any('save it as UTF-8' in p for p in check_dataset(tmp_path, 'vpo-ss').problems)
        else:
            refused(path, read, 'save it as UTF-8')
    path.write_bytes(b'\xef\xbb\xbf{"background": 1, "b": 2, "b": 2}')
    if name == 'label2idx.json':
        refused(path, read, 'twice')


def test_forms_of_csv(tmp_path):
    path, columns = tmp_path / 'a.csv', ('name', 'split')

    def lines(data):
        path.write_bytes(data)
        return csv_lines(path, columns, columns)

    wanted = (['name', 'split'], [['é', 'train'], ['b', 'val']])
    text = 'name,split\né,train\nb,val\n'
    for end in ('\n', '\r\n', '\r'):
        for mark in ('', '\ufeff'):
            assert lines((mark + text.replace('\n', end)).encode()) == wanted
    for data, word in (
        (text.replace(',', ';').encode(), 'semicolons'),
        (text.replace(',', '\t').encode(), 'tabs'),
        (b'name,split,name\na,train,b\n', 'twice'),
        (b'name,split\n"a,train\nb,val\n', 'CSV'),
    ):
        refused(path, partial(lines, data), word)


def test_paths_written_on_windows(tmp_path):
    track = dict(id=1, video_id=1, category_id=1, segmentations=[None, None])
    video = dict(id=1, width=4, height=4, file_names=['v\\0.jpg', 'v\\1.jpg'])
    table = dict(videos=[video], categories=[dict(id=1, name='dog')], annotations=[track])
    (tmp_path / 'test.json').write_text(json.dumps(table))
    data = open_avis(tmp_path, 'test')
    assert data.ids == ['v'] and data.raw_paths(0).frames[1] == tmp_path / 'test/JPEGImages/v/1.jpg'
    for name in ('..\\v\\0.jpg', '/etc/v/0.jpg', 'C:\\v\\0.jpg', '0.jpg', 3):
        video['file_names'] = [name, name]
        (tmp_path / 'test.json').write_text(json.dumps(table))
        refused('test.json', lambda: open_avis(tmp_path, 'test'), 'VIDEO/FRAME')


def test_vpo_table_in_another_encoding(tmp_path):
    path = vpo_table(tmp_path, 'vpo-ss')
    path.parent.mkdir(parents=True)
    path.write_bytes('cateName,cateId\nbär,1\n'.encode('utf-16'))
    refused(path, lambda: read_vpo_table(tmp_path, 'vpo-ss'), 'save it as UTF-8')


def test_log_mels_that_fill_the_memory(tmp_path):
    import pickle

    path = tmp_path / 'a.pkl'
    wide = pickle.dumps(torch.zeros(1, 1, 1, 1).expand(10**6, 1, 96, 64))
    memo = b'\x80\x02K\x01r\xff\xff\xff\x7f.'
    nested = b'\x80\x02}K\x01' + b'2\x86' * 60 + b'K\x01s.'
    for data in (wide, memo, nested):
        path.write_bytes(data)
        refused(path, lambda: load_log_mel(path))


def test_clips_as_written_are_not_noted(tmp_path):
    for setting in ('s4', 'ms3', 'avss'):
        make(tmp_path / setting, setting, split='val')
        report = check_dataset(tmp_path / setting, setting)
        assert report.ok and not report.notes
    assert clip_of('s4').frames.shape[0] == 5


def test_a_line_break_inside_a_cell_stays_inside_its_sentence(tmp_path):
    "A quote that is never closed swallows lines; found by the fuzz test."
    folder = tmp_path / 'Single-source'
    folder.mkdir()
    table = 'name,start,category,split\nclip,0,dog,train\n",1,cat,test\nip,0,dog,train\n",1,cat,test\n'
    (folder / 's4_meta_data.csv').write_text(table, encoding='utf-8')
    rows, problems = read_table(tmp_path, 's4')
    assert len(rows) == 1 and len(problems) == 1 and '\n' not in problems[0]
