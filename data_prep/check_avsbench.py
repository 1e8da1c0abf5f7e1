"""Check a data set in the layout of AVSBench, VPO or AVIS, file by file.

    python data_prep/check_avsbench.py path/to/AVSBench --setting s4

It says what is missing, what is wrong, and how many clips each split has.
Exit code 0: nothing wrong; 1: there are problems; 2: the question was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.core.errors import InputError, check
from avsrepro.data.check import check_dataset

HOLDS = 'Single-source and Multi-sources, or v1s, v1m and v2; VPO and VGGSound; or test.json of AVIS'
SETTINGS_HELP = 'one or more of s4, ms3, avss, vpo-ss, vpo-ms, vpo-msmi, avis'


def main(args: Sequence[str] | None = None) -> int:
    "Print a report for each setting; returns the exit code."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('root', type=Path, help=f'the folder that holds {HOLDS}')
    p.add_argument('--setting', nargs='+', required=True, help=SETTINGS_HELP)
    p.add_argument('--frames', type=int, help='frames per clip, if not as released')
    given = p.parse_args(args)
    try:
        check(given.root.is_dir(), f'{given.root}: no such folder; expected the root of a data set.')
        reports = [check_dataset(given.root, s, given.frames) for s in given.setting]
    except InputError as e:
        print(e, file=sys.stderr)
        return 2
    print(*reports, sep='\n')
    return 0 if all(r.ok for r in reports) else 1


if __name__ == '__main__':
    sys.exit(main())
