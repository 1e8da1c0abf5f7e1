"""Make data sets from a bank of objects and sounds and write them to a folder in the released layouts.

    python data_prep/make_scenes.py data/scenes --setting s4 ms3 --size 128 --train 400

The options are those of `SceneConfig` (s4, ms3, avss), `VPOConfig` (vpo-ss, vpo-ms, vpo-msmi) and
`AVISConfig` (avis) in `avsrepro.data`; what is not given keeps its default there. Equal options give
equal files.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from avsrepro.core.errors import InputError
from avsrepro.data.loading import GENERATORS, write_generated


def defaults() -> dict[str, dict[str, Any]]:
    "For each option its default in each kind of configuration that has it."
    options = {}
    for kind in dict.fromkeys(g.config for g in GENERATORS.values()):
        for f in fields(kind):
            if f.name != 'setting':
                options.setdefault(f.name, {})[kind.__name__] = f.default
    return options


def type_and_count(found: Sequence[Any]) -> tuple[type, str | int | None]:
    "What an option takes: one value, two whole numbers, or either (a chance here, a least and a most there)."
    pairs = [isinstance(v, tuple) for v in found]
    if all(pairs):
        return int, 2
    return (float, '+') if any(pairs) else (type(found[0]), None)


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    p.add_argument('folder', type=Path, help='where to write; must not exist yet')
    known = f'one or more of {", ".join(GENERATORS)}; default ms3'
    p.add_argument('--setting', nargs='+', default=['ms3'], help=known)
    p.add_argument('--jobs', type=int, default=None, help='processes; default one a core')
    for name, found in defaults().items():
        kind, count = type_and_count(list(found.values()))
        text = '; '.join(f'{config}: {default}' for config, default in found.items())
        p.add_argument(f'--{name}', type=kind, nargs=count, help=text)
    return p.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    "Write the data sets; returns the exit code."
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
