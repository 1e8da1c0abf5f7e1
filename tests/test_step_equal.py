"What makes a step fast changes nothing: each part against its equations, written from the same parameters."

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avsrepro.models import create_model
from avsrepro.models.selm_clever import VideoAttention
from avsrepro.models.selm_stages import Question, answered, stack
from avsrepro.models.tpavi import ASPP, ResidualUnit, matching
from avsrepro.nn import deformable
from avsrepro.nn import mambas as together
from avsrepro.nn.deformable import deformable_sample
from avsrepro.nn.features import Features
from avsrepro.nn.queries import (
    MIXERS,
    AudioMixer,
    Dropout,
    QueryLayer,
    attend,
    keep_factors,
    pixel_mlp,
    products,
)
from avsrepro.nn.recompute import recomputed

NEAR = dict(atol=1e-10, rtol=1e-10)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.double, requires_grad=True)


def assert_equal(fast, slow, leaves):
    "Equal values and gradients of two tensors; None and zeros are the same gradient."
    torch.testing.assert_close(fast, slow, **NEAR)
    weight = torch.randn_like(slow)
    given = dict(retain_graph=True, allow_unused=True)
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), leaves, **given) for y in (fast, slow)))
    for leaf, (a, b) in zip(leaves, pairs):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, **NEAR)


def leaves_of(*parts):
    return [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]


def sampled(value, sizes, locations, weights):
    "Bilinear samples as a sum over all pixels of hat functions: max(0, 1 - |x - i|) max(0, 1 - |y - j|)."
    out, first = 0, 0
    for level, (h, w) in enumerate(sizes):
        at = locations[:, :, :, level] * torch.tensor([w, h]) - 0.5  # [N,Q,M,P,2]
        x = (1 - (at[..., :1] - torch.arange(w)).abs()).clamp(min=0)
        y = (1 - (at[..., 1:] - torch.arange(h)).abs()).clamp(min=0)
        near = (y[..., :, None] * x[..., None, :]).flatten(-2)  # [N,Q,M,P,hw]
        A = weights[:, :, :, level]
        out = out + torch.einsum('nqmp,nqmps,nsmd->nqmd', A, near, value[:, first : first + h * w])
        first += h * w
    return out.flatten(2)


SIZES = [[(4, 6), (2, 3), (1, 1)], [(5, 3)], [(1, 7), (3, 1)]]


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('cells', [2**18, 0])
def test_deformable_sampling(sizes, cells, monkeypatch):
    monkeypatch.setattr(deformable, '_CELLS', cells)
    S, L = sum(h * w for h, w in sizes), len(sizes)
    value, weights = randn(2, S, 2, 3), randn(2, 5, 2, L, 4)
    locations = (1.6 * torch.rand(2, 5, 2, L, 4, 2, dtype=torch.double) - 0.3).requires_grad_()
    fast, slow = (f(value, sizes, locations, weights) for f in (deformable_sample, sampled))
    assert ('ByMatrix' in fast.grad_fn.name()) == (cells > 0)
    assert_equal(fast, slow, [value, locations, weights])


def test_places_on_pixels_have_the_same_one_sided_gradient():
    "Where offsets start, places lie on the centres of pixels; both forms round them alike."
    sizes, attn = [(16, 16), (8, 8), (4, 4)], deformable.DeformableAttention(8, 3, 2, 2)
    centres = deformable.pixel_centres(sizes, torch.zeros(()))
    query, memory = torch.randn(2, 336, 8), torch.randn(2, 336, 8)
    value = attn.value(memory).unflatten(-1, (2, 4)).detach()
    at, A = attn.places(query, centres, sizes).detach().requires_grad_(), torch.rand(2, 336, 2, 3, 2)
    pair = [f(value, sizes, at, A) for f in (deformable_sample, deformable._by_grid)]
    a, b = (torch.autograd.grad(y.sin().sum(), at)[0] for y in pair)
    assert (a - b).norm() < 1e-4 * b.norm()


def test_what_is_not_a_number_stays_outside_of_memory():
    at = torch.full((1, 2, 1, 1, 2, 2), math.nan)
    y = deformable_sample(torch.randn(1, 6, 1, 4), [(2, 3)], at, torch.ones(1, 2, 1, 1, 2))
    assert y.isnan().all()
    far = torch.full_like(at, 1e9)
    assert (deformable_sample(torch.randn(1, 6, 1, 4), [(2, 3)], far, torch.ones(1, 2, 1, 1, 2)) == 0).all()


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('S', [1, 6, 20])  # of the last, no keys and values are made
def test_query_layer(bias, S):
    layer = QueryLayer(8, 2, 16, 0.0, bias).double()
    q, memory = randn(3, 3, 8), randn(3, S, 8)

    def attention(attn, q, k, v):
        W, b = (
            attn.in_proj_weight.chunk(3),
            [0, 0, 0] if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3),
        )
        q, k, v = (x @ w.T + c for x, w, c in zip((q, k, v), W, b))
        heads = []
        for m in range(2):
            a, c, e = (x[..., 4 * m : 4 * m + 4] for x in (q, k, v))
            heads.append((a @ c.mT / 2).softmax(-1) @ e)
        y = torch.cat(heads, -1) @ attn.out_proj.weight.T
        return y if attn.out_proj.bias is None else y + attn.out_proj.bias

    y = layer.norms[0](q + attention(layer.self_attn, q, q, q))
    y = layer.norms[1](y + attention(layer.cross_attn, y, memory, memory))
    first, last = layer.ffn[0], layer.ffn[3]
    y = layer.norms[2](y + last(F.gelu(first(y))))
    assert_equal(layer(q, memory, memory), y, leaves_of(q, memory, layer))


@pytest.mark.parametrize('p', [0.1, 0.5])
def test_dropout_is_dropout(p):
    layer, x = Dropout(p), torch.randn(500, 1000, requires_grad=True)
    y = layer(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=1e-4, atol=0)
    n = x.numel()
    assert abs(kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / n) ** 0.5 + 2**-17
    pairs = (kept[:, 1:] & kept[:, :-1]).double().mean()  # neighbours share a number of 64 bits
    assert abs(pairs - (1 - p) ** 2) < 6 * (p / n) ** 0.5
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    torch.manual_seed(5)
    a = keep_factors(x, p)
    torch.manual_seed(5)
    assert torch.equal(a, keep_factors(x, p)) and layer.eval()(x) is x


def test_dropout_of_weights():
    "The mean over many draws of an attention whose weights are dropped is the attention."
    layer = QueryLayer(8, 2, 8, 0.3, bias=True).double()
    q, m = torch.randn(1, 3, 8, dtype=torch.double), torch.randn(1, 6, 8, dtype=torch.double)
    many = attend(
        layer.cross_attn, q.expand(20_000, -1, -1), m.expand(20_000, -1, -1), m.expand(20_000, -1, -1)
    )
    whole = attend(layer.eval().cross_attn, q, m, m)
    assert many.std(0).min() > 0.01 and (many.mean(0) - whole[0]).abs().max() < 0.03


@pytest.mark.parametrize('form', MIXERS)
@pytest.mark.parametrize('size', [(4, 5), (1, 1)])
def test_mixer(form, size):
    mixer, x, audio = AudioMixer(8, 2, form).double(), randn(3, 8, *size), randn(3, 8)
    pixels, out = x.flatten(2).mT, []
    q, k = audio @ mixer.q.weight.T, pixels @ mixer.k.weight.T
    for m in (slice(0, 4), slice(4, 8)):
        A = (torch.einsum('nd,npd->np', q[:, m], k[..., m]) / 2).softmax(-1)
        v = None if form == 'pixels' else (pixels @ mixer.v.weight.T)[..., m]
        out.append(A[:, None].expand(-1, 4, -1) if v is None else torch.einsum('np,npd->nd', A, v))
    if form == 'pixels':
        y = x + x * torch.cat(out, 1).view_as(x)
    else:
        w = mixer.project(torch.cat(out, 1))[..., None, None]
        y = x + x * w if form == 'channels' else x * w.sigmoid()
    assert_equal(mixer(x, audio), y, leaves_of(x, audio, mixer))


def test_masks_of_queries_in_both_orders_of_memory():
    q, x, mlp = randn(2, 5, 8), randn(2, 8, 3, 4), pixel_mlp(5, 16, 8).double()
    maps = torch.einsum('nqc,nchw->nqhw', q, x)
    y = maps.permute(0, 2, 3, 1)
    for m in mlp:
        y = y @ m.weight[:, :, 0, 0].T + m.bias if isinstance(m, nn.Conv2d) else m(y)
    for form in (torch.contiguous_format, torch.channels_last):
        near = x.contiguous(memory_format=form)
        assert_equal(products(q, near), maps, [q, x])
        assert_equal(mlp(products(q, near)), y.permute(0, 3, 1, 2), leaves_of(q, x, mlp))


def mamba(b, x):
    "The block by Mamba's equations, step by step, of x [L,D]."
    u, z = (x @ b.in_proj.weight.T).chunk(2, -1)
    K, E = b.d_conv, b.d_inner
    padded = torch.cat([u.new_zeros(K - 1, E), u])
    w = b.conv1d.weight[:, 0]
    u = [F.silu((w.T * padded[t : t + K]).sum(0) + b.conv1d.bias) for t in range(len(x))]
    h, ys = u[0].new_zeros(E, b.d_state), []
    for u_t, z_t in zip(u, z):
        dt, B, C = (b.x_proj.weight @ u_t).split([b.dt_rank, b.d_state, b.d_state])
        dt = F.softplus(b.dt_proj.weight @ dt + b.dt_proj.bias)
        h = (dt[:, None] * -b.A_log.exp()).exp() * h + (dt * u_t)[:, None] * B
        ys.append(b.out_proj.weight @ ((h @ C + b.D * u_t) * F.silu(z_t)))
    return torch.stack(ys)


def stacked(f, x):
    for block in f[:-1]:
        n = block.norm(x)
        x = (n if block.normalised else x) + torch.stack([mamba(block.net, clip) for clip in n])
    return f[-1](x)


@pytest.mark.parametrize('residual', ['normalised', 'input'])
@pytest.mark.parametrize('length', [1, 2, 5])
@pytest.mark.parametrize('small', [True, False])
def test_stacks_at_once(residual, length, small, monkeypatch):
    if not small:
        monkeypatch.setattr(together, '_SMALL', 0)
    stacks = [stack(8, 2, residual=residual).double() for _ in range(3)]
    xs, calls = [randn(2, length, 8) for _ in stacks], []
    monkeypatch.setattr(
        'avsrepro.models.selm_stages.mambas', lambda *a: calls.append(1) or together.mambas(*a)
    )
    asked = [Question(f, x, x.shape, False) for f, x in zip(stacks, xs)]
    fast = torch.stack(answered([*asked, Question(None, None, None, True)])[:3])
    assert len(calls) == 2 * small
    slow = torch.stack([stacked(f, x) for f, x in zip(stacks, xs)])
    assert_equal(fast, slow, leaves_of(*xs, *stacks))


def test_slipped_and_joined_answers():
    f, g, x = stack(8, 1).double(), stack(8, 1).double(), randn(2, 3, 8)
    one = x.reshape(1, 6, 8)
    asked = [Question(f, x, x.shape, True), Question(g, x, x.shape, False), Question(g, one, x.shape, False)]
    slip, plain, joined = answered(asked)
    y = stacked(f, x)
    assert_equal(slip, y.transpose(0, 1).reshape(2, 3, 8), leaves_of(x, f))
    assert_equal(plain, stacked(g, x), leaves_of(x, g))
    assert_equal(joined, stacked(g, one).view(2, 3, 8), leaves_of(x, g))


@pytest.mark.parametrize('assignment', ['soft', 'hard'])
@pytest.mark.parametrize('P', [2, 12])
def test_tokens_that_look(assignment, P):
    look = VideoAttention(8, assignment, 'never').double()
    q, x, p = randn(2, 3, 8), randn(2, 8, P), randn(8, P)
    y = look.norm_x((x + p).mT)
    a, k, v = look.q(look.norm_q(q)), look.k(y), look.v(y)
    if assignment == 'soft':
        S = torch.einsum('nqc,npc->nqp', a, k) / 8**0.5
        weights, heat = S.softmax(-1), S[:, 1:].logsumexp(1) - S[:, 0]
    else:
        unit = [t.float() / t.float().norm(dim=-1, keepdim=True) for t in (a, k)]
        S = torch.einsum('nqc,npc->nqp', *unit) / look.tau.clamp(max=0).exp()
        soft = S.softmax(1)
        share = F.one_hot(S.argmax(1), 3).mT - soft.detach() + soft
        weights, heat = share / (share.sum(-1, keepdim=True) + 1), share[:, -1]
    slow = look.mlp(q + look.o(weights.to(v.dtype) @ v))
    fast = look(q, x, p)
    if assignment == 'soft':
        assert_equal(fast[0], slow, leaves_of(q, x, p, look))
        assert_equal(fast[1], heat, leaves_of(q, x, p, look))
    else:  # products of unit vectors are in float32
        torch.testing.assert_close(fast, (slow, heat), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size', [(16, 16), (13, 20), (8, 8), (4, 4), (7, 30)])
def test_aspp(size):
    aspp, x = ASPP(3, 4).double(), randn(2, 3, *size)
    y = 0
    for conv in aspp.convs:
        d = conv.dilation[0]
        padded = F.pad(x, (d, d, d, d))
        for i in range(3):
            for j in range(3):
                seen = padded[..., i * d : i * d + size[0], j * d : j * d + size[1]]
                y = y + torch.einsum('oc,nchw->nohw', conv.weight[:, :, i, j], seen)
        y = y + conv.bias[:, None, None]
    assert_equal(aspp(x), y, leaves_of(x, aspp))
    with torch.no_grad():
        torch.testing.assert_close(aspp(x), y.detach(), **NEAR)


@pytest.mark.parametrize('inplace', [True, False])
def test_residual_unit_with_a_relu_at_hand(inplace):
    unit, x = ResidualUnit(4, inplace).double(), randn(2, 4, 5, 6)
    y = x.clamp(min=0)
    slow = unit.conv2(unit.conv1(y).clamp(min=0)) + (y if inplace else x)
    for fast in (unit(x), unit(x, F.relu(x))):
        assert_equal(fast, slow, leaves_of(x, unit))


def test_matching():
    v, a, mask = randn(3, 4, 2, 5), randn(3, 4), torch.rand(3, 2, 5, dtype=torch.double, requires_grad=True)
    p, q = a.softmax(-1), (v * mask[:, None]).mean((2, 3)).softmax(-1)
    assert_equal(matching(v, a, mask), (p * (p / q).log()).sum(-1), [v, a, mask])


PVT = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])
WHOLE = dict(
    tpavi=[dict(dim=16, gamma=1.0), dict(dim=16, spec='code', gamma=1.0)],
    avsegformer=[
        dict(dim=16, queries=4, layers=1, heads=2, points=2, dropout=0.0, spec=spec, **more)
        for spec, more in (('code', dict(levels=3, upsample='after')), ('paper', {}))
    ],
    selm=[
        dict(dim=16, heads=2, blocks=2, dropout=0.0, noise='never', inside=False, image_size=64, **more)
        for more in ({}, dict(spec='code'), dict(clever='avsegformer'), dict(sequence='mlp'))
    ],
)
CASES = [(name, options) for name, several in WHOLE.items() for options in several]


@pytest.mark.parametrize('name, options', CASES)
def test_whole_models_by_slow_parts(name, options, monkeypatch):
    "A model's gradients with the forms for small sizes and with those for all."
    torch.manual_seed(0)
    given = dict(audio='vggish_small', frozen=('audio', 'visual'), num_classes=1)
    model = create_model(name, 'pvt_v2_b0', backbone_options=PVT, **given, **options).double().train()
    maps = [torch.randn(2, 3, c, n, n, dtype=torch.double) for c, n in zip(PVT['embed_dims'], (16, 8, 4, 2))]
    vector = torch.randn(2, 3, model.audio.dim, dtype=torch.double)
    features = Features(maps, vector, vector[..., None, None])

    def gradients():
        model.zero_grad(set_to_none=True)
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
            if isinstance(m, nn.MultiheadAttention):
                m.dropout = 0.0
        out = model.decode(features)
        weight = torch.linspace(-1, 1, out.logits.numel(), dtype=torch.double).view_as(out.logits)
        (out.logits * weight).sum().backward()
        return out.logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    fast = gradients()
    monkeypatch.setattr(deformable, '_CELLS', 0)
    monkeypatch.setattr(together, '_SMALL', 0)
    slow = gradients()
    torch.testing.assert_close(fast[0], slow[0], atol=1e-9, rtol=1e-9)
    assert fast[1].keys() == slow[1].keys()
    for n, g in slow[1].items():
        assert (fast[1][n] - g).norm() <= 1e-8 * max(g.norm(), 1e-3), n
    with recomputed(model):
        again = gradients()
    for n, g in slow[1].items():
        assert (again[1][n] - g).norm() <= 1e-8 * max(g.norm(), 1e-3), n
