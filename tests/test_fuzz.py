"""Readers under fuzz: damaged and odd files give a right value or one sentence, in little memory and time.

Hypothesis damages valid files; atheris, where it is installed, also follows the lines that a file reaches.
Run for longer with AVSREPRO_FUZZ_SECONDS; AVSREPRO_FUZZ_COUNTS names a file for the number of examples.
"""

import copy
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

import pytest

SECONDS = float(os.environ.get('AVSREPRO_FUZZ_SECONDS', 44))
GIB = 2**30
READERS = [
    *('wav', 'flac', 'log_mel', 'binary mask', 'class mask', 'colour mask', 'frame', 's4 table', 'ms3 table'),
    *('avss table', 'vpo table', 'label2idx', 'vpo classes', 'avis', 'runs', 'profile'),
]


@pytest.fixture(scope='module', params=['hypothesis', 'atheris'])
def outcome(request, tmp_path_factory):
    "What one process found that fuzzed every reader: examples, failure and highest memory of each."
    if sys.platform != 'linux':
        pytest.skip('the memory of a process is measured as Linux does')
    if request.param == 'atheris':
        pytest.importorskip('atheris', reason='atheris is not installed: pip install atheris')
    path = tmp_path_factory.mktemp('fuzz') / 'outcome.json'
    command = [sys.executable, __file__, request.param, str(path), str(SECONDS / 2)]
    one_thread = dict(os.environ, OMP_NUM_THREADS='1')  # a forked child has no other
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(path.read_text())
    counts = {name: f['examples'] for name, f in found.items()}
    if os.environ.get('AVSREPRO_FUZZ_COUNTS'):
        target = Path(os.environ['AVSREPRO_FUZZ_COUNTS'])
        target.with_stem(f'{target.stem}_{request.param}').write_text(json.dumps(found, indent=1))
    print(f'examples per reader ({request.param}):', counts)
    return found


@pytest.mark.parametrize('reader', READERS)
def test_damaged_files_are_refused_in_a_sentence(outcome, reader):
    found = outcome[reader]
    assert not found['failure'], found['failure']
    assert found['examples'] >= 10 and found['read'] >= 1 and found['refused'] >= 1, found
    assert found['peak'] < GIB, f'{found["peak"] / GIB:.2f} GiB for {reader}'


def png_chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def bomb_png(width, height, colour=0):
    "A small file of a large picture."
    rows = zlib.compress(bytes(64_000), 9)
    header = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
    parts = [png_chunk(b'IHDR', header), png_chunk(b'IDAT', rows), png_chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def pictures():
    "Valid masks and frames, and bombs."
    import numpy as np
    from PIL import Image

    from avsrepro.data.images import voc_palette

    def saved(values, mode=None, kind='PNG', **options):
        buffer, image = io.BytesIO(), Image.fromarray(np.asarray(values))
        (image.convert(mode) if mode else image).save(buffer, kind, **options)
        return buffer.getvalue()

    eye = np.eye(12, dtype=np.uint8)
    rgb = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    alpha = np.dstack([np.full((12, 12, 3), 255, np.uint8), 255 * eye])
    palette = Image.fromarray(eye, 'L').convert('P')
    palette.putpalette(voc_palette().ravel().tolist())
    indexed = io.BytesIO()
    palette.save(indexed, 'PNG', transparency=3)
    bombs = [
        bomb_png(60_000, 60_000),
        bomb_png(2**31 - 1, 2**31 - 1, 2),
        bomb_png(0, 4),
        bomb_png(5_800, 5_700, 2),
    ]
    binary = [saved(255 * eye), saved(eye), saved(255 * eye, '1'), saved(alpha), indexed.getvalue()]
    classes = [saved(3 * eye), indexed.getvalue(), saved(3 * eye.astype(np.uint16))]
    frames = [saved(rgb), saved(rgb, kind='JPEG'), saved(rgb, 'L', 'JPEG'), saved(rgb, kind='WEBP')]
    frames += [saved(rgb, kind='GIF'), saved(rgb, kind='BMP'), saved(rgb, 'CMYK', 'JPEG'), indexed.getvalue()]
    colours = [saved(voc_palette()[3 * eye]), indexed.getvalue()]
    return {
        'binary mask': (binary, bombs),
        'class mask': (classes, bombs),
        'colour mask': (colours, bombs),
        'frame': (frames, bombs),
    }


def sounds():
    "Valid sounds, and headers that announce more than there is."
    import numpy as np
    import soundfile

    wave = 0.5 * np.sin(np.arange(4_000)[:, None] / [9, 7])
    wav, flac = [], []
    for subtype in ('PCM_16', 'PCM_U8', 'PCM_24', 'FLOAT', 'DOUBLE', 'ULAW', 'MS_ADPCM'):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16_000, format='WAV', subtype=subtype)
        wav.append(buffer.getvalue())
    for rate, channels in ((16_000, 2), (44_100, 1)):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave[:, :channels], rate, format='FLAC')
        flac.append(buffer.getvalue())
    at = wav[0].index(b'data')
    lengths = (0, 4_000, 0x7FFFFFFE, 0xF0000000, 0xFFFFFFFF)
    announced = [wav[0][: at + 4] + struct.pack('<I', n) + wav[0][at + 8 :] for n in lengths]
    rates = [wav[0][:24] + struct.pack('<I', r) + wav[0][28:] for r in (0, 1, 1_249, 12_007, 2**31 - 1)]
    word = int.from_bytes(flac[0][18:26], 'big') >> 36 << 36
    streams = [flac[0][:18] + (word | n).to_bytes(8, 'big') + flac[0][26:] for n in (0, 9, 2**36 - 1)]
    return {'wav': (wav, announced + rates), 'flac': (flac, streams)}


def log_mels():
    import torch

    mel = torch.zeros(5, 1, 96, 64)
    plain = [pickle.dumps(mel.clone().requires_grad_(), protocol=p) for p in (2, 4)]
    buffer = io.BytesIO()
    torch.save(mel, buffer)
    nested = b'\x80\x02}(' + b'K\x01' + b'2\x86' * 60 + b'K\x01u.'
    giant = plain[1].replace(b'30720', b'99999999999')
    wide = pickle.dumps(torch.zeros(1, 1, 1, 1).expand(10**6, 1, 96, 64), protocol=4)
    memo = b'\x80\x02K\x01r\xff\xff\xff\x7f.'
    text = b'\x80\x04\x8d' + struct.pack('<Q', 2**33) + b'abc.'
    return {'log_mel': ([*plain, buffer.getvalue()], [nested, giant, wide, memo, text])}


VPO = '''cateName,cateId,img_Id,ann_Ids,vgg_file,audio_pos,split
cat,17,12,[34],a_1,0.25,train
dog,18,13,35,b,1,val
'''
BOMB = 'a: &a [x,x,x,x,x,x,x,x,x]\n'
for below, name in zip('abcdefgh', 'bcdefghi'):
    BOMB += f'{name}: &{name} [{",".join(["*" + below] * 9)}]\n'


def texts():
    "Valid tables and JSON files, and odd ones."
    from avsrepro.core.paths import repo_root
    from avsrepro.experiments.profiles import built_in

    code = dict(size=[4, 5], counts=[3, 4, 13])
    track = dict(id=1, video_id=1, category_id=2, segmentations=[code, None])
    video = dict(id=1, width=5, height=4, file_names=['v\\0.jpg', 'v/1.jpg'])
    avis = dict(videos=[video], categories=[dict(id=2, name='dog')], annotations=[track])
    runs = sorted((repo_root() / 'results').rglob('*.jsonl'), key=lambda p: p.stat().st_size)
    profile = min(built_in().values(), key=lambda p: p.stat().st_size)
    found = {
        's4 table': 'name,start,category,split\nclip,0,dog,train\n"b",1,cat,test\n',
        'ms3 table': 'name,split\nclip,train\nb,val\n',
        'avss table': 'vid,uid,s_min,s_max,a_obj,split,label\nx,u1,0,5,dog,train,v2\n',
        'vpo table': VPO,
        'label2idx': '{"background": 1, "cat": 2, "dog": 3}',
        'vpo classes': '{"violin": 7, "drum": 2}',
        'avis': json.dumps(avis),
        'runs': runs[0].read_text(encoding='utf-8').splitlines()[0],
        'profile': profile.read_text(encoding='utf-8'),
    }
    odd = [
        b'',
        b'\xff\xfe',
        b'\0' * 50,
        b'[' * 100_000,
        b'{"a":' * 5_000,
        b'9' * 5_000,
        b'"' + b'x,\n' * 9_000,
    ]
    return {name: ([text.encode()], [*odd, text.encode('utf-16')]) for name, text in found.items()}


def readers(folder):
    "What reads the bytes of each kind and checks what came of them."
    import numpy as np
    import torch

    from avsrepro.data import avis, images, layouts, vpo
    from avsrepro.data.audio import read_audio
    from avsrepro.data.pickles import load_log_mel
    from avsrepro.experiments.profiles import Profile, get_profile
    from avsrepro.train.store import RunStore, import_runs

    def put(data, name):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def sound(data):
        wav = read_audio(put(data, 'a.wav'))
        assert wav.dtype == torch.float32 and wav.ndim == 2 and wav.shape[1] > 0
        assert bool(wav.isfinite().all()) and float(wav.abs().max()) <= 1

    def mel(data):
        found = load_log_mel(put(data, 'a.pkl'))
        assert found.dtype == torch.float32 and found.shape[1:] == (1, 96, 64) and len(found)
        assert bool(found.isfinite().all())

    def mask(decode, allowed, *more):
        def read(data):
            found = decode(data, Path('a.png'), *more)
            assert found.dtype == np.uint8 and found.ndim == 2 and found.size
            assert np.isin(np.unique(found), allowed).all()

        return read

    def frame(data):
        found = images.decode_frame(data, Path('a.png'))
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.size

    def table(setting):
        def read(data):
            put(data, layouts.table_path('.', setting))
            rows, problems = layouts.read_table(folder, setting)
            assert all(layouts.clip_files(folder, setting, row).frames for row in rows)
            assert all('\n' not in p for p in problems)
            if not rows:
                raise layouts.InputError('no usable row in this table')

        return read

    def vpo_table(data):
        put(data, vpo.vpo_table('.', 'vpo-ss'))
        for rows in vpo.read_vpo_table(folder, 'vpo-ss'):
            assert all(0 <= r['pos'] <= 1 for r in rows) and vpo.vpo_files(folder, 'vpo-ss', rows).audio

    def label2idx(data):
        put(data, 'label2idx.json')
        names = layouts.read_classes(folder)
        assert names[0] == 'background' and all(isinstance(n, str) for n in names)

    def vpo_classes(data):
        put(data, vpo.vpo_folder('.', 'vpo-ss') / 'classes.json')
        assert all(0 < v < 255 for v in vpo.vpo_classes(folder, 'vpo-ss').values())

    def tracks(data):
        put(data, 'test.json')
        videos = avis.open_avis(folder, 'test')
        for i in range(min(len(videos), 3)):
            assert all(folder in p.parents and '..' not in p.parts for p in videos.raw_paths(i).frames)
            found = avis._read_tracks(videos, i, 0, min(videos.length(i), 3))
            assert all(1 <= label < videos.num_classes for label in found.labels)

    def runs(data):
        with tempfile.TemporaryDirectory() as d:
            import_runs(put(data, 'runs.jsonl'), RunStore(d))

    def profile(data):
        assert isinstance(get_profile(str(put(data, 'odd.yaml'))), Profile)

    ids = [*range(71), 255]
    return {
        **dict(wav=sound, flac=sound, log_mel=mel, frame=frame, avis=tracks, runs=runs, profile=profile),
        'binary mask': mask(images.decode_binary, [0, 1]),
        'class mask': mask(images.decode_classes, ids, 71),
        'colour mask': mask(images.decode_colours, ids[:-1], 71),
        **{f'{s} table': table(s) for s in ('s4', 'ms3', 'avss')},
        'vpo table': vpo_table,
        'label2idx': label2idx,
        'vpo classes': vpo_classes,
    }


ODD = (
    None,
    True,
    -1,
    0,
    3,
    2**70,
    1e308,
    float('nan'),
    '',
    'x',
    '../x',
    'é\n',
    '\ud800',
    [],
    {},
    [[]],
    {'a': []},
)
TOKENS = (
    b';',
    b'"',
    b'\0',
    b'\xff',
    b'\r',
    b'\n',
    b',',
    b'\\',
    b'../',
    b'\xef\xbb\xbf',
    b'NaN',
    b'-',
    b'[',
    b'{',
    b'&a *a',
)


def replaced(value, steps, odd):
    "A copy of plain data with one place, found by `steps`, holding something else."
    top = [copy.deepcopy(value)]
    where, key = top, 0
    for step in steps:
        inner = where[key]
        if not isinstance(inner, (list, dict)) or not inner:
            break
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        where, key = inner, keys[step % len(keys)]
    where[key] = odd
    return top[0]


def plain_data(name, seed):
    import yaml

    if name in ('label2idx', 'vpo classes', 'avis', 'runs'):
        return json.loads(seed)
    return yaml.safe_load(seed) if name == 'profile' else None


def damaged(name, seeds):
    "Files that start from valid ones: bytes changed, cut, doubled and put in; for plain data, values too."
    from hypothesis import strategies as st

    at, piece = st.floats(0, 1), st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS))
    edit = st.tuples(st.sampled_from(['set', 'insert', 'cut', 'drop', 'double', 'flip']), at, piece)

    def apply(seed, edits):
        data = bytearray(seed)
        for kind, where, new in edits:
            i = int(where * len(data))
            if kind == 'set':
                data[i : i + len(new)] = new
            elif kind == 'insert':
                data[i:i] = new
            elif kind == 'cut':
                del data[i:]
            elif kind == 'drop':
                del data[i : i + 1 + len(new)]
            elif kind == 'double':
                data[i:i] = data[i : i + 40]
            elif i < len(data):
                data[i] ^= 1 << len(new) % 8
        return bytes(data)

    bytewise = st.builds(apply, st.sampled_from(seeds), st.lists(edit, max_size=6))
    early = st.builds(
        lambda seed, edits: apply(seed, [(k, w * 0.02, n) for k, w, n in edits]),
        st.sampled_from(seeds),
        st.lists(edit, min_size=1, max_size=4),
    )
    plain = plain_data(name, seeds[0])
    if plain is None:
        return st.one_of(bytewise, early)
    changed = st.builds(
        lambda steps, odd: json.dumps(replaced(plain, steps, odd)).encode(),
        st.lists(st.integers(0, 30), min_size=1, max_size=7),
        st.sampled_from(ODD),
    )
    return st.one_of(bytewise, changed)


class Fuzz:
    "One reader under fuzz."

    def __init__(self, name, read, seeds, special):
        self.name, self.read, self.seeds, self.special = name, read, seeds, special
        self.found = dict(examples=0, read=0, refused=0, failure='', peak=0)

    def one(self, data):
        from avsrepro.core.errors import InputError

        self.found['examples'] += 1
        try:
            self.read(data)
            self.found['read'] += 1
        except InputError as e:
            self.found['refused'] += 1
            assert len(str(e)) < 2000
        assert self.memory() < GIB, f'{self.memory() / GIB:.2f} GiB'

    def memory(self):
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - START[0])

    def run_special(self):
        for data in [*self.seeds, *self.special]:
            began = time.monotonic()
            self.one(data)
            assert time.monotonic() - began < 20, f'{time.monotonic() - began:.0f} s for {data[:60]!r}'

    def run_hypothesis(self, seconds):
        from hypothesis import HealthCheck, given, seed, settings

        how = settings(
            max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            number += 1
            seed(number)(how(given(damaged(self.name, self.seeds))(self.one)))()

    def run_atheris(self, seconds):
        "In a child, for libFuzzer never returns; it starts from the valid files."
        with tempfile.TemporaryDirectory() as corpus:
            for i, data in enumerate(self.seeds):
                Path(corpus, str(i)).write_bytes(data)
            child = os.fork()
            if not child:
                self.follow(corpus, time.monotonic() + seconds)
            _, status = os.waitpid(child, 0)
            told = Path(corpus + '.json')
            if status or not told.is_file():
                raise AssertionError(f'the process died (status {status}) while it read')
            self.found.update(json.loads(told.read_text()))
            told.unlink()

    def follow(self, corpus, end):
        import atheris

        def tell(failure=''):
            self.found.update(failure=failure, peak=self.memory())
            Path(corpus + '.json').write_text(json.dumps(self.found))
            os._exit(0)

        def body(data):
            try:
                self.one(data)
            except Exception:
                tell(f'{data!r}\n{traceback.format_exc()[-3000:]}')
            if time.monotonic() > end:
                tell()

        options = ['-seed=1', '-rss_limit_mb=0', '-timeout=20', '-max_len=100000', '-verbosity=0']
        options.append(f'-artifact_prefix={corpus}/')
        atheris.Setup([__file__, *options, corpus], body)
        atheris.Fuzz()
        tell('libFuzzer stopped before its time')

    def run(self, how, seconds):
        try:
            self.run_special()
            {'hypothesis': self.run_hypothesis, 'atheris': self.run_atheris}[how](seconds)
        except Exception:
            self.found['failure'] = traceback.format_exc()[-3000:]
        self.found['peak'] = max(self.memory(), self.found['peak'])
        return self.found


START = [0]


def prepared(how, folder):
    "Valid and special files of every reader, and the readers, instrumented where lines are followed."
    from contextlib import nullcontext

    context = nullcontext()
    if how == 'atheris':
        import atheris

        context = atheris.instrument_imports(include=['avsrepro'])
    with context:
        return {**pictures(), **sounds(), **log_mels(), **texts()}, readers(folder)


def main(how, path, seconds):
    "Fuzz every reader; memory beyond 4 GiB is not to be had here."
    with tempfile.TemporaryDirectory() as d:
        files, bodies = prepared(how, Path(d))
        files['profile'][1].append(BOMB.encode())
        for name in READERS:  # what is imported once is not the reader's memory
            try:
                bodies[name](files[name][0][0])
            except ValueError:
                pass
        START[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (START[0] + 4 * GIB, START[0] + 4 * GIB))
        found = {n: Fuzz(n, bodies[n], *files[n]).run(how, seconds / len(READERS)) for n in READERS}
    Path(path).write_text(json.dumps(found))


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
