"Every model x every value of its choices x two trunks: shape, gradients, clips that do not mix, and hearing."

from dataclasses import dataclass

import pytest
import torch

from avsrepro.core.errors import InputError
from avsrepro.models import create_model, list_models
from avsrepro.models.registry import model_class, model_module, model_options

# two families of trunks; the second is one that a sound can enter
TRUNKS = dict(
    test_resnet=dict(zero_init_last=False),  # residual branches that start at zero would hide gradients
    pvt_v2_b0=dict(
        embed_dims=(16, 32, 40, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(2, 2, 2, 2)
    ),
)
SIZE = 64


@dataclass(frozen=True)
class Case:
    "One model to build: its class's smallest sizes `tiny`, a `spec`, and one option that is not as usual."

    model: str
    tiny: str
    spec: str
    trunk: str
    option: str = ''
    value: object = None

    def __str__(self) -> str:
        asked = f'{self.option}={self.value}' if self.option else 'as it is'
        return f'{self.model}-{self.tiny}-{self.spec}-{asked}-{self.trunk}'


def cases() -> list[Case]:
    "All of them, read off the classes; a value that changes nothing is left out."
    found = []
    for name in list_models():
        cls = model_class(name)
        for tiny, sizes in cls.tiny.items():
            for spec in cls.specs:
                usual, varied = cls.settle(spec, **sizes), [('', None)]
                for option, values in cls.choices.items():
                    varied += [(option, v) for v in values if v != getattr(usual, option)]
                for option, value in varied:
                    found += [Case(name, tiny, spec, trunk, option, value) for trunk in TRUNKS]
    return found


def build(case: Case):
    """The model of a case; None where its options exclude each other.

    In double precision, so that rounding is taken neither for a gradient nor for hearing.
    """
    torch.manual_seed(0)
    options = dict(model_class(case.model).tiny[case.tiny])
    if case.option:
        options[case.option] = case.value
    if len(model_class(case.model).specs) > 1:
        options['spec'] = case.spec
    encoders = dict(backbone=case.trunk, backbone_options=TRUNKS[case.trunk], audio='vggish_small')
    try:
        model = create_model(case.model, **encoders, **options)
    except InputError:
        return None
    model.audio.embeddings[-2].weight.data *= 50  # layers with random weights hear next to nothing
    for p in model.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.1)  # a map that starts at zero would hide what is before it
    model.audio.mono = lambda mel: mel  # it would make single precision of it
    return model.double().eval()


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "The tensors are so small that threads would only wait for each other."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def clips():
    g = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 2, 3, SIZE, SIZE, generator=g, dtype=torch.double)
    return frames, torch.randn(2, 2, 1, 96, 64, generator=g, dtype=torch.double)


CASES = cases()
SEEN, BUILT = set(), set()  # cases that were tried in this run, and what of them could be built


@pytest.mark.parametrize('case', CASES, ids=str)
def test_model(case, clips):
    model, (frames, mel) = build(case), clips
    SEEN.add(case)
    if model is None:
        pytest.skip('these options exclude each other')
    BUILT.update((case.model, option, getattr(model.options, option)) for option in model.choices)
    with torch.no_grad():
        z = model(frames, mel).logits
        alone = torch.cat([model(frames[i : i + 1], mel[i : i + 1]).logits for i in range(2)])
        moved = (model(frames, mel.flip(0)).logits - z).abs().max()
    assert z.shape == (2, 2, 1, SIZE, SIZE) and z.isfinite().all()
    assert ((alone - z).abs().max() > 1e-11 * z.std()) == bool(model.mixes_clips())
    assert (moved < 1e-11 * z.std()) == bool(model.deaf())
    still = without_gradient(model, frames, mel)
    if still != model.dead_parameters():  # a ReLU may be shut for two clips by chance
        still = without_gradient(model, -frames, mel)
    assert still == model.dead_parameters()


def without_gradient(model, frames, mel) -> list[str]:
    "Names of the trainable parameters that no gradient of any loss has reached so far, but for rounding."
    torch.manual_seed(2)
    model.train()  # a hard assignment has a gradient in training only
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()  # in training it takes away what a bias before it adds
    out = model(frames, mel)
    target = (torch.rand(out.logits[:, :, 0].shape) < 0.3).long()
    own = model.own_losses(out, target, torch.ones(target.shape[:2], dtype=torch.bool))
    ((out.logits * torch.randn_like(out.logits)).sum() + sum(own.values())).backward()
    assert all(p.grad is None for p in model.audio.parameters())  # frozen
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    size = {n: 0.0 if g is None else g.abs().max().item() for n, g in trained.items()}
    return [n for n, s in size.items() if s <= 1e-12 * max(size.values())]


def test_every_choice_could_be_built():
    if len(SEEN) < len(CASES):
        pytest.skip('not all models were tested in this run')
    for name in list_models():
        for option, values in model_class(name).choices.items():
            assert {(name, option, v) for v in values} <= BUILT


@pytest.mark.parametrize('name', list_models())
def test_registry(name):
    cls = model_class(name)
    assert cls.name == name and model_module(name) == f'avsrepro.models.{name}'
    assert set(cls.choices) | set(cls.needs) <= set(model_options(name))
    for sizes in cls.tiny.values():
        assert set(sizes) <= set(model_options(name))
    for spec, decided in cls.specs.items():
        assert all(cls.settle(spec, **{k: v}) == cls.settle(spec) for k, v in decided.items())
    with pytest.raises(InputError):
        create_model(name, 'test_resnet', audio='vggish_small', nonsense=1)
