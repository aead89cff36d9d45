"""Upstream's External.Storage suite against the installed driver: which specs, which not and why, several processes at once, and the
verdict.

A spec that did not run must have a reason: it is left out here by a row of LEFT_OUT, or it said itself why.  One without is a failure
of the suite, so that no spec falls through between the parts.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildtools.kubernetes.kubectl import Kubectl
from buildtools.kubernetes.rig import NODES, Rig
from buildtools.say import BuildError, good, line, step, warn

DRIVER = "csi.awsomefs.io"
OURS = rf"External Storage \[Driver: {re.escape(DRIVER)}\]"
CLASS, MODIFIER = "awsomefs", "awsomefs-modified"
SPEC_S = 1_800  # of one part; the longest one on two slow cores takes a quarter of it
# Words in the name of a spec -> why it is not for this driver or this rig.
LEFT_OUT = {
    r"ntfs|Windows": "for nodes with Windows",
    r"\((xfs|ext3|ext4)\)": "a file system of one machine on a device; the driver has its own",
    r"Pre-provisioned|Inline-volume": "needs a driver that makes volumes without Kubernetes",
    r"(?i)snapshot": "the driver has no snapshots yet",
    r"\[Disruptive\]": "stops kubelet by ssh; the lives of this trial kill it",
    r"SELinux|\[Feature:SELinux": "needs nodes with SELinux",
    r"volumeLimits|volume limits": "the driver has no limit of volumes for a node",
    r"(?i)pvc data source|clone|any volume data source|volume populator": "the driver has no clones",
    r"\[Feature:VolumeSourceXFS\]": "needs XFS",
}
# Parts that run beside each other: suites of upstream by name.  The last takes what the others have not.
PARTS = {
    "paths": r"subPath",
    "files": r"fsgroupchangepolicy|volumeIO|volumes|volume-stress|volumeMode",
    "growth": r"volume-expand|volume-modify|provisioning|capacity|topology",
    "many": r"",
}
_CAPABILITIES = (
    "persistence", "block", "fsGroup", "exec", "multipods", "RWX", "controllerExpansion", "nodeExpansion", "offlineExpansion",
    "onlineExpansion", "readWriteOncePod", "topology", "multiplePVsSameID", "capacity", "capReadOnlyMany",
)  # fmt: skip


@dataclass
class Verdict:
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name -> what it said
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why

    def lines(self) -> list[str]:
        rows = [f"{len(self.passed)} specs passed, {len(self.failed)} failed, {len(self.skipped)} not run"]
        rows += [f"  failed: {name}: {why.splitlines()[0] if why else '?'}" for name, why in sorted(self.failed.items())]
        reasons = sorted(set(self.skipped.values()))
        rows += [f"  not run, {sum(1 for one in self.skipped.values() if one == why)}: {why}" for why in reasons]
        return rows


def of_suites(words: str) -> str:
    """The specs of these suites: the suite's name stands behind the pattern's bracket."""
    return rf"\] ({words})\b"


def reason(name: str) -> str:
    """Why this spec is left out here, "" if it is not."""
    return next((why for words, why in LEFT_OUT.items() if re.search(words, name)), "")


def parse(reports: Iterable[Any]) -> Verdict:
    """Of ginkgo's JSON reports, of which each has all specs: those of other parts are skipped there without a word."""
    verdict = Verdict()
    silent: set[str] = set()
    for report in reports:
        for row in report[0]["SpecReports"] or []:
            if row["LeafNodeType"] != "It":
                if row["State"] not in ("passed", "skipped"):
                    verdict.failed[f"{row['LeafNodeType']} of the suite"] = row.get("Failure", {}).get("Message", row["State"])
                continue
            name = " ".join([*(row["ContainerHierarchyTexts"] or []), row["LeafNodeText"]])
            if DRIVER not in name:
                continue  # a package that upstream's own storage specs import defines others
            said = row.get("Failure", {}).get("Message", "")
            if row["State"] == "passed":
                verdict.passed += [name] if name not in verdict.passed else []
            elif row["State"] in ("skipped", "pending"):
                if said or row["State"] == "pending":
                    verdict.skipped[name] = said or "pending upstream"
                else:
                    silent.add(name)
            else:
                verdict.failed[name] = f"{row['State']}: {said}"
    ran = {*verdict.passed, *verdict.failed, *verdict.skipped}
    for name in silent - ran:
        if why := reason(name):
            verdict.skipped[name] = why
        else:
            verdict.failed[name] = "not run, and no reason is known"
    return verdict


def definition(inline: bool) -> dict[str, Any]:
    """What upstream must know of the driver."""
    about: dict[str, Any] = {
        "Name": DRIVER, "SupportedFsType": {"": {}}, "SupportedSizeRange": {"Min": "1Mi"},
        "Capabilities": dict.fromkeys(_CAPABILITIES, True),
        "SupportedMountOption": {"nosuid": {}, "noexec": {}}, "TopologyKeys": ["topology.awsomefs.io/cluster"],
        "StressTestOptions": {"NumPods": 4, "NumRestarts": 3}, "VolumeModifyStressTestOptions": {"NumPods": 2},
    }  # fmt: skip
    made: dict[str, Any] = {
        "StorageClass": {"FromExistingClassName": CLASS}, "VolumeAttributesClass": {"FromExistingClassName": MODIFIER}, "DriverInfo": about,
    }  # fmt: skip
    if inline:
        made["InlineVolumes"] = [{"Attributes": {"size": "64Mi"}, "Shared": False, "ReadOnly": False}]
    return made


class Suite:
    def __init__(self, rig: Rig, kubectl: Kubectl) -> None:
        self._rig, self._kubectl = rig, kubectl
        self._place = rig.place / "suite"

    def _argv(self, part: str, focus: str, skip: str, *more: str) -> list[str]:
        words = ["--provider=skeleton", f"--kubeconfig={self._rig.kubeconfig}", f"--storage.testdriver={self._place}/driver.json"]
        words += [f"--num-nodes={NODES}", f"--kubectl-path={self._rig.bin}/kubectl", f"--ginkgo.focus={focus}", f"--ginkgo.skip={skip}"]
        words += [f"--ginkgo.json-report={self._place}/{part}.json", "--ginkgo.no-color", "--ginkgo.v", "--ginkgo.timeout=6h", *more]
        return self._rig.in_hub(self._rig.bin / "e2e", *words)

    def prepare(self) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        (self._place / "driver.json").write_text(json.dumps(definition(inline=True)))
        about = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": MODIFIER}}
        self._kubectl.apply(about | {"driverName": DRIVER, "parameters": {"inodes": "1000"}})

    def parts(self) -> dict[str, tuple[str, str]]:
        """Name of a part -> (focus, skip)."""
        left_out = "|".join(words.removeprefix("(?i)") if not words.startswith("(?i)") else f"(?i:{words[4:]})" for words in LEFT_OUT)
        taken = of_suites("|".join(words for words in PARTS.values() if words))
        return {
            part: (f"{OURS}.*{of_suites(words)}" if words else OURS, left_out if words else f"{left_out}|{taken}")
            for part, words in PARTS.items()
        }

    def run(self, only: str = "") -> Verdict:
        """All parts beside each other; `only` is a focus instead of them."""
        step("External.Storage of upstream")
        self.prepare()
        parts = {"only": (only, next(iter(self.parts().values()))[1])} if only else self.parts()
        for part in parts:
            (self._place / f"{part}.json").unlink(missing_ok=True)
        started = {part: self._rig.spawn(f"suite-{part}", self._argv(part, *words)) for part, words in parts.items()}
        for part, child in started.items():
            try:
                child.wait(SPEC_S * 4)
            except subprocess.TimeoutExpired:
                child.terminate()
                warn(f"part {part} of the suite did not end")
        verdict = self.read(parts)
        for text in verdict.lines():
            line(f"  {text}")
        if not only and not verdict.failed:
            good("every spec passed or has a reason")
        return verdict

    def read(self, parts: Iterable[str]) -> Verdict:
        reports = []
        for part in parts:
            path = Path(self._place / f"{part}.json")
            if not path.exists():
                raise BuildError(f"part {part} of the suite has no report: see {self._rig.logs}/suite-{part}.log")
            reports.append(json.loads(path.read_text()))
        return parse(reports)
