"""Compute the log-mels that AVSBench comes with, from sounds or from videos.

    python data_prep/extract_log_mel.py one.wav folder/of/sounds OUT
    python data_prep/extract_log_mel.py path/to/AVSBench --setting s4

A log-mel has five VGGish examples of 0.96 s; a shorter sound repeats its last one. Without --setting it
is OUT/<name>.pkl; with it, audio_log_mel is made below the root, from audio_wav, and where a clip has no
sound there, audio_wav is made from raw_videos first. Sounds that are there are never replaced.

Files that are there are kept, so a run that was stopped goes on. Videos need pip install -e ".[video]".
Exit code 0: all is there; 1: some sounds failed; 2: the question was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.core.errors import check
from avsrepro.data.extraction import extract_dataset_sound, extract_log_mels
from avsrepro.data.file_jobs import FileReport, exit_code


def run(
    paths: list[Path],
    setting: str | None,
    out: Path | None,
    examples: int | None,
    **how: int | bool | None,
) -> FileReport:
    "Compute what the command line asks for; `InputError` where it does not fit together."
    if setting:
        check(len(paths) == 1, f'{len(paths)} paths were given; with --setting expected one, the root.')
        check(examples is None, '--examples does not go with --setting: clips of AVSBench have five.')
        return extract_dataset_sound(paths[0], setting, out, **how)
    sounds, out = (paths, out) if out else (paths[:-1], paths[-1])
    check(bool(sounds), f'{out}: only one path was given; expected sounds, and the folder to write to.')
    return extract_log_mels(sounds, out, 5 if examples is None else examples, **how)


def main(args: Sequence[str] | None = None) -> int:
    "Compute and print a report; returns the exit code."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('paths', nargs='+', type=Path, help='sounds, videos or folders, then OUT; or the root')
    p.add_argument('--setting', help='s4 or ms3: the clips of an AVSBench root')
    p.add_argument('--out', type=Path, help='where to write; default the last path, or the root')
    p.add_argument('--examples', type=int, help='of 0.96 s, for each sound; default 5')
    p.add_argument('--overwrite', action='store_true', help='also write log-mels that are there')
    p.add_argument('--dry-run', action='store_true', help='say what would be written, and write nothing')
    p.add_argument('--workers', type=int, help='processes; default one a core')
    given = vars(p.parse_args(args))
    return exit_code(lambda: run(**given))


if __name__ == '__main__':
    sys.exit(main())
