"""What runs in few operations computes what the equations say one by one, forward and gradients."""

import json
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from avsrepro.cli import app
from avsrepro.core.errors import InputError
from avsrepro.experiments.bench import TIMED_ROWS, bench_train, files_of, full_name, gradient_differences
from avsrepro.models.sdavs import DAMF, SNRP, SDAVSStage, enhance, stacked
from avsrepro.nn.features import Rows
from avsrepro.nn.layers import Attention, GroupNorm, conv_sum, pixels_first, pixelwise, small_conv


def tokens(x):
    "[B,T,C,h,w] to [B,T*h*w,C]."
    return x.permute(0, 1, 3, 4, 2).flatten(1, 3)


def stc(m, x):
    "Eqs. 5 and 6 of SDAVS on [B,T,C,h,w]."
    y = F.conv3d(x.transpose(1, 2), m.conv.weight, m.conv.bias, padding=m.conv.padding, groups=x.shape[2])
    hidden = F.relu(F.linear(y.mean((2, 3, 4)), m.car.W1.weight, m.car.W1.bias))
    y = y * torch.sigmoid(F.linear(hidden, m.car.W2.weight, m.car.W2.bias))[:, :, None, None, None]
    return F.layer_norm(tokens(y.transpose(1, 2)), x.shape[2:3], m.norm.weight, m.norm.bias)


def attention(m, q, k, v):
    "Multi-head attention, head by head."
    q, k, v = (F.linear(x, f.weight, f.bias) for x, f in ((q, m.q), (k, m.k), (v, m.v)))
    found = []
    for a, b, c in zip(*(x.chunk(m.heads, -1) for x in (q, k, v))):
        found.append((a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) @ c)
    return F.linear(torch.cat(found, -1), m.o.weight, m.o.bias)


def cross(m, query, memory, with_stc):
    "One line of Eq. 4: of the query's shape [B,T,C,h,w]."
    if with_stc:
        q, k, v = stc(m.stc_q, query), stc(m.stc_k, memory), stc(m.stc_v, memory)
    else:
        q, k = (F.layer_norm(tokens(x), x.shape[2:3]) for x in (query, memory))
        v = k
    B, T, _, h, w = query.shape
    return attention(m.attn, q, k, v).view(B, T, h, w, -1).permute(0, 1, 4, 2, 3)


def damf(m, F_v, F_a, clips):
    "Eqs. 4 to 7, with everything brought to its size where it is used."
    size = F_v.shape[-2:]
    grid = tuple(min(s, m.tokens) for s in size)
    asking = grid if m.stc else size

    def to(x, size):
        return F.interpolate(x, size, mode='bilinear')

    def by_clip(x):
        return x.unflatten(0, (clips, -1))

    def join(x, original):
        return dict(multiply=x * original, add=x + original, straight=x)[m.interaction]

    out = 0
    if m.a2v is not None:
        asks = by_clip(F.adaptive_avg_pool2d(F_v, asking))
        x = cross(m.a2v, asks, by_clip(to(F_a, grid)), m.stc).flatten(0, 1)
        out = out + to(join(x, to(F_a, asking)), size)
    if m.v2a is not None:
        x = cross(m.v2a, by_clip(to(F_a, asking)), by_clip(F.adaptive_avg_pool2d(F_v, grid)), m.stc)
        out = out + join(to(x.flatten(0, 1), size), F_v)
    return out


def same(ours, theirs, leaves):
    "Equal values and gradients, to rounding in float64."
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, theirs, **close)
    leaves = [x for x in leaves if x.requires_grad]
    a, b = (torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True) for y in (ours, theirs))
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, **close)


def maps(size=(6, 5), C=16, clips=2, T=3, grid=2):
    F_v, F_a = torch.randn(clips * T, C, *size).double(), torch.randn(clips * T, C, grid, grid).double()
    return pixels_first(F_v).requires_grad_(), F_a.requires_grad_()


OPTIONS = list(product((True, False), ('both', 'a2v', 'v2a'), ('multiply', 'add', 'straight'), (3, 8)))


@pytest.mark.parametrize('with_stc, direction, interaction, side', OPTIONS)
def test_damf(with_stc, direction, interaction, side):
    torch.manual_seed(0)
    m = DAMF(16, side, interaction, direction, heads=2, stc=with_stc).double()
    for p in m.parameters():
        nn.init.normal_(p, std=0.5)
    F_v, F_a = maps()
    same(m(F_v, F_a, 2), damf(m, F_v, F_a, 2), [F_v, F_a, *m.parameters()])


def test_enhancers_of_one_second_and_of_many():
    for T in (1, 2, 7):
        m = DAMF(8, 4, heads=2).double().a2v
        x = [torch.randn(2, T, 3, 4, 8).double().requires_grad_() for _ in range(3)]
        stcs = [m.stc_q, m.stc_k, m.stc_v]
        got = enhance(stcs, x) * stacked([s.norm for s in stcs], 'weight')
        want = torch.stack([stc(s, y.movedim(-1, 2)) for s, y in zip(stcs, x)], 2)
        same(got + stacked([s.norm for s in stcs], 'bias'), want, [*x, *m.stc_q.parameters()])


@pytest.mark.parametrize('position, grid', [('pre', 2), ('after', 2), ('pre', 3)])
def test_stage(position, grid):
    torch.manual_seed(0)
    m = SDAVSStage(16, SNRP(16), DAMF(16, 4, heads=2), position).double()
    F_v, F_a = maps(grid=grid)

    def one_by_one():
        heard, up = m.snrp.conv(F_a), dict(size=F_v.shape[-2:], mode='bilinear')
        pooled = heard.mean((2, 3))
        gate = torch.sigmoid(pooled + m.snrp.mlp(pooled))[:, :, None, None]
        gate = gate * torch.sigmoid(F.interpolate(m.snrp.spatial(heard), **up))
        seen, audio = (F_v * gate, heard) if position == 'pre' else (F_v, F_a)
        fused = damf(m.damf, seen, audio, 2) + seen
        fused = fused * gate if position == 'after' else fused
        norms = [nn.GroupNorm(f[1].num_groups, 16).double() for f in (m.visual, m.audio)]
        for norm, f in zip(norms, (m.visual, m.audio)):
            norm.weight, norm.bias = f[1].weight, f[1].bias
        y = F.relu(norms[0](m.visual[0](fused.contiguous())))
        return y, F_a + norms[1](m.audio[0](F_a))

    for ours, theirs in zip(m(F_v, F_a, 2), one_by_one()):
        used = [p for p in m.audio.parameters()] if ours.shape == F_a.shape else list(m.visual.parameters())
        same(ours, theirs, [F_a, *used])


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (1, 4), (2, 3), (5, 4)])
def test_layers(size):
    torch.manual_seed(0)
    x = torch.randn(3, 8, *size).double().requires_grad_()
    norm, plain = GroupNorm(2, 8).double(), nn.GroupNorm(2, 8).double()
    nn.init.normal_(norm.weight)
    plain.weight, plain.bias = norm.weight, norm.bias
    if size != (1, 1):
        same(norm(pixels_first(x)), plain(x), [x, *norm.parameters()])
    convs = [nn.Conv2d(8, o, 3, padding=1).double() for o in (1, 5)]
    parameters = [p for c in convs for p in c.parameters()]
    same(torch.cat(small_conv(x, *convs), 1), torch.cat([c(x) for c in convs], 1), [x, *parameters])
    ones = [nn.Conv2d(8, 4, 1).double() for _ in 'ab']
    same(pixelwise(ones[0], pixels_first(x)), ones[0](x), [x, *ones[0].parameters()])
    same(conv_sum(ones, [x, 2 * x]), ones[0](x) + ones[1](2 * x), [x, *ones[0].parameters()])


@pytest.mark.parametrize('bias', ['', 'o', 'qvo', 'qkvo'])
def test_attention_of_one_tensor_two_or_three(bias):
    m, x, y = Attention(8, 2, bias).double(), *torch.randn(2, 2, 5, 8).double().unbind()
    x, y = x.requires_grad_(), y.requires_grad_()
    for q, k, v in ((x, x, x), (x, y, y), (x, y, 2 * y)):
        same(m(q, k, v), attention(m, q, k, v), [x, *m.parameters()])


def test_rows_of_many_chunks_with_gaps():
    whole = torch.randn(9, 4).half()
    rows = Rows([whole[:4], whole[4:6], whole[6:]], step=4)
    held = {0: 0, 3: 3, 4: 4, 5: 5, 8: 6, 10: 8}  # number -> row
    got = rows.take(torch.tensor([list(held)[::-1]]))[0]
    assert torch.equal(got, whole[list(held.values())[::-1]].float()) and len(rows) == 9


def test_benchmark_says_what_is_wrong(tmp_path, monkeypatch):
    for asked, said in ((dict(models=['sdvas']), "'sdavs'"), (dict(against='nobody'), 'no commit')):
        with pytest.raises(InputError, match=said):
            bench_train(**asked)
    assert isinstance(
        CliRunner().invoke(app, ['bench', 'train', '--against', 'nobody']).exception, InputError
    )
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(InputError, match='git is not installed'):
        full_name('HEAD')


def test_benchmark_reads_a_commit_and_compares_gradients():
    with files_of('HEAD') as tree:
        assert (tree / 'avsrepro' / 'train' / 'engine.py').is_file()
        notebook = json.loads((tree / 'nbs' / 'train' / '30_engine.ipynb').read_text(encoding='utf-8'))
    assert notebook['cells'] and not tree.exists() and set(TIMED_ROWS) >= {'sdavs', 'ddeseg'}
    g = dict(a=torch.tensor([3.0, 4.0]), b=torch.tensor([1.0]))
    differs = gradient_differences(dict(a=torch.tensor([3.0, 4.5]), b=torch.tensor([1.0])), g)
    assert differs == pytest.approx(dict(gradients_differ=0.5 / 26**0.5, one_differs=0.1))
    with pytest.raises(InputError, match='other parameters'):
        gradient_differences(dict(a=g['a']), g)
