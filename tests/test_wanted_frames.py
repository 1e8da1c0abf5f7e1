"A model that decodes the supervised frames alone has the loss and the gradients of one that decodes all."

import pytest
import torch
from torch import nn

from avsrepro.models import create_model
from avsrepro.models.base import all_frames, some_frames
from avsrepro.models.guided import guided
from avsrepro.nn.features import Features
from avsrepro.train.batches import Batch
from avsrepro.train.steps import batch_loss
from avsrepro.train.store import TrainConfig

PVT = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])
SELM = dict(dim=16, heads=2, blocks=1, dropout=0.0, noise='never', inside=False, image_size=64)
SELM |= dict(queries=4, decoder_layers=1)
CASES = [
    ('sdavs', dict(dim=32, tokens=4)),
    ('sdavs', dict(dim=32, tokens=4, damf=False)),
    ('sdavs', dict(dim=32, tokens=4, snrp_position='after', stc=False, direction='v2a')),
    ('tpavi', dict(dim=16, gamma=1.0)),
    ('tpavi', dict(dim=16, gamma=1.0, inplace=False, group=2, spec='code')),
    ('avsegformer', dict(dim=16, queries=4, layers=1, heads=2, points=2)),
    ('avsegformer', dict(dim=16, queries=4, layers=1, heads=2, points=2, levels=3, spec='code')),
    ('selm', SELM),
    ('selm', SELM | dict(spec='code')),
    ('selm', SELM | dict(clever='avsegformer', bcsm='none')),
    ('ddeseg', dict(dim=32, depths=(1, 1, 1, 1), heads=4, hidden=32, memory_shape=(6, 2, 3), gumbel='never')),
]


def made(name, options, classes=1):
    torch.manual_seed(0)
    given = dict(audio='vggish_small', frozen=('audio', 'visual'), num_classes=classes)
    model = create_model(name, 'pvt_v2_b0', backbone_options=PVT, **given, **options).double().train()
    for m in model.modules():
        if isinstance(m, (nn.Dropout, nn.Dropout2d)):
            m.p = 0.0
        if isinstance(m, nn.MultiheadAttention):
            m.dropout = 0.0
    return model


def a_batch(model, supervised, classes):
    B, T = supervised.shape
    maps = [torch.randn(B, T, c, n, n).double() for c, n in zip(PVT['embed_dims'], (16, 8, 4, 2))]
    vector = torch.randn(B, T, model.audio.dim).double()
    amap = torch.randn(B, T, model.audio.map_channels, 6, 4).double()
    target = torch.randint(0, max(classes, 2), (B, T, 64, 64)).to(torch.uint8)
    return Batch(list(map(str, range(B))), Features(maps[-model.levels :], vector, amap), target, supervised)


def gradients(model, batch, stride):
    model.zero_grad(set_to_none=True)
    terms = batch_loss(model, batch, TrainConfig.of(dict(loss_stride=stride)))
    terms['total'].backward()
    return terms, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compared(model, supervised, classes, stride, monkeypatch):
    batch = a_batch(model, supervised, classes)
    some = gradients(model, batch, stride)
    monkeypatch.setattr(type(model), 'wanted', lambda self, features: None)
    every = gradients(model, batch, stride)
    for name, value in every[0].items():
        torch.testing.assert_close(some[0][name], value, rtol=1e-10, atol=1e-10)
    assert any(g.abs().max() > 0 for g in every[1].values())
    for name, g in every[1].items():
        have = some[1].get(name, torch.zeros_like(g))
        assert (have - g).norm() <= 1e-9 * max(g.norm(), 1e-3), name


SOME = torch.tensor([[True, False, False], [False, True, True]])


@pytest.mark.parametrize('classes, stride', [(1, 4), (3, 1)])
@pytest.mark.parametrize('name, options', CASES)
def test_loss_and_gradients(name, options, classes, stride, monkeypatch):
    compared(made(name, options, classes), SOME, classes, stride, monkeypatch)


def test_a_guided_model_hears_all_frames(monkeypatch):
    compared(guided(made('avsegformer', CASES[5][1])).double().train(), SOME, 1, 4, monkeypatch)


def test_no_supervised_frame_at_all(monkeypatch):
    model = made('avsegformer', CASES[5][1])
    terms, _ = gradients(model, a_batch(model, torch.zeros_like(SOME), 1), 4)
    assert terms['total'] == 0


def test_frames_that_are_tapped_are_all_decoded():
    model = made('sdavs', CASES[0][1])
    batch = a_batch(model, SOME, 1)
    batch.inputs.wanted = SOME
    with torch.no_grad():
        few = model.decode(batch.inputs).logits
        with model.taps('fus_out') as caught:
            all_of_them = model.decode(batch.inputs).logits
    assert caught['fus_out'].shape[:2] == (2, 3) and (few[~SOME] == 0).all()
    assert (all_of_them[~SOME] != 0).any()
    torch.testing.assert_close(few[SOME], all_of_them[SOME], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('by_pixel', [True, False])
def test_some_and_all(by_pixel):
    x = torch.randn(6, 3, 2, 4)
    x = x.contiguous(memory_format=torch.channels_last) if by_pixel else x
    which = torch.tensor([1, 4, 5])
    y = some_frames(x, which)
    assert y.equal(x[which]) and y.stride() == x.stride()
    whole = all_frames(y, which, 2, 3).flatten(0, 1)
    assert whole[which].equal(y) and (whole[[0, 2, 3]] == 0).all()
