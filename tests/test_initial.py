"""Rows of an ablation with one seed start from the same weights wherever they share a part."""

import pytest
import torch

from avsrepro.models import create_model, list_models
from avsrepro.models.registry import model_class
from avsrepro.nn.initial import build_by_name, drawn_names

ENCODERS = dict(backbone='test_resnet', audio='vggish_small', frozen=('visual', 'audio'))
OWN_START = ('.A_log', 'stem.scale')  # matrices that start from a formula, not from random numbers
LESS = dict(
    sdavs=[dict(snrp=False), dict(damf=False), dict(stc=False), dict(direction='a2v'), dict(cfs=False)],
    selm=[dict(doublings=0)],
    tpavi=[dict(attention='plain')],
    avsegformer=[dict(mixer='pixels')],
    ddeseg=[dict(mlp_ratio=2)],
)


def maker(name, **changed):
    tiny = next(iter(model_class(name).tiny.values()))
    return lambda: create_model(name, **{**ENCODERS, **tiny, **changed})


def parameters(model):
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('name', list_models())
def test_every_matrix_is_drawn_by_name(name):
    drawn = set(drawn_names(maker(name)))
    left = [k for k, p in parameters(maker(name)()).items() if p.ndim > 1 and k not in drawn]
    assert all(k.endswith(OWN_START) for k in left), left


@pytest.mark.parametrize('name', list_models())
def test_shared_parts_start_equal(name):
    whole, other = (parameters(build_by_name(maker(name), seed)) for seed in (0, 1))
    assert any(not torch.equal(whole[k], other[k]) for k in whole)
    for options in LESS[name]:
        less = parameters(build_by_name(maker(name, **options), 0))
        shared = [k for k in less if k in whole and less[k].shape == whole[k].shape]
        assert len(shared) > 20 and all(torch.equal(less[k], whole[k]) for k in shared), options
