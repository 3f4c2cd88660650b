"""Write the indices of TSV files of frames, so that training reads only the frames that it uses.

    python _tools/index_tsv.py _data/webvid.img.tsv _data/img_msrvtt.tsv

Writes NAME.fieldidx.npy (where each field of each row ends), and NAME.lineidx if it is missing. A TSV of 32
frames a row is then read at an eighth of the bytes when 4 frames are used. make_tsv.py writes both itself.
"""

import argparse
from pathlib import Path

import root  # noqa: F401
from lib import UserError, run_script
from media.files import reading, writing
from media.tsv import check_tsv, is_ours, lineidx_path, write_fieldidx, write_lineidx


def main() -> None:
    """Index each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="TSV files: id, TAB, frames")
    for path in parser.parse_args().files:
        check_tsv(path)
        with reading(path, "a TSV", "see _data/README.md"):
            if not is_ours(path):
                raise UserError(f"{path} is no TSV of frames: its first row is not an id, a TAB and a field.")
        with writing(str(path.parent)):
            if not lineidx_path(path).exists():
                write_lineidx(path)
            print(write_fieldidx(path))


if __name__ == "__main__":
    run_script(main)
