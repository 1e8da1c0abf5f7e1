"""The site in a browser: every link, no error, nothing from elsewhere; filters, sorting, search, dark, phone.

`AVSREPRO_TEST_SITE` may name a site that was built before; otherwise the whole site is built once."""

import importlib.util
import json
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from avsrepro.core.paths import repo_root, results_dir
from avsrepro.experiments.registry import claims, experiments, notebook_of
from avsrepro.report import site as building
from avsrepro.report.audits import AUDITS, audits_text
from avsrepro.report.leaderboard import leaderboard
from avsrepro.report.site_claims import all_claims, claim_counts, picture_values, speaking_profile
from avsrepro.report.site_pages import site_links
from avsrepro.report.site_sources import notebook_paths, results_pages

ROOT = repo_root()
TOOLS = ('sphinx', 'myst_nb', 'furo', 'sphinx-mathjax-offline')
MISSING = [name for name in TOOLS if importlib.util.find_spec(name) is None]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
LOOKED_AT = {
    'start': 'index.html',
    'claims': 'claims.html',
    'leaderboard': 'leaderboard.html',
    'audits': 'audits.html',
    'register': 'nbs/papers/discrepancies.html',
    'notebook': 'nbs/models/20_sdavs.html',
    'pictures': 'nbs/data/40_scenes.html',
    'results': 'results/quick/procedural/sdavs/tab03/table.html',
    'executed': 'results/quick/procedural/sdavs/tab03/notebook.html',
    'guide': 'nbs/guide/00_walks.html',
    'search': 'search.html?q=silence',
}


# what it is made of


@pytest.fixture(scope='module')
def found():
    return all_claims()


def test_every_claim_has_a_line_and_its_page(found):
    assert set(zip(found.paper, found.id)) == {(c.paper, c.id) for c in claims()}
    assert not found.duplicated(['paper', 'id', 'profile', 'data']).any()
    for c in found[found.profile != ''].itertuples():
        assert (results_dir(c.profile, c.data, c.paper, c.page) / 'table.md').is_file()


def test_pages_of_an_earlier_rule_are_not_judged(found):
    for place, part in found[found.profile != ''].groupby(['profile', 'data', 'paper', 'page']):
        meta = json.loads((results_dir(*place) / 'meta.json').read_text())
        counted = part.low == part.high  # parameters, operations: no error, so no rule is needed
        if 'outcome' not in meta:
            assert set(part[~counted].verdict) <= {'not judged'}, place


def made_page(folder, lines):
    "A page of Table III of SDAVS by today's rule: row, setting, difference from the full model, its error."
    table = [
        dict(table='sdavs_tab03', row='SDAVS(Ours)', setting='s4', metric='J&F', ours=80, low=79, high=81)
    ]
    differences = []
    for row, setting, delta, se in lines:
        ends = dict(low=delta - 2.3 * se, high=delta + 2.3 * se, se_run=se, se_clip=0.0, df=8.0, reason='')
        at = dict(row=row, against='SDAVS(Ours)', setting=setting, metric='J&F')
        differences.append(at | dict(ours_delta=delta) | ends)
    folder.mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / 'table.csv', index=False)
    pd.DataFrame(differences).to_csv(folder / 'differences.csv', index=False)


def test_the_profile_study_speaks_where_it_is(tmp_path):
    "A loss of 1.3 without SNRP on S4 is printed; here it is found on S4, and its contrary on MS3."
    study, quick = (tmp_path / p / 'procedural' / 'sdavs' / 'tab03' for p in ('study', 'quick'))
    made_page(study, [('w/o SNRP', 's4', -1.3, 0.1), ('w/o SNRP', 'ms3', 2.0, 0.1)])
    made_page(quick, [('w/o SNRP', 's4', 1.0, 0.1)])
    found = all_claims(tmp_path)
    assert speaking_profile(found) == 'study' and speaking_profile(found[found.profile != 'study']) == 'quick'
    own = found[found.profile == 'study'].set_index('id').verdict
    assert own['snrp-s4'] == 'reproduced' and own['snrp-ms3'] == 'contradicted'
    counts = claim_counts(found, 'study').set_index('paper')
    assert counts.loc['sdavs', 'reproduced'] >= 1 and counts.loc['sdavs', 'contradicted'] >= 1
    assert counts.loc['selm', 'not run'] == counts.loc['selm', 'claimed'] > 0
    shown = picture_values(found[found.profile == 'study']).set_index('id')
    assert shown.y['snrp-s4'] == pytest.approx(1.3) and shown.y['snrp-ms3'] == pytest.approx(-2.0)
    assert shown.y_low['snrp-ms3'] < shown.y['snrp-ms3'] < shown.y_high['snrp-ms3']


def test_the_leaderboard_is_what_its_pages_say():
    board, pages = leaderboard(), sorted(results_dir().glob('*/*/ddeseg/q4/table.csv'))
    for path in pages:
        profile, data = path.parts[-5:-3]
        own = board[(board.profile == profile) & (board.data == data) & (board.page == 'ddeseg/q4/table')]
        printed = pd.read_csv(path).query('metric in ("J", "J, dataset-pooled")')
        assert sorted(own.score) == sorted(printed.ours) and len(own) == len(printed)
    silent = board[board.silent.notna()]
    assert (silent.score - silent.silent == silent.gain).all() or (silent.page == 'hearing/table').any()


def test_numbers_of_the_audits_stand_in_their_files():
    "Every number with a decimal point in a paragraph is, rounded, in a CSV of its page."
    text = audits_text()
    for audit, part in zip(AUDITS, text.split('\n## ')[1:], strict=True):
        places = re.findall(r'\(results/([^)]+)/table\.md\)', part)
        assert places or 'Not run yet' in part
        values = set()
        for place in places:
            for path in results_dir(place).glob('*.csv'):
                for v in pd.read_csv(path).select_dtypes('number').to_numpy().ravel():
                    values |= {f'{v:.{d}f}'.lstrip('-+') for d in (1, 2, 3)}
        said = re.findall(r'(?<![\w.])\d+\.\d+', re.sub(r'\]\([^)]*\)', '', part))
        assert not [n for n in said if n not in values], audit.title


def test_links_to_the_readme_lead_to_its_notebook():
    page = ROOT / 'nbs' / 'guide' / '00_walks.ipynb'
    assert site_links('[a](../../README.md)', page, ROOT) == '[a](../index.ipynb)'
    kept = '[b](../core/10_paths.ipynb#Locks), [c](https://x.org/README.md)'
    assert site_links(kept, page, ROOT) == kept


# the site


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    if given := os.environ.get('AVSREPRO_TEST_SITE'):
        return Path(given)
    if MISSING:
        pytest.skip(f'the extra `site` is not installed: {", ".join(MISSING)}')
    from avsrepro.report.site import build_site

    folder, warnings = build_site(tmp_path_factory.mktemp('site') / 'site', quiet=True)
    assert not warnings, '\n'.join(warnings)
    return folder


@pytest.fixture(scope='module')
def html(site):
    return {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}


def test_all_notebooks_and_results_are_pages(html):
    wanted = [p.relative_to(ROOT) for p in notebook_paths(ROOT)]
    wanted += [Path('results', p.relative_to(results_dir()), 'table') for p in results_pages(results_dir())]
    assert not [p for p in wanted if p.with_suffix('.html').as_posix() not in html]
    for e in experiments().values():
        assert notebook_of(e).relative_to(ROOT).with_suffix('.html').as_posix() in html


def test_every_internal_link_leads_somewhere(site, html):
    ids = {name: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in html.items()}
    dead, seen = Counter(), 0
    for name, text in html.items():
        if name in ('search.html', 'genindex.html'):
            continue
        for link in re.findall(r'<(?:a|img|link|script)\b[^>]*?\s(?:href|src)="([^"]*)"', text):
            parts = urlsplit(unescape(link))
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            seen += 1
            path = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path)))
            path = name if not parts.path else path
            anchor = unquote(parts.fragment)
            there = path in html or (site / path).is_file()
            named = not anchor or path not in html or path == 'claims.html' or anchor in ids[path]
            if not there or not named:
                dead[f'{name}: {link}'] += 1
    assert seen > 1000 and not dead, list(dead)[:20]


def test_nothing_is_loaded_from_elsewhere(html):
    loads = re.compile(
        r'<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\s(?:href|src)="(?:https?:)?//'
    )
    assert not [name for name, text in html.items() if loads.search(text)]


def test_nothing_of_the_machine_is_told(html):
    assert not [
        name for name, text in html.items() if str(ROOT) in text or '/tmp/' in text and 'site-' in text
    ]


# in a browser


@pytest.fixture(scope='module')
def address(site):
    from avsrepro.report.site import address_of, site_server

    with site_server(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address_of(server)
        server.shutdown()


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None:
        pytest.skip('there is no Chromium')
    with api.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage']
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    "Opens a page; what went wrong on the way fails the test at its end."
    wrong, contexts = [], []

    def open_page(path, **how):
        context = browser.new_context(**{'viewport': dict(width=1280, height=900)} | how)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda m: wrong.append(f'{path}: {m.text}') if m.type == 'error' else None)
        page.on('pageerror', lambda e: wrong.append(f'{path}: {e}'))
        page.on('requestfailed', lambda r: wrong.append(f'{path}: {r.url} failed'))
        page.on('response', lambda r: wrong.append(f'{r.status} {r.url}') if r.status >= 400 else None)
        page.on('request', lambda r: None if r.url.startswith((address, 'data:')) else wrong.append(r.url))
        page.goto(address + path)
        page.wait_for_load_state('networkidle')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


PHONE = dict(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)


@pytest.mark.parametrize('path', LOOKED_AT.values(), ids=list(LOOKED_AT))
def test_a_page_loads_and_fits(path, visit):
    "No error, no request that fails or leaves the machine; no page is wider than the screen, or too small."
    for how in ({}, PHONE):
        page = visit(path, **how)
        assert page.locator('article h1, article h2').first.inner_text()
        wide = page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
        assert wide <= 1, f'{wide} pixels too wide'
        sizes = page.eval_on_selector_all(
            'article p, article td, article li',
            'all => all.map(e => parseFloat(getComputedStyle(e).fontSize))',
        )
        assert min(sizes, default=16) >= 12


def lines(page):
    return page.locator('table.claims tbody tr:visible')


def test_filters(found, visit):
    page = visit('claims.html')
    assert lines(page).count() == len(found)
    page.select_option('[data-filter=paper]', 'selm')
    own = found[found.paper == 'selm']
    assert lines(page).count() == len(own)
    page.select_option('[data-filter=verdict]', own.verdict.iloc[0])
    own = own[own.verdict == own.verdict.iloc[0]]
    assert lines(page).count() == len(own) and 'paper=selm' in page.url
    assert page.locator('.shown').inner_text().startswith(f'{len(own)} of {len(found)} lines')
    page.fill('[data-find]', 'PVT-v2 AVSS')
    words = [f'{c.claim} {c.setting}'.lower() for c in own.itertuples()]
    wanted = sum('pvt-v2' in text and 'avss' in text for text in words)
    assert 0 < wanted <= lines(page).count() < len(own)
    page.fill('[data-find]', 'no such words')
    assert lines(page).count() == 0
    page.click('[data-reset]')
    assert lines(page).count() == len(found) and '#' not in page.url


def test_an_address_holds_the_choice(found, visit):
    page = visit('claims.html#paper=sdavs&sort=-4')
    assert lines(page).count() == (found.paper == 'sdavs').sum()
    assert page.locator('th').nth(4).get_attribute('aria-sort') == 'descending'
    page.goto(page.url.split('#')[0] + '#paper=nobody')
    assert lines(page).count() == len(found)


@pytest.mark.parametrize('column,name', [(3, 'published'), (4, 'ours')])
def test_sorting(column, name, found, visit):
    page, values = visit('claims.html'), found[name]
    for ascending in (True, False):
        page.locator('th button').nth(column).click()
        cells = page.eval_on_selector_all(
            f'table.claims tbody td:nth-child({column + 1})', 'all => all.map(e => e.dataset.sort)'
        )
        wanted = values.sort_values(ascending=ascending).dropna()
        assert [float(c) for c in cells][: len(wanted)] == pytest.approx(list(wanted))
        assert set(cells[len(wanted) :]) <= {'nan'}


def test_counts_lead_to_their_claims(visit):
    page = visit('index.html')
    tiles = page.locator('.tile:not(.v-not-run)')
    numbers = [int(n) for n in tiles.locator('b').all_inner_texts()]
    counted = max(numbers)
    tiles.nth(numbers.index(counted)).click()
    page.wait_for_url('**/claims.html#*')
    assert f'{counted} comparisons' in page.locator('.shown').inner_text()


def test_the_picture_has_every_claim_that_was_run(found, visit):
    page = visit('index.html')
    shown = picture_values(found[found.profile == speaking_profile(found)])
    assert page.locator('.pictures svg a').count() == len(shown)
    first = page.locator('.pictures svg a').last
    assert first.locator('title').text_content().endswith('.')
    first.dispatch_event('click')
    page.wait_for_url('**/table.html')


def test_search_finds_pages(visit):
    page = visit('index.html')
    page.fill('.sidebar-search', 'deformable attention')
    page.press('.sidebar-search', 'Enter')
    page.wait_for_selector('#search-results li a')
    links = page.eval_on_selector_all('#search-results li a', 'all => all.map(e => e.href)')
    assert any('nbs/nn/40_deformable' in link for link in links)
    page.click('#search-results li a >> nth=0')
    assert page.locator('h1').count() >= 1


def test_formulas_are_set(visit):
    page = visit('nbs/metrics/10_segmentation.html')
    page.wait_for_selector('mjx-container')
    assert page.locator('mjx-container').first.bounding_box()['width'] > 0


LUMINANCE = """e => {
  const parts = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
  const light = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const of = (c) => parts(c).map(light).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  let back = e;
  while (back && /, 0\\)|transparent/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
  const ground = back ? getComputedStyle(back).backgroundColor : 'rgb(255, 255, 255)';
  return [of(getComputedStyle(e).color), of(ground)];
}"""


def contrast(page, selector):
    a, b = sorted(page.locator(selector).first.evaluate(LUMINANCE))
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_in_both_schemes(scheme, visit):
    page = visit('claims.html', color_scheme=scheme)
    ground = page.locator('body').evaluate(LUMINANCE)[1]
    assert ground > 0.8 if scheme == 'light' else ground < 0.1
    for selector in (
        'article p',
        'table.claims td',
        'table.claims small',
        '.badge',
        'table.claims th button',
    ):
        assert contrast(page, selector) > (3.0 if selector == 'table.claims small' else 4.5), selector
    other = visit('nbs/core/10_paths.html', color_scheme=scheme)
    for selector in ('article p', '.highlight pre', 'div.cell_output pre'):
        assert contrast(other, selector) > 4.5, selector


def test_the_button_turns_the_page_dark(visit):
    page = visit('index.html', color_scheme='light')
    before = page.locator('body').evaluate(LUMINANCE)[1]
    for _ in range(3):
        page.locator('.theme-toggle-content button').click()
        if page.evaluate('document.body.dataset.theme') == 'dark':
            break
    assert page.locator('body').evaluate(LUMINANCE)[1] < 0.1 < before


def test_a_phone_shows_claims_as_cards(visit):
    page = visit('claims.html', **PHONE)
    assert not page.locator('table.claims thead').is_visible() and page.locator('[data-sorter]').is_visible()
    page.select_option('[data-filter=paper]', 'sdavs')
    box = lines(page).first.bounding_box()
    assert 250 < box['width'] <= 390 and box['height'] > 80
    page.select_option('[data-sorter]', '3')
    cells = page.eval_on_selector_all(
        'table.claims tr:not([hidden]) td:nth-child(4)', 'all => all.map(e => parseFloat(e.dataset.sort))'
    )
    assert cells == sorted(cells)
    page.click('.nav-overlay-icon')
    assert page.locator('.sidebar-tree a').first.is_visible()


# the command


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    from typer.testing import CliRunner

    from avsrepro.cli import app

    if MISSING:
        pytest.skip('the extra `site` is not installed')
    (tmp_path / 'thesis.tex').write_text('mine')
    done = CliRunner().invoke(app, ['report', '--out', str(tmp_path)])
    assert done.exit_code and '--out' in str(done.exception)
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_without_the_extra_one_sentence_names_the_command(monkeypatch):
    import avsrepro.report.site as module

    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(module.InputError, match=r'pip install "avsrepro\[site\]"'):
        module.build_site()


def left_of_session(leader: int) -> list[str]:
    "The processes of a session that have not ended."
    left = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):  # ended meanwhile
            state, _, group = path.read_text().rsplit(')', 1)[1].split()[:3]
            left += [path.parent.name] if int(group) == leader and state != 'Z' else []
    return left


@pytest.mark.skipif(sys.platform != 'linux', reason='reads which processes there are from /proc')
def test_a_build_that_is_broken_off_ends_all_its_processes(tmp_path, monkeypatch):
    "Sphinx and its workers are a session of their own: none of it is left."
    sphinx = tmp_path / 'sphinx'
    sphinx.mkdir()
    (sphinx / '__init__.py').touch()
    code = 'import os, subprocess, sys, time\n'
    code += 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
    (sphinx / '__main__.py').write_text(f'{code}print(os.getpid(), flush=True)\ntime.sleep(60)\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    seen = []

    def broken_off(lines, quiet):
        seen.append(int(next(lines)))
        raise KeyboardInterrupt

    monkeypatch.setattr(building, '_followed', broken_off)
    with pytest.raises(KeyboardInterrupt):
        building.run_sphinx(tmp_path / 'source' / 'in', tmp_path / 'out', 1)
    end = time.monotonic() + 20
    while left_of_session(seen[0]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left_of_session(seen[0])
