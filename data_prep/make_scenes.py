"""Make data sets from a bank of objects and sounds and write them to a folder in the released layouts.

    python data_prep/make_scenes.py data/scenes --setting s4 ms3 --size 128 --train 400

The options are those of `SceneConfig` (s4, ms3, avss), `VPOConfig` (vpo-ss, vpo-ms, vpo-msmi) and `AVISConfig` (avis) in `avsrepro.data`; what is not given keeps its default there. Equal options give equal files."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from avsrepro.core.errors import InputError
from avsrepro.data.loading import GENERATORS, write_generated


def parse(args):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    p.add_argument('folder', type=Path, help='where to write; must not exist yet')
    p.add_argument(
        '--setting', nargs='+', default=['ms3'], help=f'one or more of {", ".join(GENERATORS)}; default ms3'
    )
    p.add_argument('--jobs', type=int, default=None, help='processes; default one a core')
    options = {}  # name -> fields of that name
    for kind in dict.fromkeys(g.config for g in GENERATORS.values()):
        for f in fields(kind):
            if f.name != 'setting':
                options.setdefault(f.name, []).append((kind.__name__, f.default))
    for name, found in options.items():
        first = found[0][1]
        pair = isinstance(first, tuple) and all(isinstance(d, tuple) for _, d in found)
        number = first if not isinstance(first, tuple) else first[0]
        mixed = (
            any(isinstance(d, tuple) for _, d in found) and not pair
        )  # a chance here, a least and a most there
        p.add_argument(
            f'--{name}',
            type=float if mixed else type(number),
            nargs='+' if mixed else 2 if pair else None,
            help='; '.join(f'{k}: {d}' for k, d in found),
        )
    return p.parse_args(args)


def main(args=None):
    given = vars(parse(args))
    folder, settings, jobs = (given.pop(k) for k in ('folder', 'setting', 'jobs'))
    for name, v in given.items():
        if isinstance(v, list):
            given[name] = v[0] if len(v) == 1 else tuple(int(x) for x in v)
    try:
        print(write_generated(folder, settings, jobs, **given))
    except InputError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
