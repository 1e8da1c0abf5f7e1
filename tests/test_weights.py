"""Published weights: what is read, what is refused, official names, where files are found, and the command.

The official names are written down here once more, from the authors' definitions of their networks."""

import argparse
import gzip
import importlib.util
import io
import json
import math
import pickle
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from blank_weights import blank_file, blank_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from avsrepro.core.errors import InputError
from avsrepro.core.paths import find_shared, repo_root
from avsrepro.experiments.profiles import built_in
from avsrepro.nn.backbones import create_audio_backbone, create_backbone, encoder_shapes, encoder_state
from avsrepro.nn.weight_files import read_weights
from avsrepro.nn.weights import catalogue, digest_of, find_weights, get_weights, keep_weights

goldens = find_shared('goldens')
real = find_shared('weights')


def sentence(f, *args, **kw):
    with pytest.raises(InputError) as e:
        f(*args, **kw)
    said = str(e.value)
    assert '\n' not in said and said
    return said


# what is read

STATE = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2)}


def below(prefix):
    return {prefix + k: v for k, v in STATE.items()}


class Foreign:
    "An object of a class that no reader of weights knows."

    def __init__(self):
        self.value = 1


class ForeignDict(dict):
    "The same, as options of training scripts often are."


OPTIONS = ForeignDict(lr=0.1)
OPTIONS.frozen = True
LIGHTNING = {
    'epoch': 3,
    'global_step': 100,
    'pytorch-lightning_version': '1.5.9',
    'callbacks': {Foreign: {'best_model_score': torch.tensor(0.4)}, 'other': Foreign()},
    'optimizer_states': [
        {'state': {0: {'step': 3, 'exp_avg': torch.zeros(2)}}, 'param_groups': [{'lr': 0.1}]}
    ],
    'lr_schedulers': [],
    'hyper_parameters': OPTIONS,
}
READ = {
    'plain': STATE,
    'parallel': below('module.'),
    'compiled in parallel': below('module._orig_mod.'),
    'state_dict': dict(state_dict=STATE, epoch=1),
    'model_state_dict': dict(model_state_dict=below('module.'), optimizer_state_dict=dict(lr=torch.ones(1))),
    'model': dict(model=STATE, args=argparse.Namespace(lr=0.1, out=None), epoch=np.int64(3)),
    'net': dict(net=STATE, acc=np.float64(81.2), curve=np.zeros(3), mean=np.float32(1)),
    'encoder': dict(encoder=STATE),
    'encoder.': below('encoder.'),
    'twice': dict(model=dict(state_dict=below('model.'))),
    'lightning': dict(LIGHTNING, state_dict=below('model.')),
    'lightning of HTS-AT': dict(LIGHTNING, state_dict=below('sed_model.')),
    'parameters': dict(
        state_dict=nn.ParameterDict({'x': nn.Parameter(torch.ones(1))}).state_dict(), extra=Foreign()
    ),
}


@pytest.mark.parametrize('old', (False, True), ids=('zip', 'pickle'))
@pytest.mark.parametrize('name', READ)
def test_wrappers_come_off(name, old, tmp_path):
    path = tmp_path / 'file.ckpt'
    torch.save(READ[name], path, _use_new_zipfile_serialization=not old)
    state = read_weights(path)
    expected = dict(x=torch.ones(1)) if name == 'parameters' else STATE
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], v) and not state[k].requires_grad for k, v in expected.items())


def test_content_counts_not_the_name(tmp_path, monkeypatch):
    save_file(STATE, tmp_path / 'a.pth')
    torch.save(STATE, tmp_path / 'b.safetensors')
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in ('~/a.pth', '~/b.safetensors'):
        assert torch.equal(read_weights(path)['a.weight'], STATE['a.weight'])


class Writes:
    "What a malicious file would do: call something when it is read."

    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def test_nothing_is_executed(tmp_path):
    import os

    made = tmp_path / 'made'
    torch.save(dict(state_dict=STATE, x=Writes(open, str(made), 'w')), tmp_path / 'open.pth')
    assert read_weights(tmp_path / 'open.pth').keys() == STATE.keys()
    torch.save(dict(state_dict=STATE, x=Writes(os.mkdir, str(made))), tmp_path / 'os.pth')
    assert 'other things than weights' in sentence(read_weights, tmp_path / 'os.pth')
    torch.save(Writes(open, str(made), 'w'), tmp_path / 'alone.pth')
    assert 'pickled model' in sentence(read_weights, tmp_path / 'alone.pth')
    assert not made.exists()


# what is refused


def saved(x, **kw):
    out = io.BytesIO()
    torch.save(x, out, **kw)
    return out.getvalue()


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        z.writestr('masks/0.png', b'')
    return out.getvalue()


def tarred(mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        t.addfile(tarfile.TarInfo('a.pth'))
    return out.getvalue()


def scripted():
    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), out)
    return out.getvalue()


BIG = dict(a=torch.randn(1000))
AGAIN = 'download it again'
OLD = dict(_use_new_zipfile_serialization=False)
REFUSED = {
    'empty.pth': (b'', 'is empty'),
    'page.pth': (b'\n<!doctype html><title>Sign in</title>', 'is a web page, not weights: download it again'),
    'error.pth': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'is a web page'),
    'pointer.pth': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n',
        'is a git-lfs pointer',
    ),
    'pointer.safetensors': (b'version https://git-lfs.github.com/spec/v1\n', 'is a git-lfs pointer'),
    'text.pth': (b'Entry not found', 'is no file of weights'),
    'other.zip': (zipped(), 'is a zip archive of something else (masks/0.png)'),
    'a.tar': (tarred('w'), 'is an archive'),
    'a.tar.gz': (tarred('w:gz'), 'is an archive'),
    'a.pth.gz': (gzip.compress(saved(BIG)), 'is an archive'),
    'script.pt': (scripted(), 'is a TorchScript program'),
    'model.pth': (saved(nn.Linear(2, 2)), 'is a pickled model, not a state dict'),
    'old_model.pth': (saved(nn.Linear(2, 2), **OLD), 'is a pickled model, not a state dict'),
    'model_inside.pth': (saved(dict(model=nn.Linear(2, 2), epoch=1)), 'is a pickled model, not a state dict'),
    'arrays.pkl': (pickle.dumps(dict(a=np.zeros(2))), 'other things than weights, or is damaged'),
    'list.pth': (saved([torch.ones(1)]), 'holds a list'),
    'no_weights.pth': (saved(dict(epoch=3)), 'expected a state dict, or one under'),
    'nothing.pth': (saved({}), 'found nothing'),
    'mixed.pth': (saved(dict(a=torch.ones(1), b='x')), "'b' is none"),
    'nan.pth': (saved(dict(a=torch.tensor([float('nan')]))), "'a' has numbers that are not finite"),
    'inf.safetensors': (None, "'a' has numbers that are not finite"),
    'half.pth': (saved(BIG)[:2000], 'is not complete'),
    'head.pth': (saved(BIG)[:40], 'is not complete'),
    'tail.pth': (saved(BIG)[:-1], 'is not complete'),
    'half_old.pth': (saved(BIG, **OLD)[:2000], 'is not complete'),
    'head_old.pth': (saved(BIG, **OLD)[:20], 'is not complete'),
    'header.safetensors': (b'\x10\0\0\0\0\0\0\0{"a": [1, 2, 3]}', 'its header cannot be read'),
    'length.safetensors': (b'\xff' * 64, 'its header cannot be read'),
    'short.safetensors': (b'\x10', 'its header cannot be read'),
    'half.safetensors': (None, AGAIN),
    'more.safetensors': (None, AGAIN),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_one_sentence(name, tmp_path):
    content, words = REFUSED[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    else:
        save_file(dict(a=torch.full((1000,), float('inf') if 'inf' in name else 1.0)), path)
        whole = path.read_bytes()
        path.write_bytes(dict(half=whole[:-7], more=whole + b'\0').get(path.stem, whole))
    said = sentence(read_weights, path)
    assert said.startswith(str(path)) and words in said, said
    for foreign in ('weights_only', 'Error', 'pickle.', 'Traceback', 'central directory', 'safe_open'):
        assert foreign not in said, said


def test_what_is_no_file(tmp_path):
    assert 'no such weights file' in sentence(read_weights, tmp_path / 'none.pth')
    assert 'is a folder' in sentence(read_weights, tmp_path)


# official names


def layers(**shapes):
    "Weight and bias of layers, by the shapes of their weights."
    out = {}
    for name, shape in shapes.items():
        out |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    return out


def of_pvt(depths, dims, ratios=(8, 8, 4, 4), classes=1000):
    "PVT-v2 and MiT as published."
    s, before = {}, 3
    for i, (depth, C, wide, sr) in enumerate(zip(depths, dims, ratios, (8, 4, 2, 1)), 1):
        k = 7 if i == 1 else 3
        s |= layers(
            **{f'patch_embed{i}.proj': (C, before, k, k), f'patch_embed{i}.norm': (C,), f'norm{i}': (C,)}
        )
        for j in range(depth):
            parts = {
                'norm1': (C,),
                'norm2': (C,),
                'attn.q': (C, C),
                'attn.kv': (2 * C, C),
                'attn.proj': (C, C),
            }
            parts |= {'attn.sr': (C, C, sr, sr), 'attn.norm': (C,)} if sr > 1 else {}
            parts |= {'mlp.fc1': (wide * C, C), 'mlp.fc2': (C, wide * C)}
            parts |= {'mlp.dwconv.dwconv': (wide * C, 1, 3, 3)}
            s |= layers(**{f'block{i}.{j}.{part}': shape for part, shape in parts.items()})
        before = C
    return s | layers(head=(classes, before))


def of_swin(size, C, depths, heads, window, classes=1000):
    "Swin as Microsoft published it: buffers beside the weights, merging at the end of a stage."
    s = layers(**{'patch_embed.proj': (C, 3, 4, 4), 'patch_embed.norm': (C,)})
    for i, (depth, M) in enumerate(zip(depths, heads)):
        D, side = C * 2**i, size // 4 // 2**i
        for j in range(depth):
            b = f'layers.{i}.blocks.{j}'
            parts = dict(norm1=(D,), norm2=(D,)) | {'attn.qkv': (3 * D, D), 'attn.proj': (D, D)}
            parts |= {'mlp.fc1': (4 * D, D), 'mlp.fc2': (D, 4 * D)}
            s |= layers(**{f'{b}.{part}': shape for part, shape in parts.items()})
            s[f'{b}.attn.relative_position_bias_table'] = ((2 * window - 1) ** 2, M)
            s[f'{b}.attn.relative_position_index'] = (window**2, window**2)
            if j % 2 and side > window:
                s[f'{b}.attn_mask'] = ((side // window) ** 2, window**2, window**2)
        if i < len(depths) - 1:
            s[f'layers.{i}.downsample.reduction.weight'] = (2 * D, 4 * D)
            s |= layers(**{f'layers.{i}.downsample.norm': (4 * D,)})
    return s | layers(norm=(D,), head=(classes, D))


def of_resnet50():
    "torchvision's ResNet-50."

    def norm(name, C):
        return layers(**{name: (C,)}) | {
            f'{name}.running_mean': (C,),
            f'{name}.running_var': (C,),
            f'{name}.num_batches_tracked': (),
        }

    s, before = {'conv1.weight': (64, 3, 7, 7)} | norm('bn1', 64), 64
    for i, (depth, C) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512)), 1):
        for j in range(depth):
            b = f'layer{i}.{j}'
            for k, shape in enumerate(((C, before, 1, 1), (C, C, 3, 3), (4 * C, C, 1, 1)), 1):
                s |= {f'{b}.conv{k}.weight': shape} | norm(f'{b}.bn{k}', shape[0])
            if j == 0:
                s |= {f'{b}.downsample.0.weight': (4 * C, before, 1, 1)} | norm(f'{b}.downsample.1', 4 * C)
            before = 4 * C
    return s | layers(fc=(1000, 2048))


def of_vggish():
    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    s = layers(**{f'features.{i}': (*shape, 3, 3) for i, shape in convolutions.items()})
    return s | layers(
        **{'embeddings.0': (4096, 12288), 'embeddings.2': (4096, 4096), 'embeddings.4': (128, 4096)}
    )


B5 = dict(depths=(3, 6, 40, 3), dims=(64, 128, 320, 512), ratios=(4, 4, 4, 4))
B0 = dict(depths=(2, 2, 2, 2), dims=(32, 64, 160, 256))
SWIN_B = dict(size=384, C=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12)
OFFICIAL = {
    'pvt_v2_b5': lambda: of_pvt(**B5),
    'pvt_v2_b0': lambda: of_pvt(**B0),
    'mit_b5': lambda: of_pvt(**B5),
    'mit_b0': lambda: of_pvt(**B0, ratios=(4, 4, 4, 4)),
    'swin_base_patch4_window12_384': lambda: of_swin(**SWIN_B, classes=21841),
    'resnet50': of_resnet50,
    'vggish': of_vggish,
}


@pytest.mark.parametrize('encoder', OFFICIAL)
def test_official_file_of_full_size(encoder, tmp_path):
    "Names and shapes of the whole published file are those of the network, no more and no fewer."
    path = blank_file(tmp_path / 'official.pth', OFFICIAL[encoder]())
    found = {k: tuple(v.shape) for k, v in encoder_state(encoder, path).items()}
    assert found == encoder_shapes(encoder)


HUB = {
    'norm1': 'layer_norm_1',
    'norm2': 'layer_norm_2',
    'attn.q': 'attention.self.query',
    'attn.kv': 'attention.self.{}',
    'attn.proj': 'attention.output.dense',
    'attn.sr': 'attention.self.sr',
    'attn.norm': 'attention.self.layer_norm',
    'mlp.fc1': 'mlp.dense1',
    'mlp.fc2': 'mlp.dense2',
    'mlp.dwconv.dwconv': 'mlp.dwconv.dwconv',
}


def on_hub(state):
    "A MiT state dict as NVIDIA put it on the Hugging Face hub, where keys and values are two layers."
    out = {}
    for name, v in state.items():
        part, kind = name.rsplit('.', 1)
        if part == 'head':
            out[f'classifier.{kind}'] = v
        elif part.startswith('block'):
            i, j, inner = part.removeprefix('block').split('.', 2)
            theirs = f'segformer.encoder.block.{int(i) - 1}.{j}.{HUB[inner]}.{kind}'
            both = zip(('key', 'value'), v.chunk(2)) if inner == 'attn.kv' else [('', v)]
            out |= {theirs.format(n): half for n, half in both}
        elif part.startswith('patch_embed'):
            inner = 'proj' if part.endswith('proj') else 'layer_norm'
            out[f'segformer.encoder.patch_embeddings.{int(part[11]) - 1}.{inner}.{kind}'] = v
        else:
            out[f'segformer.encoder.layer_norm.{int(part[4]) - 1}.{kind}'] = v
    return out


@pytest.mark.parametrize('below', ('segformer.', ''))
def test_file_of_the_hub(below, tmp_path):
    "The two spellings of MiT give the same weights; the hub has the encoder with a classifier, and alone."
    state = {k: torch.randn(v) for k, v in of_pvt(**B0, ratios=(4, 4, 4, 4)).items()}
    torch.save(state, tmp_path / 'mit_b0.pth')
    named = {
        k.replace('segformer.', below): v for k, v in on_hub(state).items() if below or 'classifier' not in k
    }
    torch.save(named, tmp_path / 'pytorch_model.bin')
    one, two = (encoder_state('mit_b0', tmp_path / n) for n in ('mit_b0.pth', 'pytorch_model.bin'))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


GOLDENS = {
    'pvt_v2_b5': ('tpavi_binary_pvt_v2_b5', 'encoder_backbone.'),
    'htsat': ('ddeseg_mit_b5', 'audio_model.'),
}


@pytest.mark.skipif(goldens is None, reason="the folder 'goldens' was not found")
@pytest.mark.parametrize('encoder', GOLDENS)
def test_names_of_released_code(encoder, tmp_path):
    "What the released code of the papers calls the weights of its encoders is read."
    stem, prefix = GOLDENS[encoder]
    state = json.loads((goldens / 'released' / f'{stem}.json').read_text())['state']
    inside = {f'model.{k.removeprefix(prefix)}': v for k, v in state.items() if k.startswith(prefix)}
    found = encoder_state(encoder, blank_file(tmp_path / 'encoder.ckpt', inside))
    assert {k: tuple(v.shape) for k, v in found.items()} == encoder_shapes(encoder)


CUT = dict(depths=(1, 2, 1, 1), embed_dims=(8, 16, 40, 64))
CUT_SWIN = dict(embed_dim=24, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8))
PAIRS = {
    'pvt_v2_b0': {
        'patch_embed1.proj.weight': 'patch_embed.proj.weight',
        'patch_embed2.norm.bias': 'stages_1.downsample.norm.bias',
        'block1.0.attn.q.weight': 'stages_0.blocks.0.attn.q.weight',
        'block2.1.mlp.dwconv.dwconv.weight': 'stages_1.blocks.1.mlp.dwconv.weight',
        'norm1.weight': 'stages_0.norm.weight',
        'norm4.bias': 'stages_3.norm.bias',
    },
    'swin_tiny_patch4_window7_224': {
        'patch_embed.proj.bias': 'patch_embed.proj.bias',
        'layers.0.downsample.reduction.weight': 'layers_1.downsample.reduction.weight',
        'layers.2.downsample.norm.weight': 'layers_3.downsample.norm.weight',
        'layers.1.blocks.1.attn.relative_position_bias_table': (
            'layers_1.blocks.1.attn.relative_position_bias_table'
        ),
        'layers.3.blocks.0.mlp.fc2.bias': 'layers_3.blocks.0.mlp.fc2.bias',
    },
}
PAIRS['mit_b0'] = PAIRS['pvt_v2_b0']
SMALL = {
    'pvt_v2_b0': (of_pvt(CUT['depths'], CUT['embed_dims']), CUT),
    'mit_b0': (of_pvt(CUT['depths'], CUT['embed_dims'], (4, 4, 4, 4)), CUT),
    'swin_tiny_patch4_window7_224': (of_swin(224, 24, (1, 2, 2, 1), (1, 2, 4, 8), 7), CUT_SWIN),
}


@pytest.mark.parametrize('encoder', SMALL)
def test_official_values_arrive(encoder, tmp_path):
    "Each value of the official file, classifier and buffers apart, is in the network, the named ones where."
    shapes, options = SMALL[encoder]
    state = {k: torch.randn(v) for k, v in shapes.items()}
    torch.save(dict(model=state), tmp_path / 'official.pth')
    net = create_backbone(encoder, weights=tmp_path / 'official.pth', **options).net.state_dict()
    for theirs, ours in PAIRS[encoder].items():
        assert torch.equal(net[ours], state[theirs]), theirs
    left_out = ('head.weight', 'head.bias', 'attn_mask', 'relative_position_index')
    left_out += ('norm.weight', 'norm.bias') if 'swin' in encoder else ()
    sums = sorted(v.sum().item() for k, v in net.items() if not k.endswith(left_out[2:4]))
    wanted = {k: v for k, v in state.items() if k not in left_out and not k.endswith(left_out[2:4])}
    assert sums == sorted(v.sum().item() for v in wanted.values())


def test_file_of_another_network_is_refused(tmp_path):
    path = blank_file(tmp_path / 'pvt_v2_b0.pth', of_pvt(**B0))
    assert 'mlp.fc1' in sentence(encoder_state, 'mit_b0', path)  # MLPs of another width
    assert "expected an entry 'conv1.weight'" in sentence(encoder_state, 'resnet50', path)
    shapes = of_pvt(**B0)
    without = blank_file(tmp_path / 'less.pth', {k: v for k, v in shapes.items() if k != 'norm2.bias'})
    assert 'stages_1.norm.bias' in sentence(encoder_state, 'pvt_v2_b0', without)
    more = blank_file(tmp_path / 'more.pth', shapes | {'block1.2.norm1.bias': (32,)})
    assert 'unexpected entry' in sentence(encoder_state, 'pvt_v2_b0', more)
    for encoder in ('vggish', 'htsat', 'yamnet'):
        assert str(path) in sentence(encoder_state, encoder, path)


# where files lie


def test_converted_file_goes_first_and_folders_in_order(tmp_path, monkeypatch):
    one, two = tmp_path / 'one', tmp_path / 'two'
    for folder in (one, two):
        folder.mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('AVSREPRO_WEIGHTS', '~/one:~/two')
    (two / 'resnet50.safetensors').write_bytes(b'weights')
    assert find_weights('resnet50') == two.resolve() / 'resnet50.safetensors'
    (one / 'resnet50-19c8e357.pth').write_bytes(b'weights')
    assert find_weights('resnet50') == one.resolve() / 'resnet50-19c8e357.pth'
    (one / 'resnet50-0676ba61.pth').write_bytes(b'weights')
    assert find_weights('resnet50').name == 'resnet50-0676ba61.pth'
    (one / 'resnet50.safetensors').write_bytes(b'weights')
    assert find_weights('resnet50', '~/one') == one / 'resnet50.safetensors'
    assert find_weights('resnet50') == one.resolve() / 'resnet50.safetensors'
    said = sentence(find_weights, 'mit_b5', two)
    for word in ("'mit_b5'", str(two), 'mit_b5.pth', '`python data_prep/get_weights.py mit_b5`'):
        assert word in said
    assert str(one) in sentence(find_weights, 'mit_b5') and str(two) in sentence(find_weights, 'mit_b5')
    monkeypatch.setenv('AVSREPRO_WEIGHTS', str(tmp_path / 'none'))
    assert 'does not exist' in sentence(find_weights, 'mit_b5')
    assert "Did you mean 'resnet50'" in sentence(find_weights, 'resnet5O')


MILLIONS = {  # of parameters that a decoder or a mean reads, by the papers' numbers for the trunks
    'swin_base_patch4_window12_384': 86.877,  # without the last norm
    'pvt_v2_b5': 81.443,
    'mit_b5': 81.443,
    'resnet50': 23.508,
    'vggish': 72.141,
    'htsat': 27.534,
}


@pytest.mark.parametrize('encoder', catalogue())
def test_blank_weights(encoder, tmp_path):
    path = blank_weights(tmp_path, encoder)
    assert find_weights(encoder, tmp_path) == path
    with safe_open(path, 'pt') as f:
        shapes = {k: f.get_slice(k).get_shape() for k in f.keys()}
    found = sum(math.prod(v) for k, v in shapes.items() if 'running_' not in k)
    assert round(found / 1e6, 3) == MILLIONS.get(encoder, round(found / 1e6, 3)) and found > 3e6
    disk = getattr(path.stat(), 'st_blocks', 0) * 512
    assert disk < 1_000_000 < path.stat().st_size or disk >= path.stat().st_size  # or no holes on this disk


def test_blank_weights_make_a_network(tmp_path):
    assert not create_backbone(
        'mit_b0', weights=blank_weights(tmp_path, 'mit_b0')
    ).net.patch_embed.proj.weight.any()
    yamnet = create_audio_backbone('yamnet', weights=blank_weights(tmp_path, 'yamnet'))
    assert not yamnet.net.conv_stem.weight.any()


# the command


def command():
    path = repo_root() / 'data_prep' / 'get_weights.py'
    spec = importlib.util.spec_from_file_location('get_weights', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = command()


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    "The bytes of a PVT-v2-B0 in official names with random weights, as its authors would save it."
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('official') / 'pvt_v2_b0.pth'
    torch.save({k: torch.randn(v) * 0.1 for k, v in of_pvt(**B0).items()}, path)
    return path


class Server(BaseHTTPRequestHandler):
    "Serves `content`, from the middle if asked to; breaks off where `stops` says."

    def do_GET(self):
        content, start = self.server.content, 0
        self.server.asked.append(self.headers.get('Range'))
        if self.path != '/file.pth':
            return self.send_error(404)
        if (asked := self.headers.get('Range')) and self.server.ranges:
            start = int(asked.removeprefix('bytes=').removesuffix('-'))
            if start >= len(content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(content)}')
                self.send_header('Content-Length', '0')
                return self.end_headers()
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.stops])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(official, monkeypatch):
    "A server of the file, whose address is that of `pvt_v2_b0` in the table."
    s = HTTPServer(('127.0.0.1', 0), Server)
    s.content, s.asked, s.ranges, s.stops = official.read_bytes(), [], True, None
    s.url = f'http://127.0.0.1:{s.server_address[1]}/file.pth'
    listed(monkeypatch, url=s.url)
    thread = threading.Thread(target=s.serve_forever, daemon=True)
    thread.start()
    yield s
    s.shutdown()
    s.server_close()


def listed(monkeypatch, **changes):
    "Change the line of `pvt_v2_b0` in the table."
    table = catalogue()
    changed = table | dict(pvt_v2_b0=replace(table['pvt_v2_b0'], **changes))
    monkeypatch.setattr('avsrepro.nn.weights.catalogue', lambda: changed)


def left(folder):
    "The files in a folder, locks apart."
    return sorted(p.name for p in folder.iterdir() if p.suffix != '.lock')


STORED = ['pvt_v2_b0.safetensors', 'weights.json']


def test_download(server, official, tmp_path, capsys):
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path)]) == 0
    assert left(tmp_path) == STORED and str(tmp_path) in capsys.readouterr().out
    made = tmp_path / 'pvt_v2_b0.safetensors'
    note = json.loads((tmp_path / 'weights.json').read_text())['pvt_v2_b0']
    assert (note['file'], note['sha256'], note['licence']) == (made.name, digest_of(made), 'Apache-2.0')
    origin = dict(
        name='pvt_v2_b0.pth', sha256=digest_of(official), bytes=official.stat().st_size, source=server.url
    )
    assert note['made_of'] == origin and note['date'].startswith('20')
    assert find_weights('pvt_v2_b0', tmp_path) == made
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (create_backbone('pvt_v2_b0', weights=p).eval()(x) for p in (made, official))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs)) and ours[-1].abs().sum() > 0
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path)]) == 0  # is there
    assert len(server.asked) == 1


def test_download_goes_on_where_it_broke_off(server, tmp_path, capsys):
    server.stops = 5_000_000
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path)]) == 2
    assert 'broke off after 5,000,000' in capsys.readouterr().err and left(tmp_path) == ['pvt_v2_b0.pth.part']
    server.stops = None
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path)]) == 0
    assert server.asked == [None, 'bytes=5000000-'] and left(tmp_path) == STORED


@pytest.mark.parametrize('ranges', (True, False))
@pytest.mark.parametrize('part', ('whole', 'longer'))
def test_part_that_is_there_already(ranges, part, server, tmp_path):
    "All of it, or something longer than what is published; from a server that goes on, or does not."
    server.ranges = ranges
    content = server.content if part == 'whole' else bytes(len(server.content) + 9)
    (tmp_path / 'pvt_v2_b0.pth.part').write_bytes(content)
    assert get_weights('pvt_v2_b0', tmp_path).is_file()
    assert left(tmp_path) == STORED
    assert len(server.asked) == (2 if ranges and part == 'longer' else 1)


def test_download_of_something_else(server, tmp_path, capsys):
    server.content = b'<html>quota exceeded</html>'
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path)]) == 2
    assert 'is a web page' in capsys.readouterr().err and left(tmp_path) == []


@pytest.mark.parametrize('reason', ('404', 'no network', 'by hand'))
def test_what_a_person_can_do(reason, server, tmp_path, capsys, monkeypatch):
    url = {'404': server.url + 'x', 'no network': 'https://no-such-host.invalid/a.pth', 'by hand': ''}[reason]
    listed(monkeypatch, url=url)
    assert script.main(['pvt_v2_b0', '--out', str(tmp_path / 'new')]) == 2
    said = capsys.readouterr().err.strip()
    words = {'404': 'answers 404', 'no network': 'cannot be reached', 'by hand': 'no address for a program'}[
        reason
    ]
    assert '\n' not in said and words in said
    assert 'https://github.com/whai362/PVT' in said
    assert '`python data_prep/get_weights.py pvt_v2_b0 --from FILE`' in said
    assert left(tmp_path / 'new') == []


def test_given_file(official, tmp_path, capsys, monkeypatch):
    run = ['pvt_v2_b0', '--from', str(official), '--out', str(tmp_path)]
    assert script.main([*run, '--dry-run']) == 0
    said = capsys.readouterr().out
    assert str(official) in said and left(tmp_path) == []
    (tmp_path / 'weights.json').write_text('{"other": {"file": "other.safetensors"}}')
    assert script.main(run) == 0 and official.exists()
    notes = json.loads((tmp_path / 'weights.json').read_text())
    assert list(notes) == ['other', 'pvt_v2_b0']
    assert notes['pvt_v2_b0']['made_of']['source'] == 'https://github.com/whai362/PVT/tree/v2/classification'
    before = digest_of(tmp_path / 'pvt_v2_b0.safetensors')
    keep_weights('pvt_v2_b0', tmp_path / STORED[0], tmp_path.parent / 'copy')  # not a name of the authors
    note = json.loads((tmp_path.parent / 'copy' / 'weights.json').read_text())['pvt_v2_b0']
    assert (note['sha256'], note['made_of']['source'], note['licence']) == (before, 'unknown', 'unknown')
    for bad, words in (
        (tmp_path / 'none.pth', 'no such weights file'),
        (repo_root() / 'README.md', 'no file of'),
    ):
        assert script.main(['pvt_v2_b0', '--from', str(bad), '--out', str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
    assert digest_of(tmp_path / 'pvt_v2_b0.safetensors') == before and left(tmp_path) == STORED
    (tmp_path / 'weights.json').write_text('{')
    assert 'is not JSON' in sentence(keep_weights, 'pvt_v2_b0', official, tmp_path)
    assert (tmp_path / 'weights.json').read_text() == '{'


def test_digest_that_is_known(official, tmp_path, monkeypatch):
    listed(monkeypatch, names=('pvt_v2_b0-01234567.pth',))
    named = tmp_path / 'pvt_v2_b0-01234567.pth'
    named.write_bytes(official.read_bytes())
    assert 'with 01234567' in sentence(keep_weights, 'pvt_v2_b0', named, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    listed(monkeypatch, names=(f'pvt_v2_b0-{digest_of(official)[:8]}.pth',))
    keep_weights('pvt_v2_b0', official, tmp_path / 'out', name=f'pvt_v2_b0-{digest_of(official)[:8]}.pth')
    listed(monkeypatch, sha256='0' * 64)
    assert 'with 00000000' in sentence(keep_weights, 'pvt_v2_b0', official, tmp_path / 'other')


def test_every_encoder_of_a_profile_is_in_the_table(capsys):
    asked = script.asked_for(built_in())
    assert asked.keys() <= catalogue().keys()
    assert asked['swin_base_patch4_window12_384'] == asked['vggish'] == ['paper']
    assert {'htsat', 'mit_b5', 'pvt_v2_b5', 'resnet50', 'yamnet', 'mobilenetv1_100'} <= asked.keys()
    assert script.main(['--list']) == 0
    said = capsys.readouterr().out
    for encoder in asked:
        assert f'{encoder}\n' in said and catalogue()[encoder].licence in said
    assert script.main(['--list', '--profile', 'smoke', 'pvt_v2_b0']) == 0
    said = capsys.readouterr().out
    assert 'no built-in profile' in said and 'mit_b5' not in said


def test_list_says_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('AVSREPRO_WEIGHTS', str(tmp_path))
    monkeypatch.setattr('avsrepro.core.paths.repo_root', lambda: tmp_path)
    script.main(['--list', 'mit_b0'])
    assert 'is at:        not there' in capsys.readouterr().out
    path = blank_weights(tmp_path, 'mit_b0')
    script.main(['--list', 'mit_b0'])
    assert f'is at:        {path}' in capsys.readouterr().out


@pytest.mark.parametrize(
    'args', ([], ['resnet5O'], ['--profile', 'papr'], ['vggish', 'htsat', '--from', 'x.pth'])
)
def test_wrong_question(args, capsys):
    assert script.main(args) == 2
    assert len(capsys.readouterr().err.strip().split('\n')) == 1


def test_folder_that_is_written_to(tmp_path, monkeypatch):
    monkeypatch.delenv('AVSREPRO_WEIGHTS', raising=False)
    assert script.default_folder() == repo_root() / 'data' / 'weights'
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('AVSREPRO_WEIGHTS', '~/a:/b')
    assert script.default_folder() == tmp_path / 'a'


@pytest.mark.skipif(real is None, reason="the folder 'weights' was not found")
@pytest.mark.parametrize('encoder', ('mobilenetv1_100', 'yamnet'))
def test_files_that_are_at_hand(encoder, tmp_path):
    file = Path(real) / catalogue()[encoder].names[0]
    if not file.is_file():
        pytest.skip(f'{file.name} was not found')
    assert catalogue()[encoder].size == f'{file.stat().st_size} bytes'
    made = load_file(keep_weights(encoder, file, tmp_path))
    given = load_file(file)
    assert made.keys() == given.keys() and all(torch.equal(made[k], v) for k, v in given.items())
