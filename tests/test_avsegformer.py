"AVSegFormer: published counts, deformable attention by its definition, learning, frames kept apart."

import math

import pytest
import torch
from torch.nn import functional as F

from avsrepro.core.errors import InputError
from avsrepro.models import create_model
from avsrepro.nn.deformable import DeformableAttention, flatten_levels
from avsrepro.nn.features import Features
from avsrepro.train.steps import weighted_loss

SMALL = dict(dim=16, queries=5, layers=1, heads=2, points=2)


def numel(parameters):
    return sum(p.numel() for p in parameters)


def small(**kw):
    torch.manual_seed(0)
    return create_model(
        'avsegformer',
        'test_resnet',
        'vggish_small',
        backbone_options=dict(zero_init_last=False),
        **(SMALL | kw),
    )


def inputs(B=2, T=3, H=40, W=56):
    return torch.randn(B, T, 3, H, W), torch.randn(B, T, 1, 96, 64)


@pytest.fixture(autouse=True)
def _seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    yield
    torch.set_num_threads(threads)


def test_published_counts():
    with torch.device('meta'):
        code, paper = (create_model('avsegformer', 'pvt_v2_b5', spec=spec) for spec in ('code', 'paper'))
    assert numel(code.parameters()) == 186_053_504
    assert round(numel(code.trainable()) / 1000) == 113_912
    dead = {n: p for n, p in code.named_parameters() if n in code.dead_parameters()}
    parts = dict(encoder=code.encoder.layers, decoder=code.decoder, generator=code.generator, mlp=code.mlp)
    assert {k: round(numel(m.parameters()) / 1e6, 2) for k, m in parts.items()} == dict(
        encoder=7.55, decoder=9.47, generator=6.39, mlp=5.34
    )
    assert round(numel(dead.values()) / 1e6, 2) == 2.10
    assert paper.dead_parameters() == []
    assert numel(code.parameters()) - numel(paper.parameters()) == numel(dead.values())


def loop(attn, query, reference, maps):
    "Deformable attention of one query [C] at one place (x, y) over maps [C,h,w], written out."
    M, L, P = attn.heads, attn.levels, attn.points
    offsets = attn.offsets(query).view(M, L, P, 2)
    A = attn.weights(query).view(M, L * P).softmax(-1).view(M, L, P)
    heads = []
    for m in range(M):
        total = 0
        for level, x in enumerate(maps):
            h, w = x.shape[-2:]
            value = attn.value(x.permute(1, 2, 0)).chunk(M, -1)[m]
            for k in range(P):
                px, py = reference * torch.tensor([w, h]) + offsets[m, level, k] - 0.5
                for i in (math.floor(px), math.floor(px) + 1):
                    for j in (math.floor(py), math.floor(py) + 1):
                        if 0 <= i < w and 0 <= j < h:
                            near = (1 - (px - i).abs()) * (1 - (py - j).abs())
                            total = total + A[m, level, k] * near * value[j, i]
        heads.append(total)
    return attn.out(torch.cat(heads))


@pytest.mark.filterwarnings('ignore:Converting a tensor')
def test_deformable_attention_against_the_loop():
    attn = DeformableAttention(6, levels=2, heads=2, points=3).double()
    for p in attn.parameters():
        torch.nn.init.normal_(p, std=0.5)
    maps = [torch.randn(2, 6, *s, dtype=torch.double, requires_grad=True) for s in ((4, 5), (2, 3))]
    query, places = (
        torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True),
        0.2 + 0.6 * torch.rand(4, 2, dtype=torch.double),
    )
    memory, sizes = flatten_levels(maps)
    fast = attn(query, places, memory, sizes)
    slow = torch.stack(
        [
            torch.stack([loop(attn, query[n, q], places[q], [m[n] for m in maps]) for q in range(4)])
            for n in range(2)
        ]
    )
    torch.testing.assert_close(fast, slow)
    wanted = [query, *maps, *attn.parameters()]
    for a, b in zip(
        torch.autograd.grad(fast.sin().sum(), wanted), torch.autograd.grad(slow.sin().sum(), wanted)
    ):
        torch.testing.assert_close(a, b)


def test_offsets_start_in_the_heads_directions():
    attn = DeformableAttention(16, levels=1, heads=8, points=2)
    at = attn.places(torch.randn(1, 1, 16), torch.zeros(1, 2), [(1, 1)])[
        0, 0, :, 0
    ]  # [heads, points, xy], in pixels
    angle = torch.atan2(at[..., 1], at[..., 0]) % (2 * math.pi)
    torch.testing.assert_close(angle[:, 0], torch.arange(8) * math.pi / 4, atol=1e-5, rtol=0)
    torch.testing.assert_close(at.abs().amax(-1), torch.tensor([1.0, 2.0]).expand(8, 2))


@pytest.mark.parametrize(
    'options', [dict(), dict(spec='code'), dict(num_classes=4), dict(levels=3, upsample='after')]
)
def test_one_step_lowers_the_loss(options):
    model, (frames, mel) = small(dropout=0.0, **options), inputs()
    model.eval()  # the backbone's batch statistics would change the loss as well
    for layer in model.encoder.layers:  # whose maps start at zero, so that positions have no gradient
        for linear in (layer.attn.offsets, layer.attn.weights):
            torch.nn.init.normal_(linear.weight, std=0.1)
    target = (torch.rand(2, 3, 40, 56) < 0.3).long()
    supervised = torch.tensor([[True, False, False], [True] * 3])

    def loss():
        return weighted_loss(model, model(frames, mel), target, supervised, model.loss)

    before = loss()
    before['total'].backward()
    idle = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert idle == model.dead_parameters()
    with torch.no_grad():
        for p in model.trainable():
            if p.grad is not None:
                p -= 1e-3 * p.grad
    after = loss()
    assert after['total'] < before['total']
    torch.testing.assert_close(
        after['total'], after['dice_squared' if model.num_classes == 1 else 'ce'] + 0.1 * after['mix']
    )


@pytest.mark.parametrize('spec', ['paper', 'code'])
def test_frames_are_independent(spec):
    model, order = small(spec=spec).eval(), [2, 0, 1]
    with torch.no_grad():
        f = model.encode(*inputs())
        shuffled = Features([v[:, order] for v in f.visual], f.audio_vector[:, order], f.audio_map[:, order])
        whole = model.decode(f, (40, 56)).logits
        torch.testing.assert_close(
            model.decode(shuffled, (40, 56)).logits, whole[:, order], atol=1e-5, rtol=1e-4
        )
        for T in (1, 10):
            assert model(*inputs(1, T)).logits.shape == (1, T, 1, 40, 56)
        deaf = Features(f.visual, torch.zeros_like(f.audio_vector), f.audio_map)
        assert (model.decode(deaf, (40, 56)).logits - whole).abs().max() > 1e-4


def test_one_audio_token_gives_all_queries_one_vector():
    model = small(dropout=0.0)
    cross = model.generator.layers[0].cross_attn
    token = torch.randn(2, 1, 16)
    got = cross(torch.randn(2, 5, 16), token, token, need_weights=False)[0]
    torch.testing.assert_close(
        got, F.linear(F.linear(token, cross.in_proj_weight[32:]), cross.out_proj.weight).expand(2, 5, 16)
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(mixer='softmax'),
        dict(levels=1),
        dict(dim=20),
        dict(upsample='no'),
        dict(spec='release'),
        dict(tokens=3),
    ],
)
def test_options_that_do_not_exist(options):
    with pytest.raises(InputError):
        small(**options)
