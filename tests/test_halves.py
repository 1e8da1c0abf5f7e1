"The page that asks the model of `segment` which of two photographs sounds."

import json

import pandas as pd
import pytest

from avsrepro.core.paths import find_shared
from avsrepro.experiments.run import run_specs
from avsrepro.report.halves import CHOSEN, halves_specs, write_halves

pytestmark = pytest.mark.skipif(find_shared('voc_esc') is None, reason='VOC x ESC is not here')


def test_the_page_has_a_line_for_each_split_and_all_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('AVSREPRO_RESULTS', str(tmp_path / 'results'))
    specs = halves_specs('smoke', {CHOSEN: ()})
    results = dict(zip(specs, run_specs(list(specs.values()), jobs=1, progress=False)))
    folder = write_halves(results, 'smoke', count=4)
    lines, videos = pd.read_csv(folder / 'table.csv'), pd.read_csv(folder / 'videos.csv')
    assert list(lines.split) == ['val', 'test'] and list(lines.trial) == [CHOSEN] * 2
    assert len(videos) == 4 and videos.id.str.contains('test').all()
    share = 100 * videos.found.mean()
    assert lines.found[1].startswith(f'{share:.0f} %')
    text = (folder / 'table.md').read_text()
    assert text.startswith(f'# The half that sounds: found in {lines.found[1]} of 4 videos')
    assert (folder / 'figure.png').is_file() and (folder / 'runs').is_dir()
    assert json.loads((folder / 'meta.json').read_text())['run_ids'] == [r.run_id for r in results.values()]
