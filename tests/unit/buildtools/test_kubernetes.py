"""build.py soak --kubernetes, as far as it needs no cluster: specs and their reports, images, what is said where a tool is missing."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from buildtools import commands, prepare
from buildtools.kubernetes import images, rig, sources, suite, workload
from buildtools.kubernetes.rig import Rig
from buildtools.oci import Archive, Tree
from buildtools.say import BuildError

PREFIX = "External Storage [Driver: csi.awsomefs.io] [Testpattern: "


def spec(name: str, state: str, said: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"ContainerHierarchyTexts": [PREFIX.strip()], "LeafNodeText": name, "LeafNodeType": "It", "State": state}
    return row | ({"Failure": {"Message": said}} if said else {})


def report(*specs: dict[str, Any]) -> Any:
    return [{"SpecReports": list(specs)}]


# --- the suite ----------------------------------------------------------------------------------------------------------------
def test_a_spec_that_another_part_has_run_is_not_missing() -> None:
    first = report(spec("reads", "passed"), spec("writes", "skipped"))
    second = report(spec("reads", "skipped"), spec("writes", "failed", "no bytes"))
    verdict = suite.parse([first, second])
    assert [name.split()[-1] for name in verdict.passed] == ["reads"]
    assert list(verdict.failed.values()) == ["failed: no bytes"] and verdict.skipped == {}


def test_a_spec_that_no_part_has_run_needs_a_reason() -> None:
    verdict = suite.parse([report(spec("Dynamic PV (ntfs)] reads", "skipped"), spec("falls through", "skipped"))])
    assert list(verdict.skipped.values()) == ["for nodes with Windows"]
    assert list(verdict.failed.values()) == ["not run, and no reason is known"]


def test_what_a_spec_says_itself_is_its_reason() -> None:
    verdict = suite.parse([report(spec("limits", "skipped", "Driver has no limit"), spec("later", "pending"))])
    assert sorted(verdict.skipped.values()) == ["Driver has no limit", "pending upstream"] and not verdict.failed


def test_a_suite_that_failed_before_its_specs_has_failed() -> None:
    row = {"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no server"}}
    assert suite.parse([report(row)]).failed == {"BeforeSuite of the suite": "no server"}


def test_every_spec_belongs_to_one_part(tmp_path: Path) -> None:
    parts = suite.Suite(Rig(tmp_path), None).parts()  # type: ignore[arg-type]
    names = {
        "Dynamic PV (default fs)] subPath should support existing directory": 1,
        "Dynamic PV (default fs)] volumes should store data": 1,
        "Dynamic PV (block volmode)] multiVolume [Slow] should access to two volumes": 1,
        "Dynamic PV (default fs)(allowExpansion)] volume-expand should resize volume when PVC is edited": 1,
        "Generic Ephemeral-volume (default fs)] ephemeral should create read-only inline ephemeral volume": 1,
        "Dynamic PV (default fs)] subPath should support creating multiple subpath from same volumes [Slow]": 1,
        "Dynamic PV (block volmode)] volume-modify-stress [Feature:X] multiple pods should provision volumes with a class": 1,
        "Dynamic PV (ntfs)] volumes should store data": 0,
        "Pre-provisioned PV (default fs)] volumes should store data": 0,
    }
    for name, wanted in names.items():
        whole = f"{PREFIX}{name}"
        found = [part for part, (focus, skip) in parts.items() if re.search(focus, whole) and not re.search(skip, whole)]
        assert len(found) == wanted, (name, found)


# --- what pods say ------------------------------------------------------------------------------------------------------------
def test_a_stall_belongs_to_the_time_it_was_under_way() -> None:
    said = workload.Said(slow=[(100.0, 2.0, "fsync"), (200.0, 0.7, "create")])
    assert said.longest_s(101.0, 150.0) == 2.0
    assert said.longest_s(103.0, 150.0) == 0.0
    assert said.longest_s(0.0, 300.0) == 2.0


# --- images and sources -------------------------------------------------------------------------------------------------------
def test_another_build_is_the_image_with_one_file_more(tmp_path: Path) -> None:
    tree = Tree()
    tree.add("usr/lib/awsomefsd/awsomefsd", b"program", 0o755)
    Archive("awsomefs/awsomefsd:1", "amd64", 0, {"Entrypoint": ["/x"]}, [("program", tree)]).write(tmp_path / "given.tar")
    images.another_build(tmp_path / "given.tar", tmp_path / "made.tar", "docker.io/awsomefs/awsomefsd:2")
    with tarfile.open(tmp_path / "made.tar") as made:
        saved = json.load(made.extractfile("manifest.json") or pytest.fail("no manifest"))[0]
        config = json.load(made.extractfile(saved["Config"]) or pytest.fail("no configuration"))
        last = (made.extractfile(saved["Layers"][-1]) or pytest.fail("no layer")).read()
    assert saved["RepoTags"] == ["docker.io/awsomefs/awsomefsd:2"] and config["config"]["Entrypoint"] == ["/x"]
    assert len(config["rootfs"]["diff_ids"]) == len(saved["Layers"]) == 2
    assert config["rootfs"]["diff_ids"][-1] == f"sha256:{hashlib.sha256(last).hexdigest()}"


def tool(place: Path, name: str, says: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (place / name).chmod(0o755)


def test_a_go_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "go", "go1.21.3")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(BuildError, match=r"is go1\.21\.3; Kubernetes v1\.\d+\.\d+ needs Go 1\.26 or later"):
        sources.go()
    tool(tmp_path / "bin", "go", "go1.26.8")
    assert sources.go() == tmp_path / "bin" / "go"


def test_a_machine_without_go_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda _name: None)
    monkeypatch.setattr(sources.os.path, "exists", lambda _path: False)
    with pytest.raises(BuildError, match="go is not installed"):
        sources.go()


def test_a_program_is_built_again_when_what_it_is_made_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.bin.mkdir()
    made = sources.Sources(rig)
    assert made.missing() == list(sources.PROGRAMS)
    for row in sources.PROGRAMS:
        for name in row:
            (rig.bin / name).touch()
    digests = {name: made.digest(row) for row in sources.PROGRAMS for name in row}
    (rig.bin / "made.json").write_text(json.dumps(digests))
    assert made.missing() == []
    (rig.bin / "kubelet").unlink()
    assert made.missing() == [sources.PROGRAMS[0]]
    monkeypatch.setitem(sources.MODULES, "helm.sh/helm/v3", "v3.0.0")
    assert made.missing() == list(sources.PROGRAMS)


# --- the command --------------------------------------------------------------------------------------------------------------
def test_packages_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "KUBERNETES", {"no-such-program": "a-package", "/no/such/plugin": "another-package"})
    monkeypatch.setattr(prepare, "_install", lambda _names: "no network")
    with pytest.raises(BuildError, match=r"could not install a-package another-package .*no network"):
        prepare.kubernetes()


def test_soak_with_kubernetes_is_the_trial_and_no_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Became(Exception):
        pass

    def become(*words: str) -> None:
        raise Became(words)

    monkeypatch.setattr(commands, "_program", become)
    monkeypatch.setattr(prepare, "packages", lambda: None)
    monkeypatch.setattr(prepare, "venv", lambda **_words: None)
    with pytest.raises(Became) as told:
        commands.soak(["--kubernetes", "--focus", "subPath"])
    assert told.value.args[0] == ("-m", "buildtools.kubernetes.trial", "--focus", "subPath")


def test_a_second_trial_in_one_place_is_refused(tmp_path: Path) -> None:
    with rig.Rig(tmp_path).take(), pytest.raises(BuildError, match=r"another build\.py soak --kubernetes works in"):
        rig.Rig(tmp_path).take()
    rig.Rig(tmp_path).take().close()


def test_only_loop_devices_of_its_own_nodes_are_the_rigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version took every block volume on the machine for its own: the tests of the driver beside it lost theirs."""
    volumes = "plugins/csi.awsomefs.io/volumes"
    (tmp_path / "run" / "kn2" / "kubelet" / volumes / "mine").mkdir(parents=True)
    paths = [f"/var/lib/kubelet/{volumes}/mine/block.img", f"/var/lib/kubelet/{volumes}/other/block.img", "/block.img", "/x/device.img"]
    monkeypatch.setattr(rig, "shown", lambda: {f"/dev/loop{at}": path for at, path in enumerate(paths)})
    assert rig.Rig(tmp_path).loops_of_volumes() == ["/dev/loop0"]
    assert rig.Rig(tmp_path).loops_of_volumes(["kn1"]) == []


def test_the_end_of_a_run_that_never_began_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert Rig(tmp_path).destroy() == []
    assert (tmp_path / "bin").exists()
