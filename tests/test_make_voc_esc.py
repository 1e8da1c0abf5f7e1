"The command that builds VOC x ESC, on small official layouts, and its rules on the published bank."

import hashlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from avsrepro.core.paths import find_shared, repo_root
from avsrepro.data import voc_esc as rules
from avsrepro.data import voc_esc_build as build
from avsrepro.data.assets import VocEscBank, open_bank
from avsrepro.data.clips import voc_palette

ROOT = repo_root()
COMMAND = ROOT / 'data_prep' / 'make_voc_esc.py'
PUBLISHED = find_shared('voc_esc')
needs_published = pytest.mark.skipif(PUBLISHED is None, reason='the published VOC x ESC is not here')
CLIPS = {  # recording of the published bank: its name in ESC-50, target, seconds that it sounds from
    'dog_17': ('5-203128-A', 0, 0),
    'dog_23': ('5-213855-A', 0, 1),
    'dog_35': ('5-231762-A', 0, 3),
    'dog_00': ('3-180256-A', 0, 2),
}


def script():
    spec = importlib.util.spec_from_file_location('make_voc_esc', COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = script()


def voc_mask() -> np.ndarray:
    "A dog of 200 x 200 pixels with a void border of 5, a person under 1 %, and a strip of sofa."
    mask = np.zeros((375, 500), np.uint8)
    mask[95:305, 95:305] = 255
    mask[100:300, 100:300] = 12
    mask[340:350, 20:120] = 15
    mask[:, 480:] = 18
    return mask


def save_voc(root: Path, name: str, mask: np.ndarray) -> None:
    rng = np.random.default_rng(int(name[-3:]))
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    photo = Image.fromarray(small).resize(mask.shape[::-1], Image.BICUBIC)
    photo.save(root / 'JPEGImages' / f'{name}.jpg', quality=95)
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())  # as the official masks have
    image.save(root / 'SegmentationClass' / f'{name}.png')


def save_clip(root: Path, stem: str, start: float, rate: int = 44_100) -> None:
    "A second of a tone of 440 Hz at a fifth of full scale, in five seconds."
    t = np.arange(5 * rate) / rate
    tone = 0.2 * np.sin(2 * np.pi * 440 * t) * ((t >= start) & (t < start + 1))
    soundfile.write(root / 'audio' / f'{stem}.wav', tone, rate, subtype='PCM_16')


@pytest.fixture(scope='module')
def downloads(tmp_path_factory):
    "VOC with two listed and two other photographs, twelve clips of ESC-50, two photographs of MSRC."
    root = tmp_path_factory.mktemp('downloads')
    voc, esc, msrc = (
        root / 'VOCdevkit/VOC2012',
        root / 'ESC-50-master',
        root / 'MSRC_ObjCategImageDatabase_v2',
    )
    for sub in (voc / 'JPEGImages', voc / 'SegmentationClass', esc / 'audio', esc / 'meta'):
        sub.mkdir(parents=True)
    save_voc(voc, '2008_000019', voc_mask())
    save_voc(voc, '2008_000016', np.where(voc_mask() == 18, 20, 0).astype(np.uint8))
    save_voc(voc, '2007_000033', np.where(voc_mask() == 12, 1, 0).astype(np.uint8)[:, ::-1])
    save_voc(voc, '2011_000003', np.where(voc_mask() == 12, 17, 0).astype(np.uint8)[:333])
    lines = ['filename,fold,target,category,esc10,src_file,take']
    clips = {stem: (target, start, 'dog') for stem, target, start in CLIPS.values()}
    clips |= {f'4-{n}-A': (3, n / 2, 'cow') for n in range(8)}
    for stem, (target, start, category) in clips.items():
        save_clip(esc, f'{stem}-{target}', start)
        lines.append(f'{stem}-{target}.wav,{stem[0]},{target},{category},False,1,A')
    (esc / 'meta/esc50.csv').write_text('\n'.join(lines) + '\n')
    for sub in ('Images', 'GroundTruth'):
        (msrc / sub).mkdir(parents=True)
    for name, truth in {
        '7_21_s': msrc_truth(),
        '1_5_s': np.full((213, 320, 3), (0, 128, 0), np.uint8),
    }.items():
        Image.fromarray(truth).save(msrc / 'GroundTruth' / f'{name}_GT.bmp')
        Image.fromarray(truth).save(msrc / 'Images' / f'{name}.bmp')
    return root


def msrc_truth() -> np.ndarray:
    "A car on grass with a face and a body, void at the edge."
    truth = np.full((213, 320, 3), (0, 128, 0), np.uint8)
    truth[50:150, 100:200] = (64, 0, 128)
    truth[20:40, 20:60] = (192, 128, 0)
    truth[40:90, 20:60] = (64, 64, 0)
    truth[:5] = 0
    return truth


def arguments(folder: Path, downloads: Path, *more: str, msrc: bool = True) -> list[str]:
    given = ['--voc', downloads / 'VOCdevkit', '--esc', downloads, '--partial', '--jobs', '1', *more]
    return [str(a) for a in [folder, *given, *(['--msrc', downloads] if msrc else [])]]


@pytest.fixture(scope='module')
def bank(downloads, tmp_path_factory):
    folder = tmp_path_factory.mktemp('made') / 'bank'
    assert main(arguments(folder, downloads)) == 0
    return folder


def table(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / name, dtype=str, keep_default_na=False)


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


# what is built


def test_masks_have_the_official_values(bank):
    "Each pixel is that of the official mask whose centre is nearest."
    with Image.open(bank / 'masks/voc/2008_000019.png') as m:
        assert m.mode == 'P' and m.getpalette()[36:39] == [64, 0, 128]  # the colour of a dog
        values = np.asarray(m)
    y, x = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in ((282, 375), (375, 500)))
    assert np.array_equal(values, voc_mask()[np.ix_(y, x)])
    assert set(np.unique(values)) == {0, 12, 15, 18, 255}


def test_masks_of_msrc_have_the_classes_of_voc(bank):
    values = np.asarray(Image.open(bank / 'masks/msrc/7_21_s.png'))
    assert values.shape == (213, 320) and set(np.unique(values)) == {0, 7, 15}
    assert (values[50:150, 100:200] == 7).all() and (values[20:90, 20:60] == 15).all()
    assert (values > 0).sum() == 100 * 100 + 70 * 40


def test_photographs_are_the_official_ones_made_smaller(bank, downloads):
    with Image.open(bank / 'photos/voc/2008_000019.jpg') as made:
        assert (made.format, made.mode, made.size) == ('JPEG', 'RGB', (375, 282))
        values = np.asarray(made).astype(float)
    official = Image.open(downloads / 'VOCdevkit/VOC2012/JPEGImages/2008_000019.jpg')
    wanted = np.asarray(official.resize((375, 282), Image.BOX)).astype(float)
    assert np.abs(values - wanted).mean() < 3


def test_table_of_photographs(bank):
    rows = table(bank, 'photos.csv').to_dict('records')
    assert [r['id'] for r in rows] == ['2008_000016', '2008_000019', '7_21_s']
    dog = dict(id='2008_000019', source='voc', split='test', width='375', height='282', duplicate_of='')
    assert rows[1] == dog | dict(core_classes='dog', other_classes='sofa', tiny_core_classes='person')
    assert (rows[0]['core_classes'], rows[0]['other_classes']) == ('', 'tvmonitor')
    assert (rows[2]['split'], rows[2]['core_classes']) == ('train', 'car;person')


def test_recordings_are_flac_of_five_seconds_at_16_khz(bank):
    for path in (bank / 'sounds').rglob('*.flac'):
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.channels) == ('FLAC', 'PCM_16', 1)
        assert (info.samplerate, info.frames) == (16_000, 80_000)


def test_a_recording_is_the_official_one_with_its_peak_at_full_scale(bank):
    w = soundfile.read(bank / 'sounds/dog/dog_23.flac')[0]
    assert 0.99 < np.abs(w).max() <= 1
    t = np.arange(17_600, 30_400) / 16_000  # away from the ends of the tone
    tone = np.sin(2 * np.pi * 440 * t)
    part = w[17_600:30_400]
    assert np.corrcoef(part, tone)[0, 1] > 0.9999
    assert np.abs(w[:15_000]).max() < 1e-3 and np.abs(w[33_000:]).max() < 1e-3


def test_table_of_recordings(bank):
    rows = table(bank, 'sounds.csv').set_index('file')
    assert len(rows) == 12
    row = rows.loc['sounds/dog/dog_35.flac']
    given = 'category voc_class broad fold split clip_id related_voc'.split()
    assert row[given].tolist() == ['dog', 'dog', 'animals', '5', 'test', '5-231762-A', 'dog']
    assert row.best_second == '3.0' and abs(float(row.active_seconds) - 1) <= 0.05
    assert abs(float(row.rms_db) - 10 * np.log10(0.5 / 5)) <= 0.15  # a fifth of the time, a sine
    assert rows.loc['sounds/dog/dog_00.flac'].split == 'train'
    cows = rows[rows.category == 'cow']
    assert len(cows) == 8 and set(cows.split) == {'val'} and cows.clip_id.nunique() == 8


def test_pairs_and_negatives(bank):
    pairs = table(bank, 'pairs/ss_test.csv')
    assert pairs.pair_id.tolist() == [f'ss_test_voc_2008_000019_{k}' for k in range(3)]
    assert pairs.sounds.tolist() == [f'sounds/dog/dog_{n}.flac' for n in (23, 17, 35)]
    assert pairs.seed.tolist() == ['338396447', '2117436330', '661282177']
    negatives = table(bank, 'negatives_test.csv')  # the off-screen recordings are not in the small download
    assert negatives.condition.tolist() == ['silence', 'noise'] * 3
    assert negatives.seed.tolist()[:2] == ['1784997809', '1605268537']
    assert not len(table(bank, 'pairs/ss_val.csv')) and 'sounding_classes' in table(bank, 'pairs/ms_val.csv')


def test_every_file_is_in_the_manifest(bank):
    lines = [line.split('  ') for line in (bank / 'MANIFEST.sha256').read_text().splitlines()]
    files = {n: hashlib.sha256(data).hexdigest() for n, data in files_of(bank).items()}
    del files['MANIFEST.sha256']
    assert {name: sha for sha, name in lines} == files
    assert not list(bank.parent.glob('*.part'))


def test_the_package_uses_the_bank(bank, monkeypatch):
    monkeypatch.setenv('AVSREPRO_VOC_ESC', str(bank))
    made = VocEscBank()
    assert made.root == bank and len(made.labels) == 9
    dog = made.voc_name.index('dog')
    assert not made.photos.get(('test', dog))  # a person is in it, too small to count
    assert made.grounds['test'] == [('voc', '2008_000016')]
    picture = made.background('test', np.random.default_rng(0), (48, 48))
    sound = made.sound('test', dog, np.random.default_rng(0), 1.0)
    assert picture.shape == (48, 48, 3) and picture.std() > 5
    assert sound.shape == (16_000,) and abs(np.sqrt((sound**2).mean()) - 0.1) < 0.01
    assert open_bank('voc_esc', str(bank)).key == made.key


def test_without_msrc(bank, downloads, tmp_path):
    assert main(arguments(tmp_path / 'bank', downloads, msrc=False)) == 0
    assert table(tmp_path / 'bank', 'photos.csv').source.tolist() == ['voc', 'voc']


def test_other_photographs_follow_the_rule(downloads, tmp_path):
    "A photograph that is not listed; one of MSRC without a sounding class may show anything and stays out."
    assert main(arguments(tmp_path / 'bank', downloads, '--all')) == 0
    rows = table(tmp_path / 'bank', 'photos.csv').set_index('id')
    assert sorted(rows.index) == ['2007_000033', '2008_000016', '2008_000019', '2011_000003', '7_21_s']
    limits = table(ROOT / 'avsrepro/data/bank_lists', 'limits.csv').set_index(['source', 'stratum'])
    for name, stratum in {'2007_000033': 'aeroplane', '2011_000003': 'sheep'}.items():
        last_train, last_val = limits.loc['voc', stratum]
        order = hashlib.sha1(name.encode()).hexdigest()
        assert rows.split[name] == (
            'train' if order <= last_train else 'val' if order <= last_val else 'test'
        )
    assert not (tmp_path / 'bank/photos/msrc/1_5_s.jpg').exists()


def test_unseen_recordings_keep_their_level(downloads, tmp_path):
    raw = tmp_path / 'raw_audio'
    raw.mkdir()
    t = np.arange(3 * 48_000) / 48_000
    stereo = np.stack([0.4 * np.sin(2 * np.pi * 500 * t), 0 * t], 1)
    soundfile.write(raw / 'rooster_segment.wav', stereo, 48_000)
    assert main(arguments(tmp_path / 'bank', downloads, '--unseen', str(raw))) == 0
    w, rate = soundfile.read(tmp_path / 'bank/unseen_wavs/rooster_segment.flac')
    assert (len(w), rate) == (80_000, 16_000) and np.abs(w[48_100:]).max() < 1e-3
    assert abs(np.abs(w[8_000:40_000]).max() - 0.2) < 0.002


# dry runs, bad input, interruption


def test_dry_run_writes_nothing(downloads, tmp_path, capsys):
    before = files_of(downloads)
    assert main(arguments(tmp_path / 'bank', downloads, '--dry-run')) == 0
    said = capsys.readouterr().out
    assert '3  (2 VOC, 1 MSRC; 0 not listed)' in said and '12  (8 numbered by their sound)' in said
    assert '3 ss_test' in said
    assert not list(tmp_path.iterdir()) and files_of(downloads).keys() == before.keys()


WRONG = {
    'no VOC': (['--voc', 'nowhere'], 'nowhere: there is no such folder', 'host.robots.ox.ac.uk'),
    'not VOC': (['--voc', '{esc}'], 'is another folder', 'SegmentationClass'),
    'not ESC-50': (['--esc', '{voc}'], 'is another folder', 'github.com/karolpiczak/ESC-50'),
    'not MSRC': (['--msrc', '{esc}'], 'is another folder', 'GroundTruth'),
    'not unseen': (['--unseen', '{esc}'], 'is another folder', 'AVSBench-Robust'),
    'no jobs': (['--jobs', '0'], '--jobs 0', 'positive'),
}


@pytest.mark.parametrize('more, said, wanted', WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence(more, said, wanted, downloads, tmp_path, capsys):
    places = dict(esc=downloads / 'ESC-50-master', voc=downloads / 'VOCdevkit')
    more = [m.format(**places) for m in more]
    assert main([*arguments(tmp_path / 'bank', downloads), *more]) == 2
    out = capsys.readouterr()
    assert said in out.err and wanted in out.err and len(out.err.splitlines()) == 1 and not out.out
    assert not list(tmp_path.iterdir())


def test_an_incomplete_download_is_an_error(downloads, tmp_path, capsys):
    given = [a for a in arguments(tmp_path / 'bank', downloads) if a != '--partial']
    assert main(given) == 2
    said = capsys.readouterr().err
    assert '2008_000033.jpg: is missing' in said and '--partial' in said and len(said.splitlines()) == 1


def test_a_folder_that_is_there_is_not_touched(bank, downloads, capsys):
    before = files_of(bank)
    assert main(arguments(bank, downloads)) == 2
    assert 'exists already' in capsys.readouterr().err and files_of(bank) == before


def copied(downloads: Path, to: Path) -> Path:
    for name, data in files_of(downloads).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


def test_a_bad_file_stops_the_build_and_repaired_it_goes_on(bank, downloads, tmp_path, capsys):
    root = copied(downloads, tmp_path / 'downloads')
    wav = root / 'ESC-50-master/audio/5-231762-A-0.wav'
    whole = wav.read_bytes()
    wav.write_bytes(whole[:1000])
    assert main(arguments(tmp_path / 'bank', root)) == 2
    said = capsys.readouterr().err
    assert '5-231762-A-0.wav' in said and 'truncated' in said
    assert not (tmp_path / 'bank').exists() and (tmp_path / 'bank.part/photos').is_dir()
    wav.write_bytes(whole)
    assert main(arguments(tmp_path / 'bank', root)) == 0
    assert files_of(tmp_path / 'bank') == files_of(bank)


def test_a_mask_in_colours_is_refused(downloads, tmp_path, capsys):
    root = copied(downloads, tmp_path / 'downloads')
    path = root / 'VOCdevkit/VOC2012/SegmentationClass/2008_000019.png'
    image = Image.open(path)
    image.putpalette(voc_palette().tobytes())
    image.convert('RGB').save(path)
    assert main(arguments(tmp_path / 'bank', root)) == 2
    assert '2008_000019.png: is a colour image' in capsys.readouterr().err


KILLED = """
import os, runpy, signal, sys
from avsrepro.data import voc_esc_build as build
write, count = build.write_recording, []
def last(work):
    count.append(work)
    if len(count) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(work)
build.write_recording = last
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_killed_build_goes_on(bank, downloads, tmp_path):
    "What was complete is kept, what was not is made again, what nobody asked for goes."
    folder, part = tmp_path / 'bank', tmp_path / 'bank.part'
    args = [sys.executable, '-c', KILLED, str(COMMAND), *arguments(folder, downloads)]
    assert subprocess.run(args, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert not folder.exists() and not (part / 'MANIFEST.sha256').exists()
    made = sorted((part / 'sounds').rglob('*.flac'))
    assert len(made) == 5 and len(list((part / 'photos').rglob('*.jpg'))) == 3
    kept = {p.relative_to(part): p.stat().st_mtime_ns for p in made[1:]}
    made[0].write_bytes(made[0].read_bytes()[:400])
    cut = part / 'masks/voc/2008_000019.png'
    cut.write_bytes(cut.read_bytes()[:100])
    (part / 'photos/voc/.2008_000019.0123abcd.tmp.jpg').write_bytes(b'half')
    assert main(arguments(folder, downloads)) == 0
    assert files_of(folder) == files_of(bank) and not part.exists()
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_an_interrupt_is_no_traceback(downloads, tmp_path, monkeypatch, capsys):
    def stop(work):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, 'write_recording', stop)
    assert main(arguments(tmp_path / 'bank', downloads)) == 130
    assert 'goes on' in capsys.readouterr().err and not (tmp_path / 'bank').exists()


def test_help():
    done = subprocess.run([sys.executable, str(COMMAND), '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for option in ('--voc', '--esc', '--msrc', '--dry-run', '--partial', '--all'):
        assert option in done.stdout


# the published bank


@needs_published
def test_splits_of_photographs_follow_the_rule():
    rows = table(PUBLISHED, 'photos.csv')
    given = [rules.split_of_photo(r.source, r.id, r.core_classes) for r in rows.itertuples()]
    assert given == rows.split.tolist() and len(given) == 1191


@needs_published
def test_order_inside_a_stratum_is_that_of_sha1():
    "Without the package's list of limits."
    rows = table(PUBLISHED, 'photos.csv')
    rows['order'] = [hashlib.sha1(name.encode()).hexdigest() for name in rows.id]
    rows['stratum'] = [rules.photo_stratum(c) for c in rows.core_classes]
    for _, stratum in rows.groupby(['source', 'stratum']):
        places = stratum.sort_values('order').split.map(dict(train=0, val=1, test=2))
        assert places.is_monotonic_increasing


@needs_published
def test_lists_are_those_of_the_published_bank():
    rows, listed = table(PUBLISHED, 'photos.csv'), rules.bank_list('photos')
    columns = ['source', 'id', 'split', 'duplicate_of']
    assert rows[columns].equals(listed[columns])
    assert table(PUBLISHED, 'classes.csv').to_dict('records') == [
        {k: str(v) for k, v in r.items()} for r in rules.class_rows()
    ]


@needs_published
def test_columns_of_photographs_follow_from_the_masks():
    for r in table(PUBLISHED, 'photos.csv').to_dict('records'):
        with Image.open(PUBLISHED / 'masks' / r['source'] / f'{r["id"]}.png') as m:
            size, columns = m.size, rules.mask_columns(np.asarray(m))
        assert columns.items() <= r.items() and size == (int(r['width']), int(r['height']))


@needs_published
def test_columns_of_recordings_follow_from_the_samples():
    for r in table(PUBLISHED, 'sounds.csv')[::4].to_dict('records'):
        pcm = soundfile.read(PUBLISHED / r['file'], dtype='int16')[0]
        assert rules.sound_columns(pcm).items() <= r.items(), r['file']
        assert r['split'] == rules.split_of_sound(r['category'], int(r['fold']))
        assert r['voc_class'] == rules.class_of_sound(r['category'])


@needs_published
def test_pairs_and_negatives_are_the_published_ones(tmp_path):
    "Byte for byte, from the published photographs and recordings."
    photos, sounds = (table(PUBLISHED, f'{t}.csv').to_dict('records') for t in ('photos', 'sounds'))
    build.write_tables(build.bank_tables(photos, sounds), tmp_path)
    names = [n for n in files_of(tmp_path) if n.endswith('.csv')]
    assert len(names) == 8
    for name in names:
        assert (tmp_path / name).read_bytes() == (PUBLISHED / name).read_bytes(), name


@needs_published
def test_recordings_without_a_name_are_found_by_their_sound(tmp_path):
    "Those of fold 4, quieter, at 44.1 kHz and in another order, get the number that they have."
    rng, rows = np.random.default_rng(0), rules.bank_list('sounds')
    right = total = 0
    for category in ('cow', 'train', 'crow', 'hand_saw'):
        listed = rows[rows.name.str.startswith(f'{category}_') & (rows.clip_id == '')].to_dict('records')
        order, found = rng.permutation(len(listed)), []
        for i in order:
            pcm = soundfile.read(PUBLISHED / rules.sound_path(listed[i]['name']))[0]
            fine = np.interp(np.arange(220_500) / 44_100, np.arange(80_000) / 16_000, pcm)
            soundfile.write(tmp_path / 'x.wav', 0.5 * fine, 44_100, subtype='PCM_16')
            found.append(build.measured_columns(tmp_path / 'x.wav'))
        which = rules.match_by_sound(listed, found)
        right, total = right + sum(order[j] == i for i, j in which.items()), total + len(order)
    assert total == 32 and right >= 30
