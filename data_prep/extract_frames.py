"""Take one picture of each second from videos, the one that AVSBench's authors took.

    python data_prep/extract_frames.py one.mp4 folder/of/videos OUT
    python data_prep/extract_frames.py path/to/AVSBench --setting s4

Of 16 evenly spaced samples of a second the last is kept: frame floor(fps * (second + 15/16)), the frame
rate rounded, and the last frame where the video ends before. Without --setting the pictures of a video
lie in OUT/<name>/<name>_1.png and so on; with it, visual_frames is made from raw_videos below the root.

Files that are there are kept, so a run that was stopped goes on. Needs pip install -e ".[video]".
Exit code 0: all is there; 1: some videos failed; 2: the question was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avsrepro.core.errors import check
from avsrepro.data.extraction import extract_dataset_frames, extract_frames
from avsrepro.data.file_jobs import FileReport, exit_code


def run(
    paths: list[Path],
    setting: str | None,
    out: Path | None,
    seconds: int | None,
    **how: int | bool | None,
) -> FileReport:
    "Extract what the command line asks for; `InputError` where it does not fit together."
    if setting:
        check(len(paths) == 1, f'{len(paths)} paths were given; with --setting expected one, the root.')
        check(seconds is None, '--seconds does not go with --setting: clips of AVSBench have five.')
        return extract_dataset_frames(paths[0], setting, out, **how)
    videos, out = (paths, out) if out else (paths[:-1], paths[-1])
    check(bool(videos), f'{out}: only one path was given; expected videos, and the folder to write to.')
    return extract_frames(videos, out, seconds, **how)


def main(args: Sequence[str] | None = None) -> int:
    "Extract and print a report; returns the exit code."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('paths', nargs='+', type=Path, help='videos or folders of them, then OUT; or the root')
    p.add_argument('--setting', help='s4 or ms3: the raw videos of an AVSBench root')
    p.add_argument('--out', type=Path, help='where to write; default the last path, or the root')
    p.add_argument('--seconds', type=int, help='pictures of each video; default all seconds that it has')
    p.add_argument('--size', type=int, default=224, help='pixels of a side; 0 keeps those of the video')
    p.add_argument('--overwrite', action='store_true', help='also write files that are there')
    p.add_argument('--dry-run', action='store_true', help='say what would be written, and write nothing')
    p.add_argument('--workers', type=int, help='processes; default one a core')
    given = vars(p.parse_args(args))
    return exit_code(lambda: run(**given))


if __name__ == '__main__':
    sys.exit(main())
