"Profile `paper` trains each method by its own recipe: held against the facts' table, planned, and run small."

import os
from dataclasses import replace

import pytest
from blank_weights import blank_weights

from avsrepro.core.errors import InputError
from avsrepro.experiments.plan import plan
from avsrepro.experiments.profiles import get_profile
from avsrepro.experiments.registry import experiments

ADAM, ADAMW = 'adam', 'adamw'

# Reference facts, sections 3 and 7, transcribed: method (with its backbone or spec), setting -> value.
# optimiser, rate, decay, schedule, batch, epochs, first seed, amp, frames, masks, frozen epochs
TABLE = {
    ('tpavi', 's4'): (ADAM, 1e-4, 0, 'none', 4, 15, 123, None, 224, 224, 0),
    ('tpavi', 'ms3'): (ADAM, 1e-4, 0, 'none', 4, 30, 123, None, 224, 224, 0),
    ('tpavi', 'avss'): (ADAM, 1e-4, 0, 'none', 4, 60, 123, None, 224, 224, 0),
    ('avsegformer', 's4'): (ADAMW, 2e-5, 0.01, 'none', 2, 30, 123, None, 512, 512, 5),
    ('avsegformer', 'ms3'): (ADAMW, 2e-5, 0.01, 'none', 2, 60, 123, None, 512, 512, 10),
    ('avsegformer', 'avss'): (ADAMW, 2e-5, 0.01, 'none', 4, 30, 123, None, 224, 224, 0),
    ('selm', 's4'): (ADAMW, 2e-5, 0.05, 'none', 4, 40, 123, None, 448, 224, 0),
    ('selm', 'ms3'): (ADAMW, 2e-5, 0.05, 'none', 4, 100, 123, None, 448, 224, 0),
    ('selm', 'avss'): (ADAMW, 2e-5, 0.01, 'none', 4, 30, 123, 'bf16', 224, 224, 0),
    ('selm code', 's4'): (ADAMW, 2e-5, 0.05, 'none', 2, 40, 123, None, 448, 224, 0),
    ('selm code', 'ms3'): (ADAMW, 2e-5, 0.05, 'none', 1, 100, 123, None, 448, 224, 0),
    ('selm code', 'avss'): (ADAMW, 2e-5, 0.01, 'none', 64, 30, 123, 'bf16', 224, 224, 0),
    ('selm resnet', 's4'): (ADAMW, 2e-5, 0.05, 'none', 4, 40, 123, None, 224, 224, 0),
    ('selm resnet', 'ms3'): (ADAMW, 2e-5, 0.05, 'none', 4, 100, 123, None, 448, 224, 15),  # section 6
    ('selm resnet', 'avss'): (ADAMW, 2e-5, 0.01, 'none', 4, 30, 123, 'bf16', 224, 224, 0),
    ('ddeseg', 's4'): (ADAMW, 1e-4, 0.05, 'cosine', 50, 150, 1, None, 224, 224, 0),
    ('ddeseg', 'ms3'): (ADAMW, 1e-4, 0.05, 'cosine', 50, 150, 1, None, 224, 224, 0),
    ('ddeseg', 'avss'): (ADAMW, 1e-4, 0.05, 'cosine', 50, 150, 1, None, 224, 224, 0),
    ('sdavs', 's4'): (ADAMW, 5e-5, 0.01, 'milestones', 4, 40, 0, None, 384, 384, 0),
    ('sdavs', 'ms3'): (ADAMW, 5e-5, 0.01, 'milestones', 4, 60, 0, None, 384, 384, 0),
    ('sdavs', 'avss'): (ADAMW, 5e-5, 0.01, 'milestones', 4, 40, 0, None, 384, 384, 0),
    ('robust tpavi', 's4'): (ADAM, 1e-4, 0, 'none', 4, 15, 123, None, 224, 224, 0),
    ('robust tpavi', 'ms3'): (ADAM, 1e-4, 0, 'none', 4, 30, 123, None, 224, 224, 0),
    ('robust avsegformer', 's4'): (ADAMW, 2e-5, 0.01, 'none', 1, 30, 123, None, 512, 512, 5),
    ('robust avsegformer', 'ms3'): (ADAMW, 2e-5, 0.01, 'none', 1, 60, 123, None, 512, 512, 10),
}
OURS = {  # what the facts' table marks as unknown or not said: the recipe has to name it, with a reason
    'sdavs': ('weight_decay', 'milestones', 'amp', 'seed', 'fit'),
    'selm': ('weight_decay', 'schedule', 'seed', 'amp'),
    'ddeseg': ('batch_size', 'epochs', 'select'),
    'avsegformer': ('thaw',),
    'tpavi in robust': ('seed', 'loss'),
}
ENCODERS = ('swin_base_patch4_window12_384', 'pvt_v2_b5', 'resnet50', 'mit_b5', 'vggish', 'htsat')
BACKBONES = {'': 'swin_base_patch4_window12_384', 'pvt': 'pvt_v2_b5', 'resnet': 'resnet50', 'mit': 'mit_b5'}


def kind_of(spec) -> str:
    "The line of the table that a run belongs to."
    if spec.paper == 'robust' and spec.model in ('tpavi', 'avsegformer'):
        return f'robust {spec.model}'
    if spec.model == 'selm':
        small = spec.options['backbone'] == 'resnet50'
        code = spec.options.get('spec') == 'code'
        return 'selm resnet' if small else 'selm code' if code else 'selm'
    return spec.model


def found_in(spec) -> tuple:
    c, view = spec.config, spec.data['view']
    frames = view['size'][0]
    masks = view.get('mask_size', view['size'])[0]
    sizes = frames, masks, c.thaw
    return c.optimizer, c.lr, c.weight_decay, c.schedule, c.batch_size, c.epochs, c.seed, c.amp, *sizes


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A folder with all published encoders, zero, of the right names and shapes; no network."
    folder, kept = tmp_path_factory.mktemp('weights'), dict(os.environ)
    for encoder in ENCODERS:
        blank_weights(folder, encoder)
    os.environ.update(AVSREPRO_WEIGHTS=str(folder), HF_HUB_OFFLINE='1')
    os.environ['AVSREPRO_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield folder
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope='module')
def planned(weights):
    return {e.table: (e, plan(e, 'paper')) for e in experiments().values()}


def own_training(spec, row) -> bool:
    "Whether a row asks for a training of its own beyond its loss, as a question about batches does."
    return bool(row.tuning) or bool(row.train.get(spec.setting, {}).keys() - {'loss'})


@pytest.fixture(scope='module')
def runs(planned):
    "(table, run, row) of every run whose recipe is that of its method."
    found = []
    for table, (e, specs) in planned.items():
        rows = {r.name: r for r in e.rows}
        found += [(table, s, rows[s.row]) for s in specs if not own_training(s, rows[s.row])]
    return found


def test_every_run_of_profile_paper_has_the_recipe_of_its_method(runs):
    differ, seen = [], set()
    for table, spec, _ in runs:
        line = kind_of(spec), spec.setting
        if line not in TABLE or (spec.paper in ('ddeseg', 'robust') and spec.model == 'sdavs'):
            continue  # VPO; and questions of ours about SDAVS at the sizes of those papers
        seen.add(line)
        if found_in(spec) != TABLE[line]:
            differ.append(f'{table} {spec.label}: {found_in(spec)}, wanted {TABLE[line]}')
    assert not differ, '\n'.join(differ[:20])
    assert set(TABLE) - seen == {('selm code', 's4'), ('selm code', 'avss')}  # no row asks for these


def test_recipes_without_a_row_are_those_of_the_table():
    paper = get_profile('paper')
    assert paper.training('selm', 's4', spec='code')['batch_size'] == 2
    assert paper.training('selm', 'avss', spec='code')['batch_size'] == 64


def test_the_rest_of_the_table(runs):
    "What few methods have: crops, augmentation, single frames, loss terms, decay of vectors, warm-up."
    for _, s, _ in runs:
        c, view = s.config, s.data['view']
        crops = s.setting == 'avss' and s.model in ('tpavi', 'avsegformer', 'selm')
        assert view.get('fit', 'squash') == ('crop' if crops else 'squash'), s.label
        assert view.get('augment') == ('objects' if s.model == 'ddeseg' else None), s.label
        assert view.get('unit', 'clips') == ('frames' if s.model == 'ddeseg' else 'clips'), s.label
        assert c.decay_vectors == (s.model not in ('sdavs', 'ddeseg')), s.label
        if s.model == 'ddeseg':
            assert (c.warmup_epochs, c.lr_end) == (2, 4e-5)
        if s.model == 'tpavi':
            alone = s.setting == 's4' or s.paper == 'robust'
            guide = s.options.get('guidance')
            wanted = dict(ce=1.0) if alone else dict(ce=1.0, avm=0.5)
            assert c.loss == wanted | (dict(guidance=guide['weight']) if guide else {}), s.label


def test_backbones_of_profile_paper(runs):
    "Published ones, from files; PVT-v2 and MiT with drop-path 0.1, as Swin-B has it in timm."
    for table, s, row in runs:
        o = s.options
        own = dict(tpavi='pvt', avsegformer='pvt', selm='pvt', ddeseg='mit', sdavs='')[s.model]
        if s.model == 'sdavs' and s.paper in ('robust', 'selm'):
            own = 'pvt'
        asked = row.encoder.removesuffix('_htsat') or own
        assert o['backbone'] == BACKBONES.get(asked, BACKBONES['']), (table, s.label)
        dropped = o.get('backbone_options', {}).get('drop_path_rate')
        assert dropped == (0.1 if asked in ('pvt', 'mit') else None), (table, s.label)
        assert o['audio'] == ('htsat' if row.encoder.endswith('htsat') else 'vggish')
        assert set(o['weights']) == {'visual', 'audio'} and list(o['frozen']) == ['audio']


def test_baselines_that_stand_for_released_numbers_run_the_released_code(planned):
    for table, (e, _) in planned.items():
        for row in e.rows:
            if row.model in ('tpavi', 'avsegformer'):
                assert row.options.get('spec') == 'code', f'{table}: {row.name}'


def test_what_the_papers_leave_open_is_named_with_its_reason():
    recipes = get_profile('paper').recipes
    for name, keys in OURS.items():
        for key in keys:
            assert len(recipes[name]['ours'][key]) > 10, (name, key)


def test_what_a_recipe_calls_ours_is_no_value_of_the_table():
    "TPAVI's row of the facts is complete: only its validation and VPO are ours."
    assert set(get_profile('paper').recipes['tpavi']['ours']) == {'select', 'vpo'}


def test_the_seed_of_a_run_counts_from_the_published_one(runs):
    firsts = {(s.model, s.seed): s.first_seed for _, s, _ in runs}
    assert firsts['avsegformer', 0] == 123 and firsts['avsegformer', 2] == 125 and firsts['ddeseg', 1] == 2


def test_memory_and_workers_are_no_part_of_a_run(runs):
    _, s, _ = runs[0]
    for value in (dict(micro_batch=1), dict(recompute=True), dict(workers=0)):
        assert replace(s, train={**s.train, **value}).run_id == s.run_id
    assert replace(s, train={**s.train, 'thaw': 1}).run_id != s.run_id
    assert replace(s, data={**s.data, 'view': dict(size=[100, 100])}).run_id != s.run_id


def test_a_missing_file_of_weights_names_the_command(weights, tmp_path, monkeypatch):
    monkeypatch.setenv('AVSREPRO_WEIGHTS', str(tmp_path))
    with pytest.raises(InputError, match='get_weights.py'):
        plan(experiments()['ddeseg', 'tab01'], 'paper')
