"Commands that prepare data: negatives as files, frames and sounds of videos, log-mels of sounds."

import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from configparser import ConfigParser
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avsrepro.core.paths import repo_root
from avsrepro.data.check import check_dataset
from avsrepro.data.extraction import table_files
from avsrepro.data.loading import write_generated
from avsrepro.data.negative_files import STORED_KINDS, WrittenNegatives, open_named
from avsrepro.data.negatives import Negatives, StoredNegatives
from avsrepro.data.offscreen import AVOID, broad_group, scenes_of
from avsrepro.data.pickles import load_log_mel

ROOT = repo_root()
needs_av = pytest.mark.skipif(importlib.util.find_spec('av') is None, reason='PyAV is not installed')
FOLDER = {'s4': 'Single-source/s4_data', 'ms3': 'Multi-sources/ms3_data'}


def script(name):
    path = ROOT / 'data_prep' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *args: module.main([str(a) for a in args])


make_robust, extract_frames, extract_log_mel = map(
    script, ('make_robust', 'extract_frames', 'extract_log_mel')
)


def tree(folder, *left_out):
    "Every file below a folder with its content, but for locks."
    files = (p for p in sorted(Path(folder).rglob('*')) if p.is_file() and p.suffix != '.lock')
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.name not in left_out}


def sentence(capsys, *words):
    "What was printed as an error is one line that holds `words`."
    error = capsys.readouterr().err
    assert error.count('\n') == 1, error
    for word in words:
        assert str(word) in error, error


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp('data') / 'root'
    return write_generated(place, ['s4', 'ms3'], 1, size=48, train=12, val=10, test=12)


@pytest.fixture
def root(data, tmp_path):
    shutil.copytree(data, tmp_path / 'root')
    return tmp_path / 'root'


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "The negatives of S4, written by one process."
    place = tmp_path_factory.mktemp('whole')
    assert make_robust(data, '--setting', 's4', '--workers', 1, '--out', place) == 0
    return place


# negatives


@pytest.mark.parametrize('setting', ['s4', 'ms3'])
def test_negatives_are_those_of_the_package(root, setting, capsys):
    "In both front ends, all splits and kinds; a dry run says so before and writes nothing."
    before = tree(root)
    assert make_robust(root, '--setting', setting, '--dry-run') == 0
    said = capsys.readouterr().out
    assert '102 files of 34 clips' in said and 'nothing was written' in said and tree(root) == before
    assert not list(root.rglob('*.lock'))
    assert make_robust(root, '--setting', setting, '--workers', 1) == 0
    assert '102 files of 34 clips' in capsys.readouterr().out
    after = tree(root)
    assert {k: after[k] for k in before} == before and len(after) - len(before) == 3 + 2 * 102 + 1
    for split in ('train', 'val', 'test'):
        clips = open_named(root, setting, split)
        for kind in STORED_KINDS:
            for front_end in ('release', 'matched'):
                read, made = WrittenNegatives(clips, kind, front_end), Negatives(clips, kind, front_end)
                for i in range(0, len(clips), 3):
                    (wav, mel), (sound, wanted) = read.sound(i, 5), made.sound(i, 5)
                    assert torch.equal(mel, wanted) and (wav - sound).abs().max() <= 2**-16
            assert torch.equal(
                StoredNegatives(clips, kind)[1].mel, WrittenNegatives(clips, kind, 'release')[1].mel
            )


def test_negatives_hold_what_the_release_holds(data, whole):
    "By reference facts 1.5 and 2, read without the package's own readers of sound."
    clips, shipped, data = open_named(data, 's4', 'test'), data / FOLDER['s4'], whole / FOLDER['s4']
    silent, rate = soundfile.read(data / 'silent.wav', dtype='int16')
    assert rate == 11_025 and len(silent) == 5 * rate and not silent.any()
    mel = load_log_mel(data / 'silent.pkl')
    assert (mel[:, :, :44] == -100).all() and (mel[:, :, 44:] == 0).all()
    assert (load_log_mel(data / 'silent_matched.pkl') - np.log(0.01)).abs().max() < 1e-5
    originals = {p.read_bytes(): p for p in (shipped / 'audio_wav' / 'test').rglob('*.wav')}
    for i, clip in enumerate(clips.rows):
        inside = Path('test', clip['category'], clip['name'])
        noise, rate = soundfile.read(data / 'audio_wav_noise' / f'{inside}.wav', dtype='int16')
        exponent = np.abs(noise.reshape(-1, 4)[:, 3] / 32768.0)
        assert rate == 44_100 and len(noise) == 220_500 and np.mean(np.abs(exponent - 0.5) < 0.01) > 0.95
        mel = load_log_mel(data / 'audio_log_mel_noise' / f'{inside}.pkl')
        live = mel[:, 0, :44].flatten(1)
        assert live.mean(1).abs().max() < 1e-4 and (live.std(1, correction=0) - 1).abs().max() < 1e-4
        assert (mel[:, :, 44:] == 0).all()
        heard = originals[(data / 'audio_wav_misaligned' / f'{inside}.wav').read_bytes()]
        mine, other = broad_group(clip['category']), broad_group(heard.parent.name)
        assert other not in (mine, AVOID['s4'][mine]), i
        own = shipped / 'audio_log_mel' / heard.relative_to(shipped / 'audio_wav').with_suffix('.pkl')
        matched = load_log_mel(data / 'audio_log_mel_misaligned_matched' / f'{inside}.pkl')
        assert torch.equal(matched, load_log_mel(own))


def test_out_gets_the_same_folders_and_processes_write_the_same_bytes(data, whole, tmp_path):
    assert make_robust(data, '--setting', 's4', '--workers', 2, '--out', tmp_path) == 0
    assert tree(tmp_path) == tree(whole) and len(tree(whole)) == 208
    assert not (data / FOLDER['s4'] / 'silent.wav').exists()
    clips = open_named(data, 's4', 'val')
    read = WrittenNegatives(clips, 'noise', out=whole)
    assert torch.equal(read.sound(0, 5)[1], Negatives(clips, 'noise').sound(0, 5)[1])


def test_a_killed_run_goes_on(data, whole, tmp_path, capsys):
    "What stands after a kill is whole; the next run keeps it, clears what was begun, gets the same bytes."
    whole, place = tree(whole), tmp_path / 'killed'
    command = [sys.executable, ROOT / 'data_prep' / 'make_robust.py', data, '--setting', 's4']
    run = subprocess.Popen([*command, '--workers', '1', '--out', place], stdout=subprocess.DEVNULL)
    try:
        while run.poll() is None and not len(list(place.rglob('*.pkl'))) > 6:
            time.sleep(0.002)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    stands = tree(place)
    there = {k: v for k, v in stands.items() if not Path(k).name.startswith('.')}
    assert 7 <= len(there) < len(whole) and all(whole[k] == v for k, v in there.items())
    begun = place / FOLDER['s4'] / 'audio_wav_noise/test/.begun.0123abcd.tmp.wav'
    kept = next(p for p in place.rglob('*.pkl') if not p.name.startswith('.'))
    age = kept.stat().st_mtime_ns
    begun.parent.mkdir(parents=True, exist_ok=True)
    category = next((data / FOLDER['s4'] / 'audio_wav' / 'test').iterdir()).name
    begun = begun.parent / category / begun.name
    begun.parent.mkdir(exist_ok=True)
    begun.write_bytes(b'half')
    capsys.readouterr()
    assert make_robust(data, '--setting', 's4', '--workers', 1, '--out', place) == 0
    assert tree(place) == whole and kept.stat().st_mtime_ns == age
    assert ' 0 kept' not in capsys.readouterr().out


def test_a_damaged_sound_fails_alone(root, capsys):
    clips = open_named(root, 's4', 'test')
    source = Negatives(clips, 'offscreen').source
    bad = clips.raw_paths(source.pairs[4]).audio
    hearers = [clips.ids[i] for i, j in enumerate(source.pairs) if j == source.pairs[4]]
    bad.write_bytes(bad.read_bytes()[:1000])
    assert make_robust(root, '--setting', 's4', '--workers', 1, '--splits', 'test') == 1
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if str(bad) in line]
    assert len(listed) == len(hearers) and 'truncated' in listed[0]
    made = {p.stem for p in (root / FOLDER['s4'] / 'audio_log_mel_misaligned').rglob('*.pkl')}
    assert made == set(clips.ids) - set(hearers)


def test_files_made_in_another_way_are_not_kept(root, capsys):
    args = (root, '--setting', 'ms3', '--workers', 1, '--splits', 'val')
    assert make_robust(*args) == 0
    first = tree(root / FOLDER['ms3'], 'negatives.json')
    capsys.readouterr()
    assert make_robust(*args, '--seed', 7) == 2
    sentence(capsys, 'negatives.json', '--overwrite')
    assert make_robust(*args, '--seed', 7, '--dry-run') == 2
    assert tree(root / FOLDER['ms3'], 'negatives.json') == first
    assert make_robust(*args, '--seed', 7, '--overwrite') == 0
    again = tree(root / FOLDER['ms3'], 'negatives.json')
    noises = [k for k in again if k.startswith('audio_wav_noise')]
    assert len(noises) == 10 and all(first[k] != again[k] for k in noises)
    assert json.loads((root / FOLDER['ms3'] / 'negatives.json').read_text())['val/noise']['seed'] == 7


def test_questions_about_negatives_that_are_wrong(root, tmp_path, capsys):
    for args, words in (
        ((root, '--setting', 's5'), ["unknown setting 's5'", 's4']),
        ((root, '--setting', 'avss'), ["'avss'"]),
        ((root, '--setting', 's4', '--kinds', 'unseen'), ["'unseen'", 'offscreen']),
        ((root, '--setting', 's4', '--front-ends', 'librosa'), ["'librosa'", 'matched']),
        ((root, '--setting', 's4', '--workers', 0), ['workers']),
        ((tmp_path / 'nowhere', '--setting', 's4'), ['nowhere', 'no such folder']),
    ):
        assert make_robust(*args) == 2
        sentence(capsys, *words)
    (root / 'scenes_ms3.json').unlink()  # like a download of MS3 without the table of AVSS
    assert make_robust(root, '--setting', 'ms3') == 2
    sentence(capsys, 'metadata.csv', 'AVSS')
    assert not list(root.rglob('silent*'))


def test_a_download_of_ms3_takes_its_objects_from_avss(root):
    scenes = scenes_of(open_named(root, 'ms3', 'test'))
    rows = []
    for split in ('train', 'val', 'test'):
        clips = open_named(root, 'ms3', split)
        rows += [
            f'{i},u{i},0,5,{"_".join(s.visible)},{split},v1m' for i, s in zip(clips.ids, scenes_of(clips))
        ]
    (root / 'metadata.csv').write_text('vid,uid,s_min,s_max,a_obj,split,label\n' + '\n'.join(rows))
    (root / 'scenes_ms3.json').unlink()
    assert make_robust(root, '--setting', 'ms3', '--workers', 1, '--splits', 'test') == 0
    clips = open_named(root, 'ms3', 'test')
    assert [s.visible for s in scenes_of(clips)] == [s.visible for s in scenes]
    assert torch.equal(WrittenNegatives(clips, 'offscreen')[3].mel, Negatives(clips, 'offscreen')[3].mel)


# videos


def make_video(path, frames=125, rate=25, pictures=True, sound=True, size=(96, 64)):
    "Each frame shows its number as eight bars; the sound is a tone of 440 Hz."
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(movflags='faststart') if path.suffix == '.mp4' else {}
    with av.open(str(path), 'w', options=how) as container:
        if pictures:
            rate = Fraction(rate).limit_denominator(1001)
            film = container.add_stream('mpeg4', rate=rate, width=size[0], height=size[1])
            film.pix_fmt = 'yuv420p'
        track = container.add_stream('aac', rate=44_100, layout='stereo') if sound else None
        for n in range(frames if pictures else 0):
            bars = np.repeat(255 * (n >> np.arange(8) & 1), size[0] // 8).astype(np.uint8)
            picture = np.broadcast_to(bars[None, :, None], (size[1], size[0], 3)).copy()
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        if pictures:
            container.mux(film.encode(None))
        if sound:
            wave = 0.5 * np.sin(np.arange(round(44_100 * frames / rate)) * (2 * np.pi * 440 / 44_100))
            tone = av.AudioFrame.from_ndarray(np.float32([wave, wave]), format='fltp', layout='stereo')
            tone.sample_rate, tone.pts = 44_100, 0
            container.mux(track.encode(tone))
            container.mux(track.encode(None))
    return path


def numbers_in(folder):
    "The numbers that the pictures of a folder show, in the order of their seconds."
    found = []
    for path in sorted(folder.glob('*.png'), key=lambda p: int(p.stem.rpartition('_')[2])):
        picture = np.asarray(Image.open(path).convert('L'))
        width = picture.shape[1] // 8
        bars = picture[picture.shape[0] // 2, width // 2 :: width]
        found.append(int((bars > 127) @ 2 ** np.arange(8)))
    return found


@needs_av
@pytest.mark.parametrize(
    'rate,frames,expected',
    [
        (25, 125, [23, 48, 73, 98, 123]),
        (29.97, 149, [28, 58, 88, 118, 148]),
        (30_000 / 1001, 150, [28, 58, 88, 118, 148]),
        (12.5, 62, [11, 23, 35, 47, 59]),  # 12 frames a second: a half is rounded to even
        (10, 50, [9, 19, 29, 39, 49]),
        (25, 110, [23, 48, 73, 98, 109]),  # the last second is incomplete
        (25, 101, [23, 48, 73, 98, 100]),
        (25, 49, [23, 48]),
        (25, 3, [2]),
        (24, 168, [22, 46, 70, 94, 118, 142, 166]),
    ],
)
def test_frame_of_each_second(tmp_path, rate, frames, expected):
    "Numbers by hand: floor(fps * (second + 15/16)), the last frame where that is beyond the end."
    video = make_video(tmp_path / 'film.mkv', frames, rate, sound=False)
    assert extract_frames(video, tmp_path / 'out') == 0
    assert numbers_in(tmp_path / 'out' / 'film') == expected
    assert Image.open(tmp_path / 'out/film/film_1.png').size == (224, 224)
    assert extract_frames(video, tmp_path / 'five', '--seconds', 5, '--size', 0) == 0
    five = (expected + [frames - 1] * 4)[:5]
    assert numbers_in(tmp_path / 'five' / 'film') == five
    assert Image.open(tmp_path / 'five/film/film_5.png').size == (96, 64)


@needs_av
def test_bad_videos_are_listed_after_the_good_ones(tmp_path, capsys):
    films = tmp_path / 'films'
    good = make_video(films / 'good.mp4')
    make_video(films / 'sub' / 'mute.mkv', 30, sound=False)
    make_video(films / 'blind.mp4', pictures=False)
    data = good.read_bytes()
    (films / 'cut.mp4').write_bytes(data[: len(data) * 3 // 4])
    (films / 'text.mp4').write_text('not a film')
    (films / 'empty.mp4').touch()
    assert extract_frames(films, tmp_path / 'out', '--dry-run') == 0 and not (tmp_path / 'out').exists()
    capsys.readouterr()
    assert extract_frames(films, tmp_path / 'out') == 1
    said = capsys.readouterr().out
    for name, word in (
        ('blind', 'no pictures'),
        ('cut', 'truncated'),
        ('text', 'decoded'),
        ('empty', 'decoded'),
    ):
        assert any(f'{name}.mp4' in line and word in line for line in said.splitlines()), said
    assert '2 new, 0 kept, 4 failed' in said
    assert sorted(p.name for p in (tmp_path / 'out').rglob('*_*.png')) == [
        *(f'good_{t}.png' for t in range(1, 6)),
        'mute_1.png',
        'mute_2.png',
    ]
    assert (tmp_path / 'out/sub/mute/mute_2.png').is_file()
    assert extract_log_mel(films, tmp_path / 'mel') == 1
    said = capsys.readouterr().out
    assert any('mute.mkv' in line and 'no sound' in line for line in said.splitlines())
    assert sorted(p.name for p in (tmp_path / 'mel').rglob('*.pkl')) == ['blind.pkl', 'good.pkl']


@needs_av
def test_frames_that_are_there_stay(tmp_path, capsys):
    video, out = make_video(tmp_path / 'film.mp4'), tmp_path / 'out'
    assert extract_frames(video, out) == 0
    first, second = out / 'film/film_1.png', out / 'film/film_2.png'
    age = first.stat().st_mtime_ns
    assert extract_frames(video, out) == 0 and first.stat().st_mtime_ns == age
    second.write_bytes(b'')
    assert extract_frames(video, out) == 0 and numbers_in(out / 'film')[1] == 48
    capsys.readouterr()
    assert extract_frames(video, out, '--size', 64) == 2
    sentence(capsys, '224x224', '64x64', '--overwrite')
    assert extract_frames(video, out, '--size', 64, '--overwrite') == 0
    assert Image.open(first).size == (64, 64)


@needs_av
@pytest.mark.parametrize('setting', ['s4', 'ms3'])
def test_a_download_is_completed_from_its_raw_videos(root, setting, capsys):
    "Frames, sounds and log-mels in the released places; originals stay; the data set is whole afterwards."
    data, clips = root / FOLDER[setting], table_files(root, setting)
    assert extract_frames(root, '--setting', setting) == 2
    sentence(capsys, '48x48', '224x224')
    assert extract_frames(root, '--setting', setting, '--size', 48) == 0
    assert ' 34 kept' in capsys.readouterr().out
    shutil.rmtree(data / 'visual_frames')
    shutil.rmtree(data / 'audio_log_mel')
    assert extract_frames(root, '--setting', setting) == 2
    sentence(capsys, 'raw_videos')
    video = make_video(root.parent / 'film.mp4')
    for clip in clips:
        clip.video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, clip.video)
    clips[0].audio.unlink()
    original = clips[1].audio.read_bytes()
    clips[2].video.unlink()
    assert extract_frames(root, '--setting', setting, '--size', 48, '--workers', 1) == 1
    assert str(clips[2].video) in capsys.readouterr().out
    shutil.copy(video, clips[2].video)
    assert extract_frames(root, '--setting', setting, '--size', 48, '--workers', 1) == 0
    assert '1 new, 33 kept' in capsys.readouterr().out
    assert extract_log_mel(root, '--setting', setting, '--workers', 1) == 0
    assert clips[1].audio.read_bytes() == original
    wav, rate = soundfile.read(clips[0].audio)
    assert rate == 16_000 and wav.shape[1] == 2 and abs(len(wav) - 80_000) < 2_000
    tone = np.abs(np.fft.rfft(wav[16_000:32_000, 0]))
    assert tone.argmax() == 440
    assert numbers_in(clips[5].frames[0].parent) == [23, 48, 73, 98, 123]
    if setting == 's4':
        assert '/train/' in clips[0].frames[0].as_posix()
    else:
        assert clips[0].frames[4].name.endswith('.mp4_5.png')
    assert check_dataset(root, setting, progress=False).ok


def test_without_pyav_one_sentence_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    video = tmp_path / 'film.mp4'
    video.write_bytes(b'x')
    for command in (extract_frames, extract_log_mel):
        assert command(video, tmp_path / 'out') == 2
        sentence(capsys, 'PyAV', 'pip install "avsrepro[video]"')
    assert not (tmp_path / 'out').exists()
    sound = tmp_path / 'tone.wav'
    soundfile.write(sound, 0.1 * np.sin(np.arange(80_000) / 9), 16_000)
    assert extract_log_mel(sound, tmp_path / 'out') == 0


def test_the_extra_is_where_pip_looks():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    assert config['DEFAULT']['video_requirements'] == 'av>=12'
    assert 'av>=12' in config['DEFAULT']['dev_requirements'].split()
    assert '"video"' in (ROOT / 'setup.py').read_text(encoding='utf-8')


# log-mels


def vggish_by_hand(wav):
    "Reference facts section 2, frame by frame."
    mel = lambda f: 1127 * np.log(1 + np.asarray(f) / 700)  # noqa: E731
    edges = np.linspace(mel(125), mel(7500), 66)
    bins = mel(np.arange(257) * 16_000 / 512)
    bank = np.zeros((257, 64))
    for m in range(64):
        low, mid, high = edges[m : m + 3]
        bank[:, m] = np.clip(np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)), 0, None)
    bank[0] = 0
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    rows = []
    for start in range(0, len(wav) - 399, 160):
        rows.append(np.log(np.abs(np.fft.rfft(wav[start : start + 400] * hann, 512)) @ bank + 0.01))
    return np.stack(rows)[: len(rows) // 96 * 96].reshape(-1, 1, 96, 64)


@pytest.mark.parametrize('seconds', [5, 10, 2.5])
def test_log_mels_are_vggishs(tmp_path, seconds):
    draw = np.random.default_rng(0)
    samples = np.round(draw.uniform(-0.3, 0.3, (round(seconds * 16_000), 2)) * 32768).astype(np.int16)
    (tmp_path / 'sounds').mkdir()
    soundfile.write(tmp_path / 'sounds' / 'a.b.wav', samples, 16_000)
    assert extract_log_mel(tmp_path / 'sounds', tmp_path / 'out') == 0
    path = tmp_path / 'out' / 'a.b.pkl'
    wanted = vggish_by_hand(samples.mean(1) / 32768)[:5]
    wanted = np.concatenate([wanted, np.repeat(wanted[-1:], 5 - len(wanted), 0)])
    assert np.abs(load_log_mel(path).numpy() - wanted).max() < 1e-4
    assert 123_000 < path.stat().st_size < 124_000  # 123,302 bytes in the release


def test_log_mels_of_a_download(root, capsys):
    "Made again they are what was shipped, up to the sound's 16 bits; a sound that is cut off fails alone."
    shipped = {p: load_log_mel(p) for p in (root / FOLDER['s4'] / 'audio_log_mel').rglob('*.pkl')}
    assert extract_log_mel(root, '--setting', 's4') == 0 and '34 kept' in capsys.readouterr().out
    assert extract_log_mel(root, '--setting', 's4', '--overwrite', '--workers', 1) == 0
    for path, mel in shipped.items():
        assert (load_log_mel(path) - mel).abs().max() < 0.05
    path = next(iter(shipped))
    path.unlink()
    sound = Path(str(path).replace('audio_log_mel', 'audio_wav')).with_suffix('.wav')
    data = bytearray(sound.read_bytes())
    struct.pack_into('<I', data, data.index(b'data') + 4, len(data))  # states more samples than it has
    sound.write_bytes(data)
    capsys.readouterr()
    assert extract_log_mel(root, '--setting', 's4', '--dry-run') == 0 and not path.exists()
    assert extract_log_mel(root, '--setting', 's4') == 1 and str(sound) in capsys.readouterr().out
    assert not path.exists()


def test_questions_that_are_wrong(root, tmp_path, capsys):
    tone = tmp_path / 'tone.wav'
    soundfile.write(tone, np.zeros(16_000), 16_000)
    (tmp_path / 'bare').mkdir()
    assert extract_log_mel(tone, tmp_path / 'mel') == 0
    capsys.readouterr()
    for args, words in (
        ((tone,), ['only one path']),
        ((tmp_path / 'none.wav', tmp_path / 'out'), ['none.wav', 'no such file']),
        ((tmp_path / 'bare', tmp_path / 'out'), ['bare', '.wav']),
        ((tone, tmp_path / 'out', '--examples', 0), ['examples']),
        ((tone, tmp_path / 'mel', '--examples', 9), ['tone.pkl', '5 examples', '9']),
        ((root, '--setting', 'avss'), ["'avss'"]),
        ((root, tone, '--setting', 's4'), ['2 paths']),
        ((root, '--setting', 's4', '--examples', 3), ['--examples']),
        ((tmp_path / 'nowhere', '--setting', 's4'), ['nowhere']),
        ((tone, tone), ['tone.wav', 'written']),
    ):
        assert extract_log_mel(*args) == 2, args
        sentence(capsys, *words)
    assert not (tmp_path / 'out').exists()
