"""What build.py binary, packages and release become under the venv's interpreter (the manual is made from the program's own help)."""

from __future__ import annotations

import argparse
import sys

from buildtools import binary, packages, release
from buildtools.say import BuildError, bad


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("binary", "packages", "release"))
    parser.add_argument("--jobs", type=int, default=0)
    chosen = parser.parse_args()
    try:
        if chosen.what == "binary":
            binary.build(chosen.jobs)
        elif chosen.what == "packages":
            packages.build(release.current_binary(chosen.jobs))
        else:
            release.build(chosen.jobs)
    except BuildError as err:
        bad(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
