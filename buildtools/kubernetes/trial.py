"""The whole of `build.py soak --kubernetes`, in order, and its end: whatever happens, nothing stays but logs and what is kept between
runs.

With --stage NAME one part of it runs and everything stays for the next one; `--stage down` ends it.  A failure of one part of the suite
or of one life is written down and the rest goes on; without a cluster or an installation there is no rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from buildtools import binary, image, prepare, release
from buildtools.kubernetes import images, sources
from buildtools.kubernetes.control_plane import ControlPlane
from buildtools.kubernetes.figures import Figures
from buildtools.kubernetes.install import Install
from buildtools.kubernetes.kube_nodes import KubeNodes
from buildtools.kubernetes.kubectl import Kubectl
from buildtools.kubernetes.lives import Lives
from buildtools.kubernetes.rig import Rig
from buildtools.kubernetes.suite import Suite
from buildtools.say import BuildError, bad, good, step


class Trial:
    def __init__(self, rig: Rig, archive: Path | None, only: str = "") -> None:
        self.rig, self.archive, self.only = rig, archive, only
        self.failures: list[str] = []
        self.kubectl = Kubectl(rig)
        self.plane = ControlPlane(rig)
        self.nodes = KubeNodes(rig, self.plane, self.kubectl)
        self.install = Install(rig, self.kubectl)

    # --- stages ---------------------------------------------------------------------------------------------------------------
    def build(self) -> None:
        prepare.kubernetes()
        if self.archive is None:
            self.archive = image.build(release.current_binary(0))
        sources.Sources(self.rig).build()
        sources.build_own(self.rig)

    def cluster(self) -> None:
        left = self.rig.destroy(keep_logs=False)
        if left:
            raise BuildError(f"left of the last run, and not removed: {', '.join(left)}")
        self.rig.place.mkdir(parents=True, exist_ok=True)
        images.build(self.rig)
        shutil.copy(
            self.archive or image.path_of(binary.directory()), self.rig.place / "image.tar"
        )  # what is built meanwhile is not mixed in
        self.plane.start()
        self.nodes.start()

    def installed(self) -> None:
        self.install.everything()

    def suite(self) -> None:
        self.failures += [f"{name}: {why}" for name, why in Suite(self.rig, self.kubectl).run(self.only).failed.items()]

    def lives(self) -> None:
        lives = Lives(self.rig, self.kubectl, self.nodes, self.install)
        lives.run()
        self.failures += lives.failures

    def figures(self) -> None:
        figures = Figures(self.rig, self.kubectl, self.install)
        figures.run()
        self.failures += figures.failures

    def stages(self) -> dict[str, Callable[[], None]]:
        first = {"build": self.build, "cluster": self.cluster, "install": self.installed}
        return first | {"suite": self.suite, "lives": self.lives, "figures": self.figures}

    def down(self) -> None:
        left = self.rig.destroy()
        if left:
            raise BuildError(f"not removed: {', '.join(left)}")
        good("nothing of it runs; no namespace, mount, loop device or control group is left")


def run(chosen: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise BuildError("needs root: nodes are namespaces, mounts and loop devices")
    if chosen.stage == "down":
        Trial(Rig(), None).down()
        return 0
    trial = Trial(Rig(), Path(chosen.image).resolve() if chosen.image else None, chosen.focus)
    if chosen.stage:
        trial.stages()[chosen.stage]()
    else:
        try:
            for stage in trial.stages().values():
                stage()
        finally:
            step("The end")
            trial.down()
    for text in trial.failures:
        bad(text.splitlines()[0])
    return 1 if trial.failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py soak --kubernetes")
    parser.add_argument("--image", default="", help="the archive of build.py image to try (default: one of these sources is made)")
    parser.add_argument(
        "--stage", default="", help="only build, cluster, install, suite, lives, figures or down, and leave the rest as it is"
    )
    parser.add_argument("--focus", default="", help="of the suite: only specs whose names have this regular expression")
    chosen = parser.parse_args()
    try:
        with Rig().take():
            return run(chosen)
    except BuildError as err:
        bad(str(err))
        return 1
    except KeyboardInterrupt:
        bad("interrupted; what was left is removed by the next run, or by: python3 build.py soak --kubernetes --stage down")
        return 130


if __name__ == "__main__":
    sys.exit(main())
