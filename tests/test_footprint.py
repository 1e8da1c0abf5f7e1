"What a training step needs in memory, counted without computing, and what recomputing saves."

from contextlib import nullcontext

import pytest
import torch

from avsrepro.core.errors import InputError
from avsrepro.models import create_model
from avsrepro.models.registry import model_class
from avsrepro.nn.recompute import recomputed, recomputed_parts
from avsrepro.train.batches import Batch
from avsrepro.train.footprint import (
    ROOM,
    Footprint,
    StepCounter,
    _group_left,
    _system_left,
    fit_step,
    free_memory,
)
from avsrepro.train.steps import weighted_loss
from avsrepro.train.store import RunSpec

DATA = dict(source='procedural', config=dict(bank='procedural', size=64), key='1')

PVT = dict(
    backbone='pvt_v2_b0',
    backbone_options=dict(
        embed_dims=(16, 32, 40, 64),
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(2, 2, 2, 2),
        drop_path_rate=0.3,
        proj_drop_rate=0.2,
    ),
)
RESNET = dict(backbone='test_resnet', backbone_options=dict(zero_init_last=False, drop_path_rate=0.3))
SWIN = dict(
    backbone='swin_tiny_patch4_window7_224',
    backbone_options=dict(
        img_size=64, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=2
    ),
)
CASES = [
    ('sdavs', 'tiny', RESNET),
    ('sdavs', 'tiny', SWIN),
    ('tpavi', 'tiny', RESNET),
    ('tpavi', 'tiny', PVT),
    ('avsegformer', 'tiny', PVT),
    ('selm', 'inside', PVT),
    ('selm', 'tiny', RESNET),
    ('ddeseg', 'inside', PVT),
    ('ddeseg', 'levels', RESNET),
]
NAMES = [f'{model}-{tiny}-{trunk["backbone"]}' for model, tiny, trunk in CASES]


def build(name, tiny, trunk, classes=1):
    torch.manual_seed(0)
    options = dict(model_class(name).tiny[tiny]) | trunk
    model = create_model(name, audio='vggish_small', num_classes=classes, **options)
    for p in model.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.1)  # a map that starts at zero would hide what is before it
    return model.train()


def batch_of(clips, T, size, classes):
    g = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (clips, T, 3, size, size), generator=g, dtype=torch.uint8)
    target = torch.randint(0, max(classes, 2), (clips, T, size, size), generator=g, dtype=torch.uint8)
    mel = torch.randn(clips, T, 1, 96, 64, generator=g)
    return Batch(['a'] * clips, (frames, mel), target, torch.ones(clips, T, dtype=torch.bool))


def in_double(model):
    "All but the audio encoder, which hears in float32 whatever it is given."
    model.double().audio.float()
    model.audio.register_forward_hook(lambda m, x, out: tuple(t.double() for t in out))


def step(case, twice, amp=False):
    "Loss, gradients, buffers and the next random number after a step."
    model, batch = build(*case), batch_of(2, 2, 64, 1)
    if not amp:
        in_double(model)
    torch.manual_seed(3)
    with recomputed(model) if twice else nullcontext():
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            output = predict_as_given(model, batch, torch.float32 if amp else torch.float64)
        loss = weighted_loss(model, output, batch.target.long(), batch.supervised, model.loss)['total']
        loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), grads, dict(model.named_buffers()), torch.rand(1), model


def predict_as_given(model, batch, dtype=torch.float32):
    "`predict`, whose autocast would depend on the processor."
    frames, mel = batch.inputs
    encoded = model.encode(model.normalise(frames).to(dtype), mel)
    return model.decode(encoded, tuple(frames.shape[-2:]))


@pytest.mark.parametrize('amp', [False, True], ids=['float64', 'bf16'])
@pytest.mark.parametrize('case', CASES, ids=NAMES)
def test_a_recomputed_step_is_the_same(case, amp):
    """Loss, every gradient, running statistics and the noise that follows.

    The same operations run on the same numbers; only the order in which gradients of a shared tensor are
    added may differ, which is rounding: of float64, or of bf16."""
    plain, twice = step(case, False, amp), step(case, True, amp)
    assert plain[0] == twice[0] and plain[3] == twice[3]
    scale = max(g.abs().max() for g in plain[1].values() if g is not None)
    assert scale > 0
    for n, g in plain[1].items():
        assert (g is None) == (twice[1][n] is None), n
        if g is not None:
            error = (g - twice[1][n]).abs().max() / max(g.abs().max(), 1e-3 * scale)
            assert error < (2e-2 if amp else 1e-10), (n, error.item())
    for n, b in plain[2].items():
        assert torch.equal(b, twice[2][n]), n


@pytest.mark.parametrize('case', CASES, ids=NAMES)
def test_most_of_a_model_is_recomputed(case):
    "Blocks of the trunk and parts of the decoder; nothing twice, and no name changes."
    model = build(*case)
    parts, names = recomputed_parts(model), list(model.state_dict())
    inside = [m for part in parts for m in part.modules() if m is not part]
    assert not {id(m) for m in inside} & {id(p) for p in parts} and len({id(p) for p in parts}) == len(parts)
    trunk = {id(m) for m in model.visual.modules()}
    assert sum(id(p) in trunk for p in parts) >= 4 and any(id(p) not in trunk for p in parts)
    with recomputed(model):
        assert list(model.state_dict()) == names
    assert not any('forward' in vars(m) for m in model.modules())


def allocated(work):
    "The most that PyTorch's allocator held more than before, by its own events, while `work` ran."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
        work()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == '[memory]']
    now = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        most = max(most, now)
    return most


def spec_of_case(name, tiny, trunk, **train):
    options = dict(model_class(name).tiny[tiny], audio='vggish_small') | trunk
    return RunSpec(setting='avss', model=name, options=dict(options, num_classes=6), data=DATA, train=train)


def work_of(model, batch):
    output = predict_as_given(model, batch)
    weighted_loss(model, output, batch.target.long(), batch.supervised, model.loss)['total'].backward()


ONE_EACH = [i for i, (name, *_) in enumerate(CASES) if name not in [c[0] for c in CASES[:i]]]


@pytest.mark.parametrize('i', ONE_EACH, ids=[NAMES[i] for i in ONE_EACH])
def test_the_count_is_what_the_allocator_gives(i):
    """Of a step on the CPU, forward and backward, as it is and recomputed.

    Not counted are buffers inside kernels (convolutions of oneDNN reorder weights and inputs, matrix
    products copy), and the loss keeps a second mask where the count supposes void pixels: a fifth, and a
    MiB for small buffers, are allowed."""
    counter = StepCounter(spec_of_case(*CASES[i]), frames=4, size=(64, 64))
    model, batch = build(*CASES[i], classes=6), batch_of(2, 4, 64, 6)
    work_of(model, batch)  # the first time, kernels make what they keep
    found = {}
    for twice in (False, True):
        model.zero_grad(set_to_none=True)
        with recomputed(model) if twice else nullcontext():
            real = allocated(lambda: work_of(model, batch))
        found[twice] = real, counter.step(2, twice).peak
    for real, counted in found.values():
        assert 0.8 * real - 2**20 < counted < 1.2 * real + 2**20, found


class Linear:
    "A counter of steps that need 10 MiB and 10 a clip, or 2 a clip when recomputed; gradients of 1 MiB."

    def __init__(self, spec, *args, **kw):
        self.model = build(*CASES[4 if spec.model == 'avsegformer' else 0])

    def step(self, clips, recompute=False):
        return Footprint(4 * MIB, MIB, 2 * MIB, 0, 0, 4 * MIB + (2 if recompute else 10) * MIB * clips)


MIB = 2**20


def test_a_step_fits_as_cheaply_as_it_can(monkeypatch):
    "Whole, then recomputed, then fewer clips at a time, whose gradients lie beside them."
    monkeypatch.setattr('avsrepro.train.footprint.StepCounter', Linear)
    spec = spec_of_case('avsegformer', 'tiny', PVT, batch_size=6)
    for need, clips, again in ((70, 6, False), (22, 6, True), (17, 3, True), (15, 2, True), (13, 1, True)):
        assert fit_step(spec, int(ROOM * need * MIB) + 1) == dict(micro_batch=clips, recompute=again)
    assert fit_step(spec, int(ROOM * 70 * MIB) - 1)['recompute']
    with pytest.raises(
        InputError, match='77.0 MiB, with blocks computed twice and 1 clip at a time 14.3 MiB'
    ):
        fit_step(spec, int(ROOM * 13 * MIB) - 1)


def test_batch_norm_keeps_clips_together(monkeypatch):
    monkeypatch.setattr('avsrepro.train.footprint.StepCounter', Linear)
    spec = spec_of_case('sdavs', 'tiny', RESNET, batch_size=6)
    assert fit_step(spec, int(ROOM * 22 * MIB) + 1) == dict(micro_batch=6, recompute=True)
    with pytest.raises(InputError, match='BatchNorm .*so its clips stay together'):
        fit_step(spec, int(ROOM * 22 * MIB) - 1)


def test_free_memory(tmp_path):
    "What the system gives, or what a limit leaves."
    assert 2**26 < free_memory('cpu') <= 2**62
    (tmp_path / 'memory.max').write_text('max\n')
    (tmp_path / 'memory.current').write_text('300\n')
    assert _group_left(tmp_path) is None
    (tmp_path / 'memory.max').write_text('1000\n')
    assert _group_left(tmp_path) == 700
    (tmp_path / 'meminfo').write_text('MemTotal:  9 kB\nMemAvailable:    5 kB\n')
    assert _system_left(tmp_path / 'meminfo') == 5120
