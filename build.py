#!/usr/bin/env python3
"""The one entry point of the checkout: set up and show (up, down), test, lint, bench, soak; binary, packages, image, audit, release;
dev-env, deploy.

Standard library only, and parses on Python 3.9, so that it can start anywhere; it then re-executes itself under Python 3.11 or later,
or names the package that brings one.  What it does is in buildtools/.
"""

import argparse
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
NEEDED = (3, 11)
CANDIDATES = ["python3." + str(minor) for minor in (13, 12, 11, 14, 15)] + ["python3"]


def works(python):
    """Whether this interpreter runs and is new enough (a name in PATH may be a shim that does neither)."""
    code = "import sys; sys.exit(sys.version_info < %r)" % (NEEDED,)
    try:
        return subprocess.run([python, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def find_python():
    """A Python that is new enough: the checkout's own first, then the names in PATH and the usual places."""
    paths = [os.path.join(HERE, ".venv", "bin", "python")]
    paths += [shutil.which(name) or "" for name in CANDIDATES]
    paths += [os.path.join(folder, name) for folder in ("/usr/bin", "/usr/local/bin") for name in CANDIDATES]
    return next((path for path in paths if path and os.path.exists(path) and works(path)), None)


def package_to_install():
    """The command that brings a new enough Python on this distribution."""
    if shutil.which("apt-get"):
        return "apt-get update && apt-get install -y python3.11 python3.11-venv"
    if shutil.which("dnf"):
        return "dnf install -y python3.11"
    return "install Python 3.11 or later with your package manager"


def ensure_version():
    if sys.version_info >= NEEDED:
        return
    found = find_python()
    if found is None or os.environ.get("AWSOMEFS_BUILD_REEXEC"):
        own = "%d.%d" % sys.version_info[:2]
        sys.exit("build.py needs Python 3.11 or later, this is %s and no other was found: %s" % (own, package_to_install()))
    os.environ["AWSOMEFS_BUILD_REEXEC"] = "1"
    os.execv(found, [found, os.path.abspath(__file__), *sys.argv[1:]])


def parser():
    top = argparse.ArgumentParser(prog="build.py", description="awsomefsd: set up and show, test, lint, bench")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    default = os.path.join(os.getcwd(), ".awsomefs-demo")
    up = commands.add_parser("up", help="prepare everything, found three nodes on one disk, demonstrate that kills harm nobody")
    up.add_argument("--dir", default=default, help="everything of this node lives here (default ./.awsomefs-demo)")
    up.add_argument("--size", default="8G", help="size of the sparse file that is the disk (default 8G, at least 2G)")
    down = commands.add_parser("down", help="unmount, stop and remove all of it")
    down.add_argument("--dir", default=default, help="the directory that was given to up")
    _add_tests(commands, "test", "all tests; --seed N replays those of a run, other words go to pytest")
    commands.add_parser("lint", help="ruff, mypy, import contracts, lengths, dead code, imports of tests")
    bench = commands.add_parser("bench", help="figures beside ext4 and a null FUSE server, as ratios")
    bench.add_argument("--voters", action="store_true", help="instead: metadata on several voters beside etcd, many inodes, catching up")
    bench.add_argument("--shared", action="store_true", help="instead: three nodes, one disk, beside MooseFS and GlusterFS")
    bench.add_argument("--quick", action="store_true", help="fewer operations and runs; figures are rough")
    bench.add_argument("--peers", action="store_true", help="on one node: beside MooseFS and GlusterFS of the distribution too")
    bench.add_argument("--record", action="store_true", help="on one node: keep the figures in docs/figures and docs/PERFORMANCE.md")
    bench.add_argument("--json", default="", help="write the figures to this file too")
    for name, what in (
        ("binary", "the compiled program, dist/awsomefsd-VERSION-ARCH (Debian 12; 12 minutes of CPU the first time)"),
        ("packages", "the binary, and .deb and .rpm of it, in dist/"),
        ("image", "the binary, and a container image of it (an OCI archive, made without a container engine), in dist/"),
        ("audit", "known vulnerabilities of what is bundled, where a database can be had (exit 3 where not)"),
        ("release", "binary, archive, packages, image, repositories, list of contents and checksums in dist/"),
    ):
        made = commands.add_parser(name, help=what)
        made.add_argument("--jobs", type=int, default=0, help="C compilers at once (default: one a core)")
        made.add_argument("--key", default="", help="a key of gpg's that signs repositories" if name == "release" else argparse.SUPPRESS)
    env = commands.add_parser("dev-env", help="a Kubernetes of containers (kind) whose nodes share one loop device")
    env.add_argument("--dir", default=os.path.join(os.getcwd(), ".awsomefs-kind"), help="the device is here (default ./.awsomefs-kind)")
    env.add_argument("--size", default="8G", help="size of the sparse file that is the device (default 8G)")
    env.add_argument("--remove", action="store_true", help="instead: remove cluster, loop device and directory")
    commands.add_parser("deploy", help="the image of dist/, and the chart, in the cluster of dev-env")
    soak = _add_tests(commands, "soak", "the tests marked soak: longer kill runs; --kubernetes: a real Kubernetes instead")
    soak.add_argument(
        "--kubernetes",
        action="store_true",
        help="instead: build a Kubernetes, install the image by the chart on three nodes, run upstream's suite, kill and upgrade our pods",
    )
    return top


def _add_tests(commands, name, what):
    made = commands.add_parser(
        name,
        help=what,
        usage="build.py " + name + " [-h] [--seed N] [WORD ...]",
        description=what + ".  As root it installs what is missing first, and makes .venv.",
        epilog="WORD: files, folders and options of pytest, such as -k NAME; .venv/bin/python -m pytest --help lists them.",
    )
    made.add_argument("--seed", metavar="N", help="replays the random tests of the run that printed this number")
    made.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def main():
    ensure_version()
    words = sys.argv[1:]
    for_pytest = words[:1] in (["test"], ["soak"])
    asked = ["--help"] if {"-h", "--help"} & set(words[1:]) else []
    chosen = parser().parse_args(words[:1] + asked if for_pytest else words)
    sys.path.insert(0, HERE)
    from buildtools import commands
    from buildtools.say import BuildError, bad

    try:
        return commands.run(chosen, words[1:])
    except BuildError as err:
        bad(str(err))
        return 1
    except KeyboardInterrupt:
        bad("interrupted; run the same command again, or: python3 build.py down")
        return 130


if __name__ == "__main__":
    sys.exit(main())
