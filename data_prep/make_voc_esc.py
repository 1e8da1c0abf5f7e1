"""Build the bank of real photographs and recordings (VOC x ESC) from the official downloads.

    python data_prep/make_voc_esc.py data/voc_esc --voc VOCdevkit --esc ESC-50-master \
        --msrc MSRC_ObjCategImageDatabase_v2

A build that was stopped goes on with the same command. `nbs/data/66_voc_esc_build.ipynb` says what equals
the published bank.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.core.errors import InputError, check
from avsrepro.data.voc_esc_build import build_bank
from avsrepro.data.voc_esc_plan import DOWNLOADS, plan_bank


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folder', type=Path, help='where to build; must not exist yet')
    for kind, (_, _, what, link) in DOWNLOADS.items():
        needed = kind in ('voc', 'esc')
        text = f'{what}, {link}' + ('' if needed else '; may be left out')
        p.add_argument(f'--{kind}', type=Path, required=needed, metavar='FOLDER', help=text)
    more = 'also photographs that the published bank does not have; their split follows its rule'
    p.add_argument('--all', action='store_true', help=more)
    p.add_argument('--partial', action='store_true', help='build what an incomplete download allows')
    p.add_argument('--jobs', type=int, help='processes; default one a core')
    p.add_argument('--dry-run', action='store_true', help='say what would be made, and write nothing')
    return p.parse_args(args)


def run(given: argparse.Namespace) -> str:
    "Plan, and build unless it is a dry run; returns what to print."
    check(given.jobs is None or given.jobs > 0, f'--jobs {given.jobs}: expected a positive number.')
    check(not given.folder.exists(), f'{given.folder}: exists already; give another folder.')
    plan = plan_bank(given.voc, given.esc, given.msrc, given.unseen, given.all, given.partial)
    part = given.folder.with_name(given.folder.name + '.part')
    if given.dry_run:
        there = sum(p.is_file() for p in part.rglob('*'))
        return f'would build {given.folder}, {there} files of an interrupted build being there:\n{plan}'
    rows = build_bank(plan, given.folder, given.jobs)
    counts = ''.join(f'\n  {name:22} {n:5} rows' for name, n in rows.items())
    use = f'used as the bank voc_esc with AVSREPRO_VOC_ESC={given.folder}, or at data/voc_esc in the checkout'
    return f'built {given.folder}:{counts}\n{use}'


def main(args: Sequence[str] | None = None) -> int:
    "Build the bank; returns the exit code."
    given = parse(args)
    try:
        print(run(given))
    except (InputError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; the same command goes on from here.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
