"""The released models: equal to what their authors' code computed, and their checkpoints can be read.

What the authors' code computed lies in the golden data beside the checkout; where that is missing, these
tests are skipped. A small model of each, filled by rule, is compared everywhere with numbers of its own,
`goldens/small_releases.json`, which `python tests/test_released.py` writes anew, and only from models that
equal their release."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avsrepro import cli
from avsrepro.analysis.by_rule import (
    fill_by_rule,
    of_sample,
    relative_difference,
    rule_features,
    rule_frames,
    rule_labels,
    rule_mel,
    rule_sample,
    rule_state,
)
from avsrepro.analysis.release import compare_with_release
from avsrepro.core.errors import InputError
from avsrepro.core.paths import find_shared
from avsrepro.models import create_model, from_pretrained
from avsrepro.models.base import noisy
from avsrepro.models.release_names import DERIVED, in_official_names, line_of, official_name, released_models
from avsrepro.models.released import convert, load_released, recognise
from avsrepro.nn.htsat import mel_filters
from avsrepro.train.steps import weighted_loss

EQUAL = 1e-4  # of the largest value; two programs of one formula differ by 1e-6 to 2e-5
SMALL_FILE = Path(__file__).parent / 'goldens' / 'small_releases.json'
TRUNK = dict(
    embed_dims=[16, 32, 40, 64], depths=[1, 2, 1, 1], num_heads=[1, 2, 5, 8], mlp_ratios=[2, 2, 2, 2]
)
EARS = dict(image=128, patch=8, window=4, width=32, depths=[1, 2, 1], heads=[2, 4, 8], drop_path=0.0)
PVT = dict(backbone='pvt_v2_b0', audio='vggish_small', backbone_options=TRUNK, spec='code')
SMALL = dict(
    tpavi=PVT | dict(name='tpavi', dim=16),
    avsegformer=PVT | dict(name='avsegformer', dim=32, queries=6, layers=2, heads=4, points=2),
    ddeseg=PVT
    | dict(name='ddeseg', backbone='mit_b0', audio='htsat', audio_options=EARS, memory_shape=[6, 1, 5])
    | dict(heads=4, hidden=64, head_dim=32),
    selm=PVT | dict(name='selm', dim=32, heads=4, image_size=64, doublings=2),
)
released = find_shared('goldens') and find_shared('goldens') / 'released'
needs_goldens = pytest.mark.skipif(
    not (released and released.is_dir()), reason='the golden data of the releases are not here'
)
CLASSES = pytest.mark.parametrize('classes', (1, 4))
every = pytest.mark.parametrize('name', released_models())


@needs_goldens
@every
def test_equals_the_release(name):
    table = compare_with_release(name)
    hits = table.kind == 'hit map'
    far = table[~hits & ~(table.difference <= EQUAL) | hits & (table.difference > 0)]
    assert not len(far), far.to_string()
    assert {'output', 'intermediate', 'loss'} <= set(table.kind)


def small(name, classes=1, **changes):
    torch.manual_seed(0)
    model = create_model(**SMALL[name] | dict(num_classes=classes) | changes).eval()
    own = in_official_names(name, model.state_dict())
    left = fill_by_rule(model, {k: v.shape for k, v in own.items()})
    assert all(n.startswith(('audio.', 'recall.')) for n in left), left
    return model


def small_numbers(name, classes):
    "What a small model computes for two clips of two frames: samples of all taps and of the logits, losses."
    model = small(name, classes)
    frames, sounds = rule_frames(1, 4, 64).unflatten(0, (2, 2)), rule_features(1, 4, model.audio.dim)
    model.encode_sound = lambda mel: (sounds, sounds[..., None, None])
    silence = torch.zeros(2, 2, 1, *model.audio.input_size)
    with torch.inference_mode(), noisy(model, None), model.taps() as taps:
        out = model(frames, silence)
    found = taps | dict(logits=out.logits)
    target = rule_labels(1, 4, 64, max(classes, 2)).unflatten(0, (2, 2))
    with torch.inference_mode():
        terms = weighted_loss(model, out, target, torch.ones(2, 2, dtype=torch.bool), model.loss)
    samples = {k: np.concatenate(rule_sample(x, 8)).tolist() for k, x in found.items()}
    return dict(samples=samples, losses={k: v.item() for k, v in terms.items()})


@CLASSES
@every
def test_small_model_keeps_its_numbers(name, classes):
    stored, found = json.loads(SMALL_FILE.read_text())[f'{name} {classes}'], small_numbers(name, classes)
    assert stored['samples'].keys() == found['samples'].keys()
    for k, expected in stored['samples'].items():
        assert relative_difference(found['samples'][k], expected) < EQUAL, k
    for k, expected in stored['losses'].items():
        assert abs(found['losses'][k] - expected) < EQUAL * max(abs(expected), 0.1), k


@every
def test_every_weight_has_one_place(name):
    model = small(name)
    own = model.state_dict()
    state = in_official_names(name, own)
    used = [n for official in state for n in line_of(name, official)[1]]
    assert len(used) == len(set(used))
    kept_out = ('recall.',) + (('audio.',) if name in ('tpavi', 'selm') else ())
    assert set(used) == {n for n in own if not n.endswith(DERIVED) and not n.startswith(kept_out)}
    assert all(official_name(name, line_of(name, o)[1][0]) == o for o in state if 'proj.vis.' not in o)


@pytest.mark.parametrize('wrap', ('plain', 'data parallel', 'training script'))
@every
def test_checkpoint_is_read(name, wrap, tmp_path):
    one, two, file = small(name), create_model(**SMALL[name]).eval(), tmp_path / 'checkpoint.pth'
    state = in_official_names(name, one.state_dict())
    if wrap != 'plain':
        state = {f'module.{k}': v for k, v in state.items()}
    if wrap == 'training script':
        state = dict(model=state, epoch=7, args=argparse.Namespace(lr=0.1))
    torch.save(state, file)
    release = load_released(file, two)
    assert (release.model, release.classes) == (name, 1)
    if not release.hears:
        two.audio.load_state_dict(one.audio.state_dict())
    if name == 'ddeseg':
        two.recall.load_state_dict(one.recall.state_dict())
    frames, mel = rule_frames(2, 2, 64)[None], rule_mel(2, 2)[None]
    if name == 'ddeseg':
        mel = torch.zeros(1, 2, 1, *one.audio.input_size)
    with torch.inference_mode(), noisy(one, None), noisy(two, None):
        torch.testing.assert_close(two(frames, mel).logits, one(frames, mel).logits)


@pytest.mark.parametrize('name', ('tpavi', 'avsegformer', 'selm'))
def test_resnet_has_places_and_a_branch_without(name):
    for official_part, ours in (
        ('conv1.weight', 'conv1.weight'),
        ('bn1.bias', 'bn1.bias'),
        ('layer2.3.conv2.weight', 'layer2.3.conv2.weight'),
        ('layer3_1.0.downsample.0.weight', 'layer3.0.downsample.0.weight'),
        ('layer4_1.2.bn3.weight', 'layer4.2.bn3.weight'),
    ):
        assert line_of(name, f'resnet.{official_part}')[1] == (f'visual.net.{ours}',)
    assert line_of(name, 'resnet.layer4_2.0.conv1.weight')[0].change == 'unused'


def test_other_mel_filters_are_refused(tmp_path):
    state, key = (
        in_official_names('ddeseg', small('ddeseg').state_dict()),
        'audio_model.logmel_extractor.melW',
    )
    model, file = create_model(**SMALL['ddeseg']), tmp_path / 'x.pth'
    torch.save(state | {key: mel_filters(*model.audio.front_end.bands)}, file)
    load_released(file, model)
    torch.save(state | {key: torch.rand(513, 64)}, file)
    with pytest.raises(InputError, match='other mel filters'):
        load_released(file, model)


MISFITS = dict(
    missing=lambda s: {k: v for k, v in s.items() if 'lateral_conv' not in k},
    left_over=lambda s: s | {'head.extra.weight': torch.zeros(2)},
    misshapen=lambda s: s | {'head.level_embed': torch.zeros(4, 32)},
    another=lambda s: {'fc.weight': torch.zeros(2, 2)},
    empty=lambda s: {},
)


@pytest.mark.parametrize('misfit', MISFITS)
def test_misfit_is_one_sentence(misfit, tmp_path):
    state, file = in_official_names('avsegformer', small('avsegformer').state_dict()), tmp_path / 'x.pth'
    torch.save(MISFITS[misfit](state), file)
    with pytest.raises(InputError) as caught:
        load_released(file, create_model(**SMALL['avsegformer']))
    assert str(file) in str(caught.value) and '\n' not in str(caught.value)


SAID = dict(
    tpavi='tpavi on pvt_v2_b5, binary masks, without an audio encoder',
    avsegformer='avsegformer on pvt_v2_b5, binary masks, with vggish',
    ddeseg='ddeseg on mit_b5, 71 classes, with htsat',
    selm='selm on resnet50, binary masks, frames of 224 x 224, without an audio encoder',
)


def official(name):
    "Names and shapes of a released checkpoint, by its stored description."
    stems = dict(tpavi='tpavi_binary_pvt_v2_b5', avsegformer='avsegformer_binary_pvt_v2_b5')
    stem = stems.get(name) or dict(ddeseg='ddeseg_mit_b5', selm='selm_s4_r50')[name]
    return json.loads((released / f'{stem}.json').read_text()), dict(np.load(released / f'{stem}.npz'))


@needs_goldens
def test_official_checkpoint_to_a_folder_and_back(tmp_path):
    about, stored = official('avsegformer')
    file, folder = tmp_path / 'S4_pvt.pth', tmp_path / 'model'
    torch.save(rule_state(about['state']), file)
    assert str(convert(file, folder, 's4', 'avsegformer')) == SAID['avsegformer']
    file.unlink()
    config = json.loads((folder / 'config.json').read_text())
    assert config['record']['frames'] == [512, 512]
    frames, mel = rule_frames(200, 5, 224)[None], rule_mel(200, 5)[None]
    with torch.inference_mode():
        z = from_pretrained(folder)(frames, mel).logits[0]
    assert relative_difference(z[..., ::8, ::8].numpy(), stored['S224/logits_stride8']) < EQUAL
    assert of_sample(z, stored['S224/logits|stat'], stored['S224/logits|part']) < EQUAL


@needs_goldens
@every
def test_release_says_what_it_is_and_loads_whole(name):
    about, _ = official(name)
    state = rule_state(about['state'])
    release = recognise(state)
    assert str(release) == SAID[name]
    with torch.device('meta'):
        options = dict(release.options)
        model = create_model(
            name, release.backbone, release.audio, spec='code', num_classes=release.classes, **options
        )
    places = [n for k in state for n in line_of(name, k)[1]]
    own = {n: x for n, x in model.state_dict().items() if not n.endswith(DERIVED)}
    left = {n for n in own if n not in places and not n.startswith(('audio.', 'recall.'))}
    assert not left and set(places) <= own.keys()
    buffers = {n for n, _ in model.named_buffers()}
    ours = sum(x.numel() for n, x in own.items() if n in places and n not in buffers)
    theirs = {k: v.numel() for k, v in state.items() if not k.endswith(('running_mean', 'running_var'))}
    unused = [n for k, n in theirs.items() if line_of(name, k)[0].change == 'unused']
    assert sum(theirs.values()) - sum(unused) == ours  # to the unit
    if release.backbone == 'resnet50':
        assert sum(unused) == 22_063_104  # a second branch that nothing reads


def says(capsys, monkeypatch, *args):
    "What `avsrepro convert` says on the error stream, ended with exit code 2."
    monkeypatch.setattr(sys, 'argv', ['avsrepro', 'convert', *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.strip()


def test_convert_refuses_in_one_line(capsys, monkeypatch, tmp_path):
    file, out = tmp_path / 'x.pth', tmp_path / 'model'
    torch.save(in_official_names('tpavi', small('tpavi').state_dict()), file)
    (tmp_path / 'there').mkdir()
    for args, words in (
        ((tmp_path / 'no.pth', out, '--setting', 's4'), 'no such weights file'),
        ((file, tmp_path / 'there', '--setting', 's4'), 'exists already'),
        ((file, out, '--setting', 's5'), "unknown setting 's5'"),
        ((file, out, '--setting', 'avss'), 'avss has 71 class(es)'),
        ((file, out, '--setting', 's4', '--model', 'selm'), 'not selm'),
        ((file, out, '--setting', 's4'), 'give the weights of vggish'),
    ):
        said = says(capsys, monkeypatch, *args)
        assert words in said and '\n' not in said, said
    assert not out.exists()


if __name__ == '__main__':
    for model_name in released_models():
        table = compare_with_release(model_name)
        assert table is not None and table.difference.max() <= EQUAL, model_name
    numbers = {f'{m} {k}': small_numbers(m, k) for m in released_models() for k in (1, 4)}
    SMALL_FILE.write_text(json.dumps(numbers, indent=0) + '\n')
