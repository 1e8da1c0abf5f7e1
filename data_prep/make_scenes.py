"""Make a data set from a bank of objects and sounds and write it to a folder in the layout of AVSBench.

    python data_prep/make_scenes.py data/scenes --setting s4 ms3 --size 128 --train 400

The options are those of `avsrepro.data.scenes.SceneConfig`; equal options give equal files."""
import argparse
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path

from avsrepro.core.errors import InputError, check
from avsrepro.data.scenes import SceneConfig, write_dataset


def parse(args):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('folder', type=Path, help='where to write; must not exist yet')
    p.add_argument('--setting', nargs='+', default=['ms3'], help='one or more of s4, ms3, avss')
    p.add_argument('--jobs', type=int, help='processes; None is one a core')
    for f in fields(SceneConfig):
        pair = isinstance(f.default, tuple)
        if f.name != 'setting':
            p.add_argument(f'--{f.name}', type=type(f.default[0] if pair else f.default), nargs=2 if pair else None, default=f.default, help=f'SceneConfig.{f.name}')
    return p.parse_args(args)


def make(folder, settings, jobs, options):
    "All settings, in a folder that gets its name when everything is there."
    check(not folder.exists(), f'{folder}: exists already; expected the name of a new folder.')
    configs = [SceneConfig(setting=s, **options) for s in settings]
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for cfg in configs:
            write_dataset(cfg, part, jobs)
            os.replace(part/'scenes.json', part/f'scenes_{cfg.setting}.json')
        os.replace(part, folder)
    finally: shutil.rmtree(part, ignore_errors=True)


def main(args=None):
    options = vars(parse(args))
    folder, settings, jobs = (options.pop(k) for k in ('folder', 'setting', 'jobs'))
    try: make(folder, settings, jobs, {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except InputError as e: print(e, file=sys.stderr); return 2
    print(f"{folder}: {', '.join(settings)} written")
    return 0


if __name__ == '__main__': sys.exit(main())
