"TPAVI: its published size, both forms of its attention, its gradients and its matching loss."

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import avsrepro.models.tpavi  # noqa: F401, registers itself
from avsrepro.core.errors import InputError
from avsrepro.models import create_model
from avsrepro.models.tpavi import Interaction, attend_cheap, attend_plain

VARIANTS = dict(
    paper={},
    code=dict(spec='code'),
    plain=dict(attention='plain'),
    three=dict(levels=3, upsample=1),
    one=dict(levels=1, upsample=0),
    classes=dict(num_classes=7, spec='code'),
)
every = pytest.mark.parametrize('variant', VARIANTS)


def build(variant='paper', start=True, **options):
    "A tiny model; `start=False` leaves the identity start."
    torch.manual_seed(1)
    model = create_model(
        'tpavi',
        **{
            **dict(backbone='test_resnet', audio='vggish_small', dim=16, frozen=('audio', 'visual')),
            **VARIANTS[variant],
            **options,
        },
    )
    if not start:
        for block in model.tpavi:
            nn.init.normal_(block.norm_z.weight, 1.0, 0.2)
    return model.eval()


def clips(B=2, T=3, H=64, W=64):
    g = torch.Generator().manual_seed(2)
    return torch.randn(B, T, 3, H, W, generator=g), torch.randn(B, T, 1, 96, 64, generator=g)


def test_published_size():
    with torch.device('meta'):
        model = create_model('tpavi', 'pvt_v2_b5', audio='vggish', spec='code')

    def count(m):
        return sum(p.numel() for p in m.parameters())

    parts = [count(getattr(model, k)) for k in ('visual', 'aspp', 'decoder', 'tpavi', 'head')]
    assert [round(n / 1e6, 3) for n in parts] == [81.443, 9.441, 9.441, 0.663, 0.332]
    assert sum(parts) == 101_320_577 and sum(parts) + count(model.audio) == count(model)
    with torch.device('meta'):
        paper = create_model('tpavi', 'pvt_v2_b5', audio='vggish')
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert (
        count(model) - count(paper)
        == sum(sizes[n] for n in model.dead_parameters())
        == 2 * (9 * 256 * 256 + 256)
        and not paper.dead_parameters()
    )


@pytest.mark.parametrize('T', (1, 5, 10))
@pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
def test_both_forms_of_the_sum(T, dtype):
    g = torch.Generator().manual_seed(T)
    leaves = [
        torch.randn(*s, generator=g, dtype=dtype).requires_grad_()
        for s in ((2, T, 12, 8), (2, T, 8), (2, T, 12, 8))
    ]
    plain, cheap = attend_plain(*leaves), attend_cheap(*leaves)
    torch.testing.assert_close(plain, cheap, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (plain, cheap))):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('T', (1, 5, 10))
@pytest.mark.parametrize('training', (True, False))
def test_both_forms_of_the_block(T, training):
    torch.manual_seed(T)
    forms = [Interaction(8, 16, kind, gamma=1.0).double().train(training) for kind in ('plain', 'cheap')]
    forms[1].load_state_dict(forms[0].state_dict())
    x, a, weight = (
        torch.randn(2, T, *s, dtype=torch.double).requires_grad_() for s in ((16, 5, 7), (8,), (16, 5, 7))
    )
    out = [f(x, a)[0] for f in forms]
    torch.testing.assert_close(*out)
    for one, two in zip(
        *(torch.autograd.grad(z, [x, a, *f.parameters()], weight) for z, f in zip(out, forms))
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize('T', (1, 5, 10))
def test_both_forms_of_the_model(T):
    one, two = build(start=False), build('plain', start=False)
    two.load_state_dict(one.state_dict())
    frames, mel = clips(1, T)
    with torch.no_grad():
        torch.testing.assert_close(one(frames, mel).logits, two(frames, mel).logits, atol=1e-5, rtol=1e-5)


@every
def test_gradients_reach_all_but_the_unused(variant):
    model, supervised = build(variant, start=False), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    out = model(*clips())
    own = model.own_losses(out, torch.zeros(2, 3, 64, 64, dtype=torch.long), supervised)
    ((out.logits * torch.randn_like(out.logits)).sum() + own['avm']).backward()
    assert [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ] == model.dead_parameters()
    assert all(p.grad is None for e in (model.visual, model.audio) for p in e.parameters())


@every
def test_clips_are_independent_and_heard(variant):
    model, (frames, mel) = build(variant, start=False), clips()
    with torch.no_grad():
        both = model(frames, mel).logits
        assert both.shape == (2, 3, model.num_classes, 64, 64) and both.isfinite().all()
        torch.testing.assert_close(
            both,
            torch.cat([model(frames[i : i + 1], mel[i : i + 1]).logits for i in range(2)]),
            atol=1e-5,
            rtol=1e-4,
        )
        f = model.encode(frames, mel)
        f.audio_vector = torch.rand_like(f.audio_vector)
        assert (model.decode(f, (64, 64)).logits - both).abs().max() > 1e-4
        deaf = build(variant)
        torch.testing.assert_close(
            deaf.decode(f, (64, 64)).logits, deaf(frames, mel).logits
        )  # identity start


@pytest.mark.parametrize('classes', (1, 7))
def test_matching_against_a_loop(classes):
    model, supervised = build(num_classes=classes, start=False), torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()
    with torch.no_grad():
        out = model(*clips())
    total = 0.0
    for level, sound in zip(out.aux['fused'], out.aux['sounds']):
        for b, t in supervised.nonzero().tolist():
            z = out.logits[b, t] if classes == 1 else (out.logits[b, t].argmax(0) != 0).float()[None]
            mask = F.adaptive_avg_pool2d(z, level.shape[-2:])[0]
            mask = mask.sigmoid() if classes == 1 else mask
            seen, heard = (
                torch.stack([(c * mask).mean() for c in level[b, t]]).softmax(0),
                sound[b, t].softmax(0),
            )
            total += sum(p * (p / q).log() for p, q in zip(heard.tolist(), seen)) / 4
    if classes > 1:
        total = total / supervised.sum()
    target = torch.zeros(2, 3, 64, 64, dtype=torch.long)
    torch.testing.assert_close(model.own_losses(out, target, supervised)['avm'], total, atol=1e-6, rtol=1e-4)
    assert model.own_losses(out, target, torch.zeros_like(supervised))['avm'] == 0


@pytest.mark.parametrize(
    'options', (dict(attention='cheep'), dict(levels=5), dict(dim=15), dict(upsample=3), dict(spec='cod'))
)
def test_mistakes_are_errors(options):
    with pytest.raises(InputError) as caught:
        build(**options)
    assert '\n' not in str(caught.value)
