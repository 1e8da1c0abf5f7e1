"One short run of every method through profile `paper`, on a folder in the layout of AVSBench at 64 pixels."

import os
from dataclasses import replace

import pytest

from avsrepro.data.loading import write_generated
from avsrepro.experiments.plan import plan
from avsrepro.experiments.prepare import prepare
from avsrepro.experiments.profiles import with_changes
from avsrepro.experiments.registry import experiments
from avsrepro.train.running import run
from avsrepro.train.store import RunStore

TINY_PVT = (
    '{embed_dims: [16, 32, 64, 128], depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], drop_path_rate: 0.1}'
)
ENCODERS = [
    'pretrain={visual: {size: 48, crop: 48, amount: 4, epochs: 1}, audio: {amount: 2, epochs: 1}}',
    f'encoders.avsbench={{backbone: pvt_v2_b0, backbone_options: {TINY_PVT}, visual_weights: pretrain, '
    'audio: vggish_small, audio_weights: pretrain, frozen: [audio]}',
    f'variants.pvt={{backbone: pvt_v2_b0, backbone_options: {TINY_PVT}, visual_weights: pretrain}}',
    f'variants.mit={{backbone: mit_b0, backbone_options: {TINY_PVT}, visual_weights: pretrain}}',
    'train={s4: {workers: 2}, ms3: {workers: 2}}',
]
MODELS = [
    'model.sdavs={dim: 16, tokens: 4}',
    'model.tpavi={dim: 16}',
    'model.avsegformer={dim: 16, queries: 4, layers: 1, points: 2, heads: 2}',
    'model.selm={dim: 16, heads: 2, blocks: 1}',
    'model.ddeseg={heads: 4, head_dim: 16, hidden: 32}',
]
METHODS = {  # experiment, row, setting; the recipe's values that are cut to size
    'tpavi': ('sdavs', 'tab01', 'TPAVI [1] (PVT-v2)', 's4', dict(epochs=2)),
    'avsegformer': ('sdavs', 'tab01', 'AVSegFormer [4] (PVT-v2)', 'ms3', dict(epochs=3, thaw=1)),
    'selm': ('selm', 'tab03', 'SelM', 's4', dict(epochs=2, options='{doublings: 1, image_size: [96, 96]}')),
    'ddeseg': ('ddeseg', 'tab01', 'DDESEG (OURS) (Trans., VGGish)', 's4', dict()),
    'sdavs': ('sdavs', 'tab03', 'SDAVS(Ours)', 'ms3', dict(epochs=2)),
    'avsegformer in robust': ('robust', 'tab02', 'AVSegFormer + Ours', 's4', dict(epochs=2, thaw=1)),
}
SIZES = {
    'selm': dict(size='[96, 96]', mask_size='[48, 48]'),
    'ddeseg': dict(size='[64, 64]', epochs=3, batch_size=2, test_batch=2),
}


def changes_of(method: str) -> list[str]:
    model = method.split()[0]
    paper, _, _, setting, cut = METHODS[method]
    sizes = SIZES.get(model, dict(size='[64, 64]'))
    out = [f'recipes.{model}.all.{k}={v}' for k, v in sizes.items()]
    out += [f'recipes.{model}.{setting}.{k}={v}' for k, v in cut.items()]
    return [*ENCODERS, *MODELS, *out]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A generated AVSBench of a few clips, and an empty cache."
    kept = dict(os.environ)
    os.environ['AVSREPRO_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    folder = tmp_path_factory.mktemp('data') / 'AVSBench'
    yield write_generated(folder, ['s4', 'ms3'], jobs=1, size=64, train=6, val=2, test=3)
    os.environ.clear()
    os.environ.update(kept)


def spec_of(method: str, root):
    paper, table, row, setting, _ = METHODS[method]
    profile = with_changes('paper', changes_of(method))
    whole = experiments()[paper, table]
    alone = next(r for r in whole.rows if r.name == row)
    one = replace(whole, rows=(alone,), reference=row, settings=(setting,))
    return plan(one, profile, str(root), seeds=[0])[0]


@pytest.mark.parametrize('method', METHODS)
def test_a_method_trains_by_its_recipe(method, root, tmp_path):
    spec = spec_of(method, root)
    prepare([spec], jobs=1, progress=False)
    seen, stopped = [], RunStore(tmp_path / 'stopped')

    def stop(done: int, of: int) -> None:
        seen.append(done)
        if done == 1 and len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, stopped, report=stop)
    resumed = run(spec, stopped)
    whole = run(spec, RunStore(tmp_path / 'whole'))
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert {k: a[k] for k in a if k != 'seconds'} == {k: b[k] for k in b if k != 'seconds'}
    assert resumed.scores == whole.scores and len(whole.scores) == 3
    assert len(whole.history) == spec.config.epochs
    rates = [h['lr'] for h in whole.history]
    if spec.config.schedule == 'none':
        assert set(rates) == {spec.config.lr}
    else:
        assert rates[-1] < spec.config.lr


def test_the_trunk_of_avsegformer_rests_and_thaws(root, tmp_path):
    import torch

    from avsrepro.train import engine
    from avsrepro.train.optimising import make_optimizer
    from avsrepro.train.running import untrained_model

    spec = spec_of('avsegformer', root)
    model = untrained_model(spec)
    sources, optimizer = engine.make_sources(spec, model, open_here), make_optimizer(model, spec.config)

    def trunk():
        return torch.cat([p.flatten() for p in model.visual.parameters()]).clone()

    record, states = engine.NOTHING_DONE, [trunk()]
    for _ in range(2):
        record = engine.next_epoch(spec, model, sources, optimizer, record)
        states.append(trunk())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])


def open_here(data, setting):
    from avsrepro.data.loading import open_splits

    return open_splits(data, setting)


def test_the_sizes_of_selm(root):
    splits = open_here(spec_of('selm', root).data, 's4')
    clip = splits['test'][0]
    assert clip.frames.shape[-2:] == (96, 96) and clip.target.shape[-2:] == (48, 48)


def test_ddeseg_trains_on_single_supervised_frames(root):
    splits = open_here(spec_of('ddeseg', root).data, 's4')
    assert len(splits['train']) == 6 and splits['train'][0].frames.shape == (1, 3, 64, 64)
    assert splits['test'][0].frames.shape[0] == 5
