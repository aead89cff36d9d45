"""What build.py binary, packages, image, audit, release become under the venv's interpreter (the manual is made from `--help`)."""

from __future__ import annotations

import argparse
import sys

from buildtools import audit, binary, image, packages, release
from buildtools.say import BuildError, bad


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("binary", "packages", "image", "audit", "release"))
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--key", default="")
    chosen = parser.parse_args()
    try:
        if chosen.what == "binary":
            binary.build(chosen.jobs)
        elif chosen.what == "packages":
            packages.build(release.current_binary(chosen.jobs))
        elif chosen.what == "image":
            image.build(release.current_binary(chosen.jobs))
        elif chosen.what == "audit":
            return audit.build(binary.RECIPE / "requirements.lock")
        else:
            release.build(chosen.jobs, chosen.key)
    except BuildError as err:
        bad(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
