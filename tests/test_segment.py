"Videos of one's own: containers, time stamps, rotation, tracks, damage, memory, and what is written."

import csv
import json
import subprocess
import sys
import types
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import RECORD, TINY

av = pytest.importorskip('av', reason='PyAV is an extra of its own')

from avsrepro import cli  # noqa: E402
from avsrepro.analysis.own_video import InputForm, moments  # noqa: E402
from avsrepro.analysis.segmenting import read_mask, segment_file  # noqa: E402
from avsrepro.core.errors import InputError  # noqa: E402
from avsrepro.data import media as reading  # noqa: E402
from avsrepro.data.audio import SAMPLE_RATE, write_audio  # noqa: E402
from avsrepro.data.films import write_film  # noqa: E402
from avsrepro.data.media import SoundReader, instants, open_media, pictures_at  # noqa: E402
from avsrepro.models.pretrained import save_pretrained  # noqa: E402
from avsrepro.models.registry import create_model  # noqa: E402

H, W = 48, 64


def bars(n: int) -> np.ndarray:
    "A picture that shows a number as eight bars, black or white."
    columns = np.repeat(255 * (n >> np.arange(8) & 1), W // 8).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (H, W, 3)).copy()


def number_in(picture: np.ndarray) -> int:
    return int((picture[H // 2, W // 16 :: W // 8, 0] > 127) @ 2 ** np.arange(8))


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def film(path: Path, seconds=2.0, rate=25, sounds=((44_100, 1),), times=None, hz=(440,), **how) -> Path:
    "Frame k shows k modulo 256; every sound track has a tone of its own, on all its channels."
    times = np.arange(round(seconds * rate)) / rate if times is None else times
    with write_film(path, (H, W), rate, sounds, **how) as out:
        waves = [tone(f, seconds, hz_)[None].repeat(c, 0) for f, (hz_, c) in zip(hz, sounds)]
        second = -1
        for k, time in enumerate(times):
            out.picture(time, bars(k % 256))
            if int(time) > second:  # sound between the pictures, as in real files
                second = int(time)
                for t, (wave, (r, _)) in enumerate(zip(waves, sounds)):
                    out.sound(wave[:, second * r : (second + 1) * r], t)
    return path


def loudest(wave: torch.Tensor) -> float:
    "The frequency in Hz with the most energy."
    return float(torch.fft.rfft(wave).abs().argmax() * SAMPLE_RATE / len(wave))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    return save_pretrained(create_model(**TINY), tmp_path_factory.mktemp('model') / 'm', TINY, RECORD)


def refusal_of(f, *args, **kw) -> str:
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


# reading

KINDS = [
    ('mp4', 'h264', 'aac', 44_100),
    ('mov', 'h264', 'pcm_s16le', 48_000),
    ('mkv', 'h264', 'flac', 44_100),
    ('webm', 'libvpx', 'libopus', 48_000),
    ('avi', 'mpeg4', 'pcm_s16le', 44_100),
    ('ogg', 'libtheora', 'libopus', 48_000),
    ('ts', 'h264', 'aac', 48_000),
]


@pytest.mark.parametrize('kind, codec, audio, rate', KINDS, ids=[k[0] for k in KINDS])
def test_containers(tmp_path, kind, codec, audio, rate):
    "The picture of each second is AVSBench's, and the tone keeps its height and place."
    for name in (codec, audio):
        try:
            av.codec.Codec('libx264' if name == 'h264' else name, 'w')
        except (av.FFmpegError, ValueError):
            pytest.skip(f'this build of PyAV cannot encode {name}')
    path = film(tmp_path / f'film.{kind}', 3, sounds=[(rate, 1)], codec=codec, audio=audio)
    media = open_media(path)
    times = instants(media.seconds, media.rate)
    assert len(times) == 3
    assert [number_in(p) for p in pictures_at(media, times)] == [23, 48, 73]
    heard = SoundReader(media).read(0, 3)[0]
    assert abs(loudest(heard[8000:40_000]) - 440) < 2
    assert abs(float(heard[8000:40_000].square().mean().sqrt()) - 0.5 / 2**0.5) < 0.03


def test_variable_frame_rate(tmp_path):
    "Pictures are taken by their time stamps: slow at first, then quick, then one that stays for a second."
    times = [*np.arange(0, 1, 0.2), *np.arange(1, 2, 0.04), 2.0, 3.0, 3.04]
    media = open_media(film(tmp_path / 'film.mkv', 3.1, times=times))
    wanted = instants(media.seconds, media.rate)
    shown = [max(k for k, t in enumerate(times) if t <= w + 1e-6) for w in wanted]
    assert [number_in(p) for p in pictures_at(media, wanted)] == shown
    assert shown[:3] == [4, 28, 30]


@pytest.mark.parametrize('turn, k', [(90, 1), (180, 2), (270, 3), (-90, -1)])
def test_rotation(tmp_path, turn, k):
    "A film that asks to be turned counterclockwise is shown as numpy turns a picture counterclockwise."
    stored = np.zeros((H, W, 3), np.uint8)
    stored[: H // 2, : W // 2] = 250
    with write_film(tmp_path / 'film.mp4', (H, W), sounds=[(16_000, 1)], turn=turn) as out:
        out.picture(0, stored)
        out.sound(np.zeros((1, 16_000)))
    media = open_media(tmp_path / 'film.mp4')
    expected = np.rot90(stored, k)
    assert media.size == expected.shape[:2]
    shown = next(pictures_at(media, [0.5]))
    assert np.abs(shown.astype(int) - expected).mean() < 8


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / 'film.mkv'
    with av.open(str(path), 'w') as container:
        track = container.add_stream('libx264', rate=25, width=W, height=H)
        track.pix_fmt, track.codec_context.sample_aspect_ratio = 'yuv420p', Fraction(2, 1)
        container.mux(track.encode(av.VideoFrame.from_ndarray(bars(5), format='rgb24')))
        container.mux(track.encode(None))
    media = open_media(path, write_audio(tmp_path / 'tone.wav', torch.zeros(16_000)))
    assert media.size == (H, 2 * W) and next(pictures_at(media, [0])).shape == (H, 2 * W, 3)


def test_two_tracks_and_stereo(tmp_path):
    "A mono tone of 440 Hz at 44.1 kHz, and a stereo one of 1000 Hz at 48 kHz that is silent on the right."
    path = tmp_path / 'film.mkv'
    with write_film(path, (H, W), 25, [(44_100, 1), (48_000, 2)], audio='flac') as out:
        for k in range(50):
            out.picture(k / 25, bars(k))
        out.sound(tone(440, 2, 44_100)[None], 0)
        left = tone(1000, 2, 48_000)
        out.sound(np.stack([left, 0 * left]), 1)
    one, two = (SoundReader(open_media(path, track=t), 2).read(0, 2) for t in (1, 2))
    assert loudest(one[0]) == 440 and torch.equal(one[0], one[1])
    assert loudest(two[0]) == 1000 and not two[1].any()
    mono = SoundReader(open_media(path, track=2)).read(0, 2)[0]
    torch.testing.assert_close(mono, two[0] / 2, atol=1e-4, rtol=0)
    said = refusal_of(open_media, path, track=3)
    assert 'no sound track 3' in said and '2: flac, stereo, 48000 Hz' in said.replace('2 channels', 'stereo')


@pytest.mark.parametrize('orientation, k', [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_photo_is_upright(tmp_path, orientation, k):
    stored = np.zeros((H, W, 3), np.uint8)
    stored[: H // 2, : W // 2] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / 'photo.jpg', exif=exif)
    media = open_media(tmp_path / 'photo.jpg', write_audio(tmp_path / 'tone.wav', torch.zeros(40_000)))
    assert media.seconds == 2.5 and len(instants(media.seconds, media.rate)) == 3
    expected = np.rot90(stored, k)
    assert all(np.abs(p.astype(int) - expected).mean() < 8 for p in pictures_at(media, [0.5, 2.4]))


def test_sound_of_another_file_is_as_long_as_the_video(tmp_path):
    "What is shorter is followed by silence, what is longer is cut off."
    path = film(tmp_path / 'film.mp4', 2)
    for seconds in (1, 3):
        wav = write_audio(tmp_path / f'{seconds}.wav', torch.full((seconds * SAMPLE_RATE,), 0.25))
        heard = torch.cat(list(reading.sound_blocks(open_media(path, wav))), 1)
        assert heard.shape[1] == min(seconds, 2) * SAMPLE_RATE
        assert SoundReader(open_media(path, wav)).read(0, 2)[0].ne(0).sum() == min(seconds, 2) * SAMPLE_RATE


# a model whose masks are known


class Listener(torch.nn.Module):
    "Marked a frame where its own example of sound is loud, and where the picture is bright."

    num_classes = 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.audio = types.SimpleNamespace(hear=lambda clip: clip.mel)
        self.sizes = set()

    def normalise(self, frames):
        return frames.float() / 255

    def forward(self, frames, mel):
        self.sizes.add((*frames.shape, *mel.shape))
        loud = (mel.amax((-3, -2, -1)) > -1)[..., None, None, None]
        bright = frames.mean(2, keepdim=True) > 0.5
        return types.SimpleNamespace(logits=torch.where(loud & bright, 1.0, -1.0))


def test_masks_follow_sound_and_picture_over_a_long_video(tmp_path):
    "Loud in seconds 3 to 4 and 11 to 15 of 18; every window is of five seconds and in mono."
    wave = torch.zeros(18 * SAMPLE_RATE)
    for start, stop in ((3, 5), (11, 16)):
        at = torch.arange(start * SAMPLE_RATE, stop * SAMPLE_RATE)
        wave[at] = 0.5 * torch.sin(at * (2 * torch.pi * 800 / SAMPLE_RATE))
    path = film(tmp_path / 'film.mp4', 18, 5, sounds=[])
    media = open_media(path, write_audio(tmp_path / 'tone.wav', wave))
    model, form = Listener(), InputForm((H, W), 5)
    found = sorted(moments(model, form, media, silence=True), key=lambda m: m.number)
    assert [m.number for m in found] == list(range(18))
    heard = [t for t, m in enumerate(found) if m.label.any()]
    inside = {3, 4, 11, 12, 13, 14, 15}
    beside = {2, 5, 10, 16}  # an example of 0.96 s drifts by up to 0.2 s in a window
    assert inside - set(heard) == set() and set(heard) - inside <= beside
    assert not any(m.muted.any() for m in found)
    bright = next(pictures_at(media, [found[12].time])).mean(-1) > 127
    assert (found[12].label != bright).mean() < 0.05
    assert model.sizes == {(1, 5, 3, H, W, 1, 5, 1, 96, 64)}


def test_model_of_vpo_hears_three_seconds_around_one_picture(tmp_path):
    stereo = torch.zeros(2, 6 * SAMPLE_RATE)
    stereo[1, 4 * SAMPLE_RATE :] = 0.5 * torch.sin(torch.arange(2 * SAMPLE_RATE) / 4)
    path = film(tmp_path / 'film.mp4', 6, 5, sounds=[])
    media = open_media(path, write_audio(tmp_path / 'tone.wav', stereo))
    seen = []

    class Stereo(Listener):
        def forward(self, frames, mel):
            seen.append(mel[0, 0].amax((-2, -1)) > -1)
            return super().forward(frames, mel)

    model = Stereo()
    list(moments(model, InputForm((H, W), 1, 2, example='mean'), media))
    assert model.sizes == {(1, 1, 3, H, W, 1, 1, 2, 96, 64)}
    assert not any(left for left, _ in seen)
    # three seconds around 0.94, 1.94 ... reach second 4 from 2.94 on
    assert [bool(right) for _, right in seen] == [False, False, True, True, True, True]


# what is written


def test_everything_is_written(tmp_path, model):
    path = film(tmp_path / 'in' / 'film.mp4', 4, turn=-90) if (tmp_path / 'in').mkdir() is None else None
    done = segment_file(path, model, out=tmp_path / 'out', silence=True, quiet=True)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['film_avs', 'film_avs.mp4']
    assert [p.name for p in path.parent.iterdir()] == ['film.mp4']
    folder = done.places.folder
    assert sorted(p.name for p in folder.iterdir()) == [
        'about.json',
        'masks',
        'muted',
        'spans.csv',
        'timeline.png',
    ]
    names = ['000000.938.png', '000001.938.png', '000002.938.png', '000003.938.png']
    assert sorted(p.name for p in (folder / 'masks').iterdir()) == names
    masks = [read_mask(folder / 'masks' / name) for name in names]
    assert all(m.shape == (W, H) for m in masks)
    rows = list(csv.DictReader(open(folder / 'spans.csv')))
    for name, k in (('dog', 1), ('violin', 2)):
        there = [(m == k).mean() >= 0.005 for m in masks]
        spanned = sum(
            float(r['to']) - float(r['from']) for r in rows if (r['object'], r['sound']) == (name, 'on')
        )
        edges = [0, 1.4375, 2.4375, 3.4375, done.marks.seconds]
        assert abs(spanned - sum(np.diff(edges)[there])) < 0.01
    about = json.loads((folder / 'about.json').read_text())
    assert about['masks'] == 4 and about['classes'][1] == 'dog' and about['packages']['torch']
    with Image.open(folder / 'timeline.png') as image:
        assert image.width == 1400
    with av.open(str(done.places.video)) as container:
        assert container.streams.video[0].codec_context.name == 'h264'
        assert container.streams.audio[0].codec_context.name == 'aac'
        times = [f.time for f in container.decode(video=0)]
    assert np.allclose(times, np.arange(100) / 25, atol=0.001)
    heard = SoundReader(open_media(done.places.video)).read(0, 4)[0]
    assert abs(loudest(heard) - 440) < 1


def test_binary_masks_are_0_and_255(tmp_path):
    arguments = TINY | dict(num_classes=1)
    torch.manual_seed(0)
    folder = save_pretrained(create_model(**arguments), tmp_path / 'm', arguments, dict(frames=[32, 32]))
    Image.fromarray(bars(5)).save(tmp_path / 'photo.png')
    wav = write_audio(tmp_path / 'tone.wav', torch.zeros(20_000))
    done = segment_file(tmp_path / 'photo.png', folder, wav, quiet=True)
    mask = np.asarray(Image.open(done.places.folder / 'masks' / '000000.938.png'))
    assert mask.shape == (H, W) and set(np.unique(mask)) <= {0, 255}
    assert json.loads((done.places.folder / 'about.json').read_text())['classes'] == [
        'background',
        'sounding',
    ]


# what cannot be


def command(capsys, monkeypatch, *args) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, 'argv', ['avsrepro', 'segment', *map(str, args)])
    try:
        cli.main()
        code = 0
    except SystemExit as e:
        code = e.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err.strip()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def bad_files(place: Path) -> dict[str, tuple[Path, str]]:
    "Files that cannot be segmented, and a word of why."
    good = film(place / 'good.mkv', 2)
    found = dict(
        nothing=(place / 'none.mp4', 'no such file'),
        folder=(place, 'is a folder'),
        text=(place / 'text.mp4', 'cannot be decoded'),
        empty=(place / 'empty.mp4', 'is empty'),
        mute=(film(place / 'mute.mp4', 1, sounds=[]), 'has no sound'),
        sound=(write_audio(place / 'only.wav', torch.zeros(9000)), 'has no pictures'),
        photo=(place / 'photo.png', '--sound'),
        cut=(place / 'cut.mkv', 'truncated'),
        noise=(place / 'noise.mp4', 'cannot be decoded'),
        locked=(place / 'locked.mp4', 'is encrypted'),
    )
    (place / 'text.mp4').write_text('not a film')
    (place / 'empty.mp4').touch()
    Image.fromarray(bars(1)).save(place / 'photo.png')
    (place / 'cut.mkv').write_bytes(good.read_bytes()[:-2000])
    (place / 'noise.mp4').write_bytes(np.random.default_rng(0).bytes(5000))
    key = dict(encryption_key='00' * 16, encryption_kid='11' * 16)
    film(place / 'locked.mp4', 1, encryption_scheme='cenc-aes-ctr', **key)
    return found


def test_bad_files_are_one_sentence(tmp_path, model, capsys, monkeypatch):
    found = bad_files(tmp_path)
    before = left(tmp_path)
    for name, (path, word) in found.items():
        code, _, err = command(capsys, monkeypatch, path, '--model', model)
        assert code == 2 and word in err and '\n' not in err and str(path) in err, (name, err)
    assert left(tmp_path) == before


@pytest.mark.parametrize('part', ['pictures', 'sound'])
def test_damage_in_the_middle_leaves_nothing(tmp_path, model, part):
    "A whole head and index, then bytes that mean nothing: refused while it is read, wherever they lie."
    path = film(tmp_path / 'film.mp4', 6, movflags='faststart')
    with av.open(str(path)) as container:
        track = container.streams.video[0] if part == 'pictures' else container.streams.audio[0]
        places = [(p.pos, p.size) for p in container.demux(track) if p.size]
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(1)
    for start, size in places[len(places) // 2 :]:
        data[start : start + size] = rng.bytes(size)
    path.write_bytes(data)
    said = refusal_of(segment_file, path, model, quiet=True)
    assert str(path) in said and left(tmp_path) == ['film.mp4']


def test_outputs_are_not_overwritten(tmp_path, model, capsys, monkeypatch):
    path = film(tmp_path / 'film.mp4', 1)
    (tmp_path / 'film_avs').mkdir()
    code, _, err = command(capsys, monkeypatch, path, '--model', model)
    assert code == 2 and 'film_avs: exists already' in err
    code, _, err = command(capsys, monkeypatch, path, '--model', model, '--out', path)
    assert code == 2 and 'film.mp4: is a file' in err


def test_wrong_model_and_track_are_one_sentence(tmp_path, model, capsys, monkeypatch):
    path = film(tmp_path / 'film.mp4', 1)
    for args, word in (
        (['--model', tmp_path], 'config.json'),
        (['--model', model, '--track', 2], 'no sound track 2'),
        (['--model', model, '--sound', tmp_path / 'none.wav'], 'no such file'),
    ):
        code, _, err = command(capsys, monkeypatch, path, *args)
        assert code == 2 and word in err and '\n' not in err
    assert left(tmp_path) == ['film.mp4']


def test_without_a_model_the_suitable_one_is_asked_for(tmp_path, model, capsys, monkeypatch):
    "And only after the file was found good."
    asked = []
    sharing = types.ModuleType('sharing')
    sharing.suitable_model = lambda quiet=False: asked.append(quiet) or model
    monkeypatch.setitem(sys.modules, 'avsrepro.experiments.sharing', sharing)
    assert command(capsys, monkeypatch, tmp_path / 'none.mp4')[0] == 2 and not asked
    path = film(tmp_path / 'film.mp4', 1)
    code, out, _ = command(capsys, monkeypatch, path, '--quiet')
    assert (code, out, asked) == (0, '', [True])
    assert left(tmp_path) == ['film.mp4', 'film_avs', 'film_avs.mp4']


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    assert 'pip install "avsrepro[video]"' in refusal_of(open_media, tmp_path / 'film.mp4')


FULL = '''
import resource, sys
from avsrepro.analysis.segmenting import segment_file
from avsrepro.core.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    segment_file(sys.argv[1], sys.argv[2], quiet=True)
except InputError as e:
    print(e)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files by setrlimit')
@pytest.mark.parametrize('limit', [20, 3000])
def test_full_disk_leaves_nothing(tmp_path, model, limit):
    "The system refuses to write more than so many bytes into a file: a mask, or the video."
    path = film(tmp_path / 'film.mp4', 3)
    done = subprocess.run(
        [sys.executable, '-c', FULL, str(path), str(model), str(limit)], capture_output=True, text=True
    )
    assert 'cannot be written (File too large' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('\n') == 1 and left(tmp_path) == ['film.mp4']


# memory


class Held:
    "How much is held between the steps: bytes of the reader's sound, and pictures of a window."

    def __init__(self):
        self.sound = self.pictures = 0


@pytest.mark.parametrize('seconds', [10, 120])
def test_what_is_held_does_not_grow_with_the_length(tmp_path, monkeypatch, seconds):
    """Counted, not measured: sound and pictures that are alive at once, the same for ten seconds and two
    minutes."""
    from avsrepro.analysis import own_video

    most = Held()

    class Counting(SoundReader):
        def read(self, start, stop):
            out = super().read(start, stop)
            most.sound = max(most.sound, self.held.shape[1])
            return out

    def counted(form, frames, *rest):
        most.pictures = max(most.pictures, len(frames))
        return replace(window_clip(form, frames, *rest))

    window_clip = own_video.window_clip
    monkeypatch.setattr(own_video, 'SoundReader', Counting)
    monkeypatch.setattr(own_video, 'window_clip', counted)
    path = film(tmp_path / 'film.mp4', seconds, 2, sounds=[])
    media = open_media(path, write_audio(tmp_path / 'tone.wav', torch.zeros(seconds * SAMPLE_RATE)))
    count = sum(1 for _ in moments(Listener(), InputForm((H, W), 5), media))
    assert count == seconds and most.pictures == 5
    assert most.sound <= (5 + 10 + 2) * SAMPLE_RATE  # a window, what lies behind it, and a block
