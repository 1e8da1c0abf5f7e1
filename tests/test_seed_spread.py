"What seeds alone make of a score is told in the score that the tables print."

import numpy as np
import pandas as pd
import pytest

from avsrepro.core.paths import repo_root
from avsrepro.report.paper import PaperFiles, seed_spread


@pytest.mark.parametrize('metric', ('J', 'F', 'J&F'))
@pytest.mark.parametrize('setting', ('vpo-ss', 'vpo-ms', 'vpo-msmi'))
def test_spread_over_seeds_is_that_of_the_table(setting, metric):
    name = 'quick, procedural'
    files = PaperFiles('ddeseg', repo_root() / 'results')
    path = files.where[name] / 'tab02' / 'seeds.csv' if name in files.where else None
    if not (path and path.is_file()):
        pytest.skip('no table of DDESeg on VPO with every seed')
    seeds = pd.read_csv(path).query('setting == @setting and metric == @metric')
    rows = [g.ours.to_numpy() for _, g in seeds.groupby('row') if len(g) > 1]
    pooled = sum(((x - x.mean()) ** 2).sum() for x in rows) / sum(len(x) - 1 for x in rows)
    spread = seed_spread(files, name, setting, metric)
    assert spread.rows == len(rows)
    assert spread.deviation == pytest.approx(np.sqrt(pooled), abs=1e-3)
