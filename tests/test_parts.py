"A step in parts has the gradients of the whole step, for every model."

from dataclasses import replace

import numpy as np
import pytest
import torch

from avsrepro.core.errors import InputError
from avsrepro.data.layouts import VOID
from avsrepro.models import create_model, list_models
from avsrepro.train.batches import Batch
from avsrepro.train.config import TrainConfig
from avsrepro.train.footprint import fitted
from avsrepro.train.steps import step_gradients
from avsrepro.train.store import RunSpec

torch.set_num_threads(1)

PVT = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])
SMALL = dict(
    sdavs=dict(dim=16, tokens=2),
    tpavi=dict(dim=16, gamma=1.0),
    avsegformer=dict(dim=16, queries=4, layers=1, heads=2, points=2, dropout=0.0),
    selm=dict(dim=16, heads=2, blocks=1, dropout=0.0, noise='never'),
    ddeseg=dict(heads=2, head_dim=16, hidden=32, dropout=0.0, gumbel='never', memory_shape=(6, 2, 2)),
)


def small(name: str, classes: int = 1, **options):
    backbone = dict(backbone='mit_b0' if name == 'ddeseg' else 'pvt_v2_b0', backbone_options=PVT)
    torch.manual_seed(0)
    return create_model(name, audio='vggish_small', num_classes=classes, **backbone, **SMALL[name], **options)


def batch_of(classes: int = 1, B: int = 3, T: int = 2, size: int = 64) -> Batch:
    "The first clip has one supervised frame, the others all; some pixels are void."
    g = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (B, T, 3, size, size), dtype=torch.uint8, generator=g)
    mel = torch.randn(B, T, 1, 96, 64, generator=g)
    target = torch.randint(0, max(classes, 2), (B, T, size, size), generator=g).to(torch.uint8)
    target[:, :, :4] = VOID
    supervised = torch.ones(B, T, dtype=torch.bool)
    supervised[0, 1:] = False
    target[0, 1:] = VOID
    return Batch([f'clip{n}' for n in range(B)], (frames, mel), target, supervised)


def gradients(model, batch: Batch, **values):
    model.zero_grad(set_to_none=True)
    config = TrainConfig.of(values)
    terms = step_gradients(model, [batch], config, lambda: np.random.default_rng(0), ['test'])
    return terms, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(a, b) -> None:
    assert a[0].keys() == b[0].keys() and a[1].keys() == b[1].keys()
    torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
    for name, gradient in a[1].items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(gradient, b[1][name], rtol=1e-4, atol=2e-5 * max(largest, 1e-3), msg=name)


@pytest.mark.parametrize('classes', [1, 5])
@pytest.mark.parametrize('name', list_models())
def test_parts_have_the_gradients_of_the_whole(name, classes):
    model, batch = small(name, classes).train(), batch_of(classes)
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.eval()  # one that trains sees its part alone, so such a model is not cut: see below
    assert_same(gradients(model, batch), gradients(model, batch, micro_batch=1))


def test_parts_of_a_guided_model():
    guided = dict(similarity='cosine', weight=0.5)
    model, batch = small('avsegformer', guidance=guided).train(), batch_of()
    whole = gradients(model, batch)
    assert 'guidance' in whole[0]
    assert_same(whole, gradients(model, batch, micro_batch=2))


def test_a_model_whose_clips_stay_together_is_not_cut():
    options = dict(backbone='pvt_v2_b0', backbone_options=PVT, audio='vggish_small', **SMALL['tpavi'])
    run = RunSpec(setting='ms3', model='tpavi', options=options, data=dict(source='none'), train={})
    with pytest.raises(InputError, match='clips stay together'):
        fitted(replace(run, train=dict(micro_batch=1)), 'cpu')
