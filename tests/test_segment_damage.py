"Damaged files, files that are something else than they say, and runs that are broken off."

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import RECORD, TINY

av = pytest.importorskip('av', reason='PyAV is an extra of its own')

from avsrepro import cli  # noqa: E402
from avsrepro.analysis import segmenting  # noqa: E402
from avsrepro.analysis.segmenting import places_for, segment_file  # noqa: E402
from avsrepro.core.errors import InputError  # noqa: E402
from avsrepro.data.audio import write_audio  # noqa: E402
from avsrepro.data.damage import first_fault  # noqa: E402
from avsrepro.data.films import write_film  # noqa: E402
from avsrepro.data.media import film_frames, open_media, open_photo, sound_blocks, sound_gaps  # noqa: E402
from avsrepro.models.pretrained import save_pretrained  # noqa: E402
from avsrepro.models.registry import create_model  # noqa: E402

KINDS = dict(
    mkv=('h264', 'flac'),
    webm=('libvpx', 'libopus'),
    avi=('mpeg4', 'mp2'),
    mp4=('h264', 'aac'),
    mov=('mpeg4', 'aac'),
    ts=('h264', 'aac'),
    flv=('h264', 'aac'),
)
CLUSTER = b'\x1f\x43\xb6\x75'


def film(path: Path, seconds=2.0, codec='h264', audio='aac', gap=0.0, **how) -> Path:
    "Noise, so that most bytes are of pictures, and a tone with `gap` seconds without sound after the first."
    rng = np.random.default_rng(0)
    with write_film(path, (48, 64), 25, [(48_000, 1)], codec, audio, **how) as out:
        for k in range(round(25 * seconds)):
            out.picture(k / 25, rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            if k == 25:
                out.samples[0] += round(gap * 48_000)
            if k < 25 or k >= 25 * (1 + gap):
                out.sound(0.5 * np.sin(np.arange(1920 * k, 1920 * (k + 1)) / 20)[None])
    return path


@pytest.fixture(scope='module')
def films(tmp_path_factory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp('films')
    return {
        kind: film(place / f'film.{kind}', codec=codec, audio=audio).read_bytes()
        for kind, (codec, audio) in KINDS.items()
    }


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    return save_pretrained(create_model(**TINY), tmp_path_factory.mktemp('model') / 'm', TINY, RECORD)


def read(path: Path) -> tuple[int, float]:
    "Pictures and seconds of sound: all that is decoded when a film is segmented."
    media = open_media(path)
    return sum(1 for _ in film_frames(media)), sum(b.shape[1] for b in sound_blocks(media)) / 16_000


def refusal_of(f, *args, **kw) -> str:
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


def damages(data: bytes, at: int) -> dict[str, bytes]:
    noise = np.random.default_rng(at).bytes(3000)
    return dict(
        zeros=data[:at] + bytes(3000) + data[at + 3000 :],
        noise=data[:at] + noise + data[at + 3000 :],
        lost=data[:at] + data[at + 3000 :],
        cut=data[:at],
    )


@pytest.mark.parametrize('kind', KINDS)
def test_damage_is_refused_in_every_container(tmp_path, films, kind):
    "Holes, noise, bytes that are gone, and a file that is cut off, at three places."
    data, path = films[kind], tmp_path / f'film.{kind}'
    path.write_bytes(data)
    pictures, seconds = read(path)
    assert pictures == 50 and abs(seconds - 2) < 0.1
    for part in (0.3, 0.5, 0.7):
        for name, bad in damages(data, int(part * len(data))).items():
            if (kind, name) == ('ts', 'cut'):
                continue  # nothing states how long a recording is
            path.write_bytes(bad)
            said = refusal_of(read, path)
            assert str(path) in said and ('damaged' in said or 'truncated' in said), (name, said)


def test_the_command_says_one_sentence_and_leaves_nothing(tmp_path, films, model, capsys, monkeypatch):
    for kind in ('mkv', 'webm', 'avi', 'mp4'):
        path = tmp_path / kind / f'film.{kind}'
        path.parent.mkdir()
        path.write_bytes(damages(films[kind], len(films[kind]) // 2)['zeros'])
        out = tmp_path / kind / 'new' / 'folder'
        args = ['avsrepro', 'segment', str(path), '--model', str(model), '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', args)
        with pytest.raises(SystemExit) as e:
            cli.main()
        err = capsys.readouterr().err.strip()
        assert e.value.code == 2 and f'{path}: the file is damaged' in err and '\n' not in err
        assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('crc', [True, False])
def test_the_fault_of_matroska_lies_where_the_damage_is(tmp_path, crc):
    "A wrong checksum is that of its cluster, found here by the four bytes that it begins with."
    path = film(tmp_path / 'film.mkv', write_crc32=str(int(crc)), cluster_time_limit='400')
    data = path.read_bytes()
    assert first_fault(path) is None
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes(9000) + data[at + 9000 :])
    fault = first_fault(path)
    assert fault == data.rindex(CLUSTER, 0, at) if crc else at <= fault <= at + 9000


def test_checksums_of_a_codec_are_looked_at(tmp_path):
    "One bit of a FLAC frame, in a container that has no checksum itself."
    path = film(tmp_path / 'film.mkv', audio='flac', write_crc32='0')
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(audio=0) if p.size][20]
        place = path.read_bytes().index(bytes(packet))
    data = bytearray(path.read_bytes())
    data[place + packet.size // 2] ^= 1
    path.write_bytes(data)
    assert 'damaged at about' in refusal_of(read, path)


def test_whole_files_of_unusual_make_are_not_refused(tmp_path):
    "Matroska of a recorder that writes to a pipe, with its index in front; what follows on a film."
    for kind, (codec, audio) in KINDS.items():
        if kind in ('mkv', 'webm'):
            made = dict(live=dict(live='1'), front=dict(cues_to_front='1', reserve_index_space='5000'))
            for name, how in made.items():
                path = film(tmp_path / f'{name}.{kind}', codec=codec, audio=audio, **how)
                assert read(path)[0] == 50, (kind, name)
        if kind in ('mkv', 'avi'):
            path = film(tmp_path / f'junk.{kind}', codec=codec, audio=audio)
            path.write_bytes(path.read_bytes() + bytes(999))
            assert read(path)[0] == 50, kind
    path = tmp_path / 'live.mkv'
    path.write_bytes(path.read_bytes()[:-300])
    assert 'damaged from byte' in refusal_of(read, path)


def test_a_recording_may_begin_between_key_frames(tmp_path):
    "Key frames are 12 pictures apart: of 100, those from the first whole key frame on are there."
    path = film(tmp_path / 'film.ts', 4, options={'x264-params': 'keyint=12:scenecut=0'})
    with av.open(str(path)) as container:
        keys = [p.pos for p in container.demux(video=0) if p.size and p.is_keyframe]
    data = path.read_bytes()
    start = (keys[2] + keys[3]) // 2 // 188 * 188
    path.write_bytes(data[start:])
    assert read(path)[0] == 100 - 3 * 12


def test_missing_sound_is_told(tmp_path, model, capsys):
    path = film(tmp_path / 'film.mkv', 4, audio='flac', gap=1.5)
    assert abs(sound_gaps(open_media(path)) - 1.5) < 0.05
    assert sound_gaps(open_media(film(tmp_path / 'whole.mkv'))) == 0
    done = segment_file(path, model)
    assert 'film.mkv: 1.5 s in the middle of its sound are missing' in capsys.readouterr().err
    about = json.loads((done.places.folder / 'about.json').read_text())
    assert abs(about['sound']['seconds_missing'] - 1.5) < 0.05


def test_sound_that_is_longer_than_the_film_is_told(tmp_path, model, capsys):
    path, sound = film(tmp_path / 'film.mkv', 2), tmp_path / 'long.wav'
    write_audio(sound, torch.zeros(16_000 * 5))
    done = segment_file(path, model, sound)
    assert (
        'long.wav: its sound is longer than the 2.0 s of film.mkv; the last 3.0 s' in capsys.readouterr().err
    )
    about = json.loads((done.places.folder / 'about.json').read_text())
    assert abs(about['sound']['seconds_left_out'] - 3) < 0.05


# something else than it says


class Asked(http.server.BaseHTTPRequestHandler):
    paths: list[str] = []

    def do_GET(self):
        self.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_lists_of_other_files_are_refused_and_not_followed(tmp_path, films):
    (tmp_path / 'film.ts').write_bytes(films['ts'])
    (tmp_path / 'list.mp4').write_text("ffconcat version 1.0\nfile 'film.ts'\n")
    head = '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n'
    (tmp_path / 'near.m3u8').write_text(f'{head}film.ts\n#EXT-X-ENDLIST\n')
    with http.server.HTTPServer(('127.0.0.1', 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/film.ts'
        (tmp_path / 'far.m3u8').write_text(f'{head}{url}\n#EXT-X-ENDLIST\n')
        for name in ('list.mp4', 'near.m3u8'):
            assert 'is a list of other files' in refusal_of(open_media, tmp_path / name)
        assert 'far.m3u8' in refusal_of(open_media, tmp_path / 'far.m3u8')
        server.shutdown()
    assert Asked.paths == []


def test_a_codec_that_nobody_knows_is_one_sentence(tmp_path):
    "MPEG's program stream has no name for pictures that are stored as they are."
    path = tmp_path / 'film.mpg'
    film(path, codec='rawvideo', audio='mp2')
    assert 'film.mpg: its pictures are of a kind that FFmpeg does not know' in refusal_of(open_media, path)


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    ramp = np.arange(256, dtype=np.uint16) * 257
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / 'grey.png')
    assert np.array_equal(open_photo(tmp_path / 'grey.png')[3, :, 1], np.arange(256))


def test_names_and_places_are_looked_at_first(tmp_path, films):
    assert 'File name too long' in refusal_of(open_media, tmp_path / f'{"x" * 300}.mp4')
    assert 'is a folder' in refusal_of(open_media, tmp_path)
    assert 'is a device' in refusal_of(open_media, os.devnull)
    assert 'File name too long' in refusal_of(places_for, tmp_path / 'film.mp4', tmp_path / ('y' * 300))
    (tmp_path / 'film_avs.mp4').symlink_to(tmp_path / 'nowhere')
    assert 'exists already' in refusal_of(places_for, tmp_path / 'film.mp4')


def test_folders_made_for_nothing_are_gone(tmp_path):
    path = film(tmp_path / 'film.mp4', 1)
    (tmp_path / 'old').mkdir()
    said = refusal_of(segment_file, path, tmp_path / 'none', out=tmp_path / 'old' / 'new' / 'deep')
    assert 'config.json' in said and not list((tmp_path / 'old').iterdir())
    write_audio(tmp_path / 'file', torch.zeros(99))
    assert 'file: is a file; --out takes a folder' in refusal_of(
        segment_file, path, tmp_path / 'none', out=tmp_path / 'file'
    )


def test_a_key_pressed_in_the_middle_leaves_nothing(tmp_path, model, monkeypatch):
    path, out = film(tmp_path / 'film.mp4', 3), tmp_path / 'out'
    real, seen = segmenting.save_mask, []

    def pressed(mask: Path, *rest):
        real(mask, *rest)
        seen.append(mask.exists())
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(segmenting, 'save_mask', pressed)
    args = ['avsrepro', 'segment', str(path), '--model', str(model), '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', args)
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 130 and seen == [True, True]
    assert [p.name for p in tmp_path.iterdir()] == ['film.mp4']


@pytest.mark.skipif(sys.platform == 'win32', reason='sends a signal')
def test_a_signal_in_the_middle_leaves_nothing(tmp_path, model):
    path, out = film(tmp_path / 'film.mp4', 8), tmp_path / 'out'
    args = ['segment', str(path), '--model', str(model), '--fps', '50', '--out', str(out)]
    running = subprocess.Popen(
        [sys.executable, '-m', 'avsrepro', *args], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not list(out.rglob('*.png')) and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143 and 'Traceback' not in said, said
    assert [p.name for p in tmp_path.iterdir()] == ['film.mp4']
