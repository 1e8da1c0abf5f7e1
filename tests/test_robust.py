"Negatives of AVSBench-Robust and their scores: what is made, refused, and what can be computed by hand."

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from avsrepro.core.errors import InputError
from avsrepro.core.paths import find_shared
from avsrepro.data.assets import open_bank
from avsrepro.data.audio import log_mel
from avsrepro.data.clips import Clip, metadata_row, open_dataset, write_clip
from avsrepro.data.derived import MEL_FRONT_ENDS, Positives, front_end_mel
from avsrepro.data.layouts import VOID, write_metadata
from avsrepro.data.mixture import Mixture, mixture_counts
from avsrepro.data.negatives import (
    NEGATIVE_KINDS,
    BankSounds,
    Negatives,
    StoredNegatives,
    WithOffscreen,
    stored_files,
    write_negatives,
)
from avsrepro.data.offscreen import AVOID, broad_group, offscreen_pairs, scenes_of
from avsrepro.metrics.robust import RobustScorer, ceilings, floor_f, global_scores

S4 = ['dog_barking', 'playing_violin', 'race_car', 'female_singing', 'dog_barking', 'lawn_mowing']
MS3 = ['dog_man', 'piano', 'gun_bird', 'violin', 'cat', 'keyboard']


def clip_of(i, setting, category, split='test', T=5):
    wave = 0.3 * torch.sin(torch.arange(T * 16_000) * (0.05 + 0.02 * i))[None]
    target = torch.zeros(T, 16, 16, dtype=torch.int64)
    target[:, :4] = 1
    return Clip(
        torch.full((T, 3, 16, 16), 20 * i, dtype=torch.uint8),
        wave,
        log_mel(wave[0], max_examples=T),
        target,
        torch.ones(T, dtype=torch.bool),
        info=dict(id=f'clip{i}', setting=setting, split=split, category=category, source='x'),
    )


def make(root, setting, categories, split='test'):
    "A split on disk, as the release has it; MS3 with the table of AVSS that names its objects."
    clips = [clip_of(i, setting, c, split) for i, c in enumerate(categories)]
    for clip in clips:
        write_clip(root, setting, clip)
    write_metadata(root, setting, [metadata_row(setting, c) for c in clips])
    if setting == 'ms3':
        rows = [f'{c.info["id"]},uid{i},0,5,{c.info["category"]},{split},v1m' for i, c in enumerate(clips)]
        (root / 'metadata.csv').write_text('vid,uid,s_min,s_max,a_obj,split,label\n' + '\n'.join(rows))
    return open_dataset(root, setting, split)


@pytest.fixture(params=['s4', 'ms3'])
def clips(request, tmp_path):
    return make(tmp_path, request.param, S4 if request.param == 's4' else MS3)


def refused(action, *words):
    "One line that holds `words`."
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message, message
    for word in words:
        assert word in message, message


class Memory(list):
    "Clips that are not on disk."

    @property
    def ids(self):
        return [c.info['id'] for c in self]


# what is made


@pytest.mark.parametrize('front_end', MEL_FRONT_ENDS)
@pytest.mark.parametrize('kind', NEGATIVE_KINDS[:3])
def test_negatives_change_the_sound_only(clips, kind, front_end):
    made, training = Negatives(clips, kind, front_end), Negatives(clips, kind, front_end, empty=True)
    assert made.ids == clips.ids and len(made) == len(clips)
    for i, (new, old) in enumerate(zip(made, clips)):
        assert (
            torch.equal(new.frames, old.frames)
            and torch.equal(new.target, old.target)
            and training[i].target.eq(0).all()
        )
        assert (
            new.mel.shape == old.mel.shape
            and not torch.equal(new.mel, old.mel)
            and not torch.equal(new.audio, old.audio)
        )
        assert new.info['id'] == old.info['id'] and new.info['negative'] and new.info['condition'] == kind
        assert new.mel[:, :, 44:].eq(0).all() == (front_end == 'release')
    assert torch.equal(made[2].mel, Negatives(clips, kind, front_end)[2].mel)


def test_silence():
    clips = Memory([clip_of(0, 's4', 'dog_barking')])
    assert Negatives(clips, 'silence')[0].mel.eq(math.log(0.01)).all()
    mel = Negatives(clips, 'silence', 'release')[0].mel
    assert mel[:, :, :44].eq(-100).all() and mel[:, :, 44:].eq(0).all()


@pytest.mark.parametrize('T', [1, 10])
def test_other_lengths(T):
    clips = Memory([clip_of(0, 's4', 'dog_barking', T=T), clip_of(1, 's4', 'race_car', T=T)])
    for made in (
        *(Negatives(clips, k, f) for k in NEGATIVE_KINDS[:3] for f in MEL_FRONT_ENDS),
        Positives(clips),
        WithOffscreen(clips),
    ):
        assert made[0].mel.shape == (T, 1, 96, 64) and made[0].mel.isfinite().all()


def test_void_stays_without_ground_truth():
    clip = clip_of(0, 's4', 'dog_barking')
    clip = replace(clip, supervised=torch.arange(5) == 0)
    target = Negatives(Memory([clip]), 'silence', empty=True)[0].target
    assert target[0].eq(0).all() and target[1:].eq(VOID).all()


def test_pairs_keep_groups_apart(clips):
    pairs, fell = offscreen_pairs(scenes_of(clips), clips.ids, clips.setting)
    names = S4 if clips.setting == 's4' else MS3
    groups = [{broad_group(c) for c in ([n] if clips.setting == 's4' else n.split('_'))} for n in names]
    assert [n for n, f in zip(names, fell) if f] == (
        [] if clips.setting == 's4' else ['gun_bird']
    )  # device and animal avoid music and human
    for mine, j, fallen in zip(groups, pairs, fell):
        assert fallen or not groups[j] & (mine | {AVOID[clips.setting][g] for g in mine})


def test_what_is_seen_is_not_heard():
    pool = BankSounds(open_bank('procedural'), 'ms3', 'test', each=1)
    clip = clip_of(0, 'ms3', 'dog')
    clip.info |= dict(
        objects=['dog', *(k.name for k in pool.bank.labels if k.broad != 'animal' and k.name != 'saw')],
        on=[[1] * 5] + [[0] * 5] * 11,
    )
    made = Negatives(Memory([clip]), 'offscreen', pool=pool)
    assert made[0].info['sound'] == 'saw_0' and not made.source.fallbacks


def test_mixture(clips):
    assert mixture_counts(3452) == dict(positive=6213, offscreen=345, silence=346)
    assert mixture_counts(296) == dict(positive=532, offscreen=29, silence=31)
    for ratio in (0, 0.1, 0.25, 0.5, 1):
        mixture = Mixture(clips, ratio)
        assert (
            Counter(mixture.conditions) == {k: v for k, v in mixture_counts(6, ratio).items() if v}
            and len(set(mixture.ids)) == len(mixture) == 12
        )
        positives = {i for c, i in mixture.plan if c == 'positive'}
        assert ratio > 0.5 or positives == set(range(6))
        for item, c in zip(mixture, mixture.conditions):
            assert item.info['negative'] == (c != 'positive') == (not item.target.any())
        assert [item.info['id'] for item in mixture] == mixture.ids


def test_features_of_a_mixture_are_those_of_its_clips(clips, tmp_path):
    from avsrepro.models import create_model
    from avsrepro.nn.clips import encode_clips
    from avsrepro.nn.features import FeatureCache

    model, cache = (
        create_model(
            'sdavs',
            backbone='test_resnet',
            audio='vggish_small',
            dim=16,
            levels=3,
            tokens=4,
            frozen=('audio', 'visual'),
        ),
        FeatureCache(tmp_path / 'cache'),
    )
    args = model.visual, model.audio
    mixture = Mixture(clips, 0.5)
    plain, mixed = (encode_clips(*args, c, cache, progress=False).stats for c in (clips, mixture))
    others = {mixture.negatives['offscreen'].source.pairs[k] for c, k in mixture.plan if c == 'offscreen'}
    assert mixed['unique_frames'] == plain['unique_frames'] and mixed['unique_sounds'] == plain[
        'unique_sounds'
    ] + 1 + 5 * len(others)  # silence, and what is heard from elsewhere
    assert mixed['misses'] == 1


def test_stored_layout(clips):
    write_negatives(clips)
    for kind in NEGATIVE_KINDS[:3]:
        read, made = StoredNegatives(clips, kind), Negatives(clips, kind, 'release')
        for a, b in zip(read, made):
            torch.testing.assert_close(a.mel, b.mel)
        torch.testing.assert_close(
            StoredNegatives(clips, kind, 'matched')[3].mel, front_end_mel(made[3].audio, 5), atol=1e-3, rtol=0
        )
    assert StoredNegatives(clips, 'noise', empty=True)[0].target.eq(0).all()
    data = clips.raw_paths(0).audio
    data = next(p for p in data.parents if p.name.endswith('_data'))
    assert {p.name for p in data.iterdir()} >= {
        'silent.wav',
        'silent.pkl',
        *(f'audio_{w}_{k}' for w in ('wav', 'log_mel') for k in ('misaligned', 'noise')),
    }


def test_unseen_categories():
    root = find_shared('voc_esc')
    if root is None:
        pytest.skip('VOC x ESC is not here')
    clips = Memory([clip_of(i, 's4', c) for i, c in enumerate(['bird', 'dog'])])
    rooster = Negatives(clips, 'unseen', category='rooster', root=root)
    assert (
        rooster.ids == ['clip1']
        and rooster[0].info['id'] == 'clip1'
        and 0.05 < rooster[0].audio.square().mean().sqrt() < 0.2
    )
    assert len(Negatives(clips, 'unseen', 'release', category='release/thunderstorm', root=root)) == 2
    refused(lambda: Negatives(clips, 'unseen', category='roster', root=root), 'roster', 'rooster')
    refused(lambda: Negatives(Memory(clips[:1]), 'unseen', category='rooster', root=root), 'every clip shows')


# what is refused


def test_an_empty_pool(tmp_path):
    clips = make(
        tmp_path, 's4', ['dog_barking', 'dog_barking', 'male_speech']
    )  # a voice is the avoided partner of an animal
    refused(lambda: Negatives(clips, 'offscreen'), 'clip0', 'pool is empty', 'animal')
    assert len(Negatives(clips, 'offscreen', fallback=True).source.fallbacks) == 2
    refused(lambda: Mixture(clips, 0.1, items=60), 'pool is empty')


def test_a_category_without_a_group(tmp_path):
    clips = make(tmp_path, 's4', ['playing_sitar', 'dog_barking'])
    refused(lambda: Negatives(clips, 'offscreen'), 'clip0', 'playing_sitar', 'no broad group')
    assert Negatives(clips, 'offscreen', groups={'playing_sitar': 'music'}).source.pairs == [1, 0]
    refused(
        lambda: Negatives(clips, 'offscreen', groups={'playing_sitar': 'strings'}),
        'strings',
        'music, human, animal, device',
    )


@pytest.mark.parametrize('ratio', [-0.1, 1.1, 10, float('nan'), '10%'])
def test_a_ratio_outside_0_1(ratio):
    refused(lambda: mixture_counts(10, ratio), 'ratio', 'from 0 to 1')


def test_ms3_without_names_of_objects(tmp_path):
    clips = make(tmp_path, 'ms3', MS3)
    (tmp_path / 'metadata.csv').unlink()
    assert len(Negatives(clips, 'noise')) == 6
    refused(lambda: Negatives(clips, 'offscreen'), 'metadata.csv', 'clip0')


@pytest.mark.parametrize('which', [0, 1])
def test_a_folder_of_the_wrong_clip_count(clips, which):
    write_negatives(clips)
    path = stored_files(clips, 2, 'noise')[which]
    data = path.read_bytes()
    path.unlink()
    refused(lambda: StoredNegatives(clips, 'noise'), 'test: holds 5', path.suffix, 'expected 6')
    path.write_bytes(data)
    path.with_name('more' + path.suffix).write_bytes(data)
    refused(lambda: StoredNegatives(clips, 'noise'), 'test: holds 7')


def test_missing_negatives(clips):
    refused(lambda: StoredNegatives(clips, 'offscreen'), 'audio_wav_misaligned', 'holds 0')
    refused(lambda: StoredNegatives(clips, 'silence'), 'silent.wav', 'not found')


def test_misspelt_words(clips):
    refused(lambda: Negatives(clips, 'silent'), 'silent', 'silence')
    refused(lambda: Negatives(clips, 'noise', 'released'), 'released', 'release')
    refused(lambda: Negatives(clips, 'noise', noise='pink'), 'pink')
    refused(lambda: RobustScorer('legacy'), 'legacy', 'robust-legacy')


# scores


def test_an_always_empty_model():
    share = 3 / 16
    target = torch.zeros(1, 5, 4, 4, dtype=torch.long)
    target.view(1, 5, 16)[..., :3] = 1
    scores = {}
    for protocol in ('robust-legacy', 'robust-fixed'):
        scorer = RobustScorer(protocol)
        scorer.update(torch.full(target.shape, -9.0), target, ['a'])
        scores[protocol] = scorer.scores()
    assert (
        math.isclose(scores['robust-legacy']['F'], 1.3 * share / (0.3 * share + 1), rel_tol=1e-6)
        and scores['robust-legacy']['J'] == 0
    )
    assert math.isclose(floor_f(share), 1.3 * share / (0.3 * share + 1))
    assert scores['robust-fixed']['F'] == scores['robust-fixed']['rejected'] == 1 and math.isclose(
        scores['robust-fixed']['J'], 1, rel_tol=1e-6
    )
    assert all(s['fpr'] == 0 and math.isclose(s['area'], share) for s in scores.values())


def test_ceilings():
    s4, ms3 = ceilings(6 / 3700, 0.226), ceilings(29 / 320, 0.170)
    assert [round(c[g], 3) for c in (s4, ms3) for g in ('G-mIoU', 'G-F')] == [0.999, 0.873, 0.953, 0.907]


def test_a_printed_row():
    "AVSBench + Ours on S4, Table 8, lambda = 0.8: three equal negatives."
    G = global_scores(dict(J=0.7897, F=0.8878), {c: dict(J=0.0016, F=0.2260, fpr=0.0) for c in 'abc'})
    assert abs(100 * G['G-mIoU'] - 88.18) < 0.01 and abs(100 * G['G-F'] - 82.70) < 0.01 and G['G-FPR'] == 0


def test_conditions_count_alike():
    G = global_scores(
        dict(J=0.5, F=0.5), dict(a=dict(J=0.2, F=0.1, fpr=0.3), b=dict(J=0.6, F=0.5, fpr=0.1)), 'robust-fixed'
    )
    assert (
        math.isclose(G['G-mIoU'], 2 * 0.5 * 0.4 / 0.9)
        and math.isclose(G['G-F'], 2 * 0.5 * 0.3 / 0.8)
        and math.isclose(G['G-FPR'], 0.2)
    )
    assert global_scores(dict(J=0.0, F=0.0), dict(a=dict(J=1.0, F=1.0, fpr=1.0)))['G-F'] == 0


def test_batches_do_not_matter_but_for_f():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 5, 8, 8, generator=g), (torch.rand(4, 5, 8, 8, generator=g) < 0.3).long()
    y[0, 0], y[1, :, 0] = 0, VOID
    for protocol in ('robust-legacy', 'robust-fixed'):
        one, two = RobustScorer(protocol), RobustScorer(protocol)
        one.update(x, y, list('abcd'))
        for i in (0, 2):
            two.update(x[i : i + 2], y[i : i + 2], list('abcd')[i : i + 2])
        assert one.per_clip() == two.per_clip() and one.scores() == two.scores()
        assert (
            abs(
                one.scores()['fpr']
                - torch.where(y == VOID, torch.nan, (x > 0).float()).nanmean((-2, -1)).mean()
            )
            < 1e-6
        )
