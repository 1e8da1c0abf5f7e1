"""Get the published weights of encoders, checked and converted, for the profiles that ask for them.

    python data_prep/get_weights.py --list
    python data_prep/get_weights.py --profile paper
    python data_prep/get_weights.py htsat --from ~/Downloads/HTSAT_AudioSet_Saved_1.ckpt

They go to the first folder that AVSREPRO_WEIGHTS names, else to data/weights in the checkout. `weights.json`
there says what each was made of, when, and under which licence. Exit code 2: something could not be had.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.core.errors import InputError, check, unknown
from avsrepro.core.paths import repo_root
from avsrepro.experiments.profiles import SOURCES, built_in, get_profile
from avsrepro.nn.weights import catalogue, find_weights, get_weights, weights_file


def default_folder() -> Path:
    "Where files go if nothing is said: the first folder of AVSREPRO_WEIGHTS, or data/weights."
    given = [p for p in os.environ.get('AVSREPRO_WEIGHTS', '').split(os.pathsep) if p]
    return Path(given[0]).expanduser() if given else repo_root() / 'data' / 'weights'


def asked_for(profiles: Sequence[str]) -> dict[str, list[str]]:
    "The encoders with published weights that profiles can ask for, each with the profiles that do."
    found = {}
    for name in profiles:
        profile = get_profile(name)
        for source in SOURCES:
            for variant in ('', *profile.variants, *profile.variants_by_source.get(source, {})):
                options = profile.encoder(source, variant)
                for kind, encoder in (('visual', 'backbone'), ('audio', 'audio')):
                    if options[f'{kind}_weights'] != 'pretrain':
                        found.setdefault(options[encoder], []).append(name)
    return {encoder: list(dict.fromkeys(names)) for encoder, names in found.items()}


def place_of(encoder: str, folder: Path) -> str:
    "Where the file of an encoder is, if it is."
    for place in (folder, None):
        try:
            return f'{find_weights(encoder, place)}'
        except InputError:
            continue
    return 'not there'


def described(encoder: str, profiles: Sequence[str], folder: Path) -> str:
    "What is known of an encoder's file, and whether it is there."
    known = weights_file(encoder)
    lines = {
        'asked for by': ', '.join(profiles) or 'no built-in profile',
        'trained on': known.trained,
        'source': known.url or f'{known.page} (by hand)',
        'licence': known.licence,
        'size': known.size,
        'called here': ' or '.join((known.stored, *known.names)),
        'is at': place_of(encoder, folder),
    }
    return '\n'.join([encoder, *(f'  {k + ":":14}{v}' for k, v in lines.items())])


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('names', nargs='*', metavar='ENCODER', help=f'of {", ".join(catalogue())}')
    p.add_argument('--profile', help='all encoders that this profile can ask for')
    p.add_argument(
        '--out', type=Path, help='the folder to write to; default AVSREPRO_WEIGHTS or data/weights'
    )
    p.add_argument(
        '--from', type=Path, dest='given', metavar='FILE', help='a file that was downloaded by hand'
    )
    p.add_argument('--list', action='store_true', help='say what there is to get, and what is there')
    p.add_argument('--dry-run', action='store_true', help='say what would be done')
    return p.parse_args(args)


def chosen(given: argparse.Namespace) -> dict[str, list[str]]:
    "The encoders to get or list, with the profiles that ask for them; `InputError` if none are named."
    if given.profile and given.profile not in built_in():
        raise unknown('profile', given.profile, built_in())
    asked = asked_for([given.profile] if given.profile else built_in())
    names = dict.fromkeys([*given.names, *(asked if given.profile or given.list and not given.names else ())])
    for name in names:
        weights_file(name)
    check(bool(names), 'which encoders? Give their names, --profile paper, or --list.')
    check(given.given is None or len(names) == 1, '--from takes the file of one encoder; name that encoder.')
    return {name: asked.get(name, []) for name in names}


def intention(encoder: str, folder: Path, given: Path | None) -> str:
    "What `get_weights` would do."
    known = weights_file(encoder)
    if given is None and (folder / known.stored).is_file():
        return f'{encoder}: is there, {folder / known.stored}'
    source = given or known.url or f'a file that a person gets from {known.page}'
    return f'{encoder}: would make {folder / known.stored} of {source} ({known.licence}, {known.size})'


def attempt(encoder: str, folder: Path, given: Path | None) -> bool:
    "Get the weights of an encoder; says what became of it, and whether it is there."
    try:
        print(f'{encoder}: {get_weights(encoder, folder, given)}')
    except InputError as e:
        print(e, file=sys.stderr)
        return False
    return True


def main(args: Sequence[str] | None = None) -> int:
    "Get or list weights; returns the exit code."
    given = parse(args)
    try:
        folder = given.out.expanduser() if given.out else default_folder()
        names = chosen(given)
    except InputError as e:
        print(e, file=sys.stderr)
        return 2
    if given.list:
        print('\n\n'.join(described(name, profiles, folder) for name, profiles in names.items()))
        return 0
    if given.dry_run:
        print('\n'.join(intention(name, folder, given.given) for name in names))
        return 0
    return 0 if all([attempt(name, folder, given.given) for name in names]) else 2


if __name__ == '__main__':
    sys.exit(main())
