"""Write the negatives of AVSBench-Robust for S4 or MS3: silence, noise and off-screen sounds.

    python data_prep/make_robust.py path/to/AVSBench --setting s4

Folders and names are the release's: audio_wav_misaligned, audio_log_mel_misaligned, audio_wav_noise,
audio_log_mel_noise, silent.wav and silent.pkl, beside the originals. The log-mels of the front end that
positives have are this project's addition, in audio_log_mel_misaligned_matched,
audio_log_mel_noise_matched and silent_matched.pkl. negatives.json says how the files were made.

Files that are there are kept, so a run that was stopped goes on. Off-screen sounds in MS3 need the names
of objects, from metadata.csv of AVSS in the same folder.
Exit code 0: all is there; 1: some clips failed; 2: the question was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.data.derived import MEL_FRONT_ENDS
from avsrepro.data.file_jobs import exit_code
from avsrepro.data.layouts import SPLITS
from avsrepro.data.negative_files import STORED_KINDS, write_negative_files
from avsrepro.data.negatives import NOISES


def main(args: Sequence[str] | None = None) -> int:
    "Write the negatives and print a report; returns the exit code."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('root', type=Path, help='the folder that holds Single-source or Multi-sources')
    p.add_argument('--setting', required=True, help='s4 or ms3')
    p.add_argument('--out', type=Path, help='gets the same folders; default: beside the originals')
    p.add_argument('--splits', nargs='+', default=SPLITS, help='default: train val test')
    p.add_argument(
        '--kinds', nargs='+', default=STORED_KINDS, help=f'of {", ".join(STORED_KINDS)}; default all'
    )
    p.add_argument('--front-ends', nargs='+', default=MEL_FRONT_ENDS, help='release, matched; default both')
    p.add_argument('--seed', type=int, default=42, help="of noise and pairs; default 42, the release's")
    p.add_argument('--noise', default='byte', help=f"of {', '.join(NOISES)}; default byte, the release's")
    p.add_argument('--overwrite', action='store_true', help='also write files that are there')
    p.add_argument('--dry-run', action='store_true', help='say what would be written, and write nothing')
    p.add_argument('--workers', type=int, help='processes; default one a core')
    given = vars(p.parse_args(args))
    return exit_code(lambda: write_negative_files(**given))


if __name__ == '__main__':
    sys.exit(main())
