"""What packages are made of, without a build: units, scripts, configuration, manual, completions, locks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from awsomefsd.base import program
from awsomefsd.base.identity import POOL_DEVICES
from awsomefsd.cli.main import COMMANDS, HIDDEN
from awsomefsd.config import settings
from buildtools import binary, elf, manual, packages
from buildtools.say import CHECKOUT

UNITS = sorted((packages.SOURCE / "systemd").iterdir())


def test_units_are_understood(tmp_path: Path) -> None:
    """systemd knows every key of ours, and every unit that is named; the program stands in by one that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.name.replace("@", "@demo"))
        copies[-1].write_text(unit.read_text().replace("/usr/bin/awsomefsd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, timeout=120, check=False)
    ours = [row for row in done.stderr.splitlines() if any(copy.name in row for copy in copies)]
    assert not ours and done.returncode == 0, done.stderr


def test_units_make_no_mount_namespace() -> None:
    """Mounts made in one would never reach the host."""
    names = r"Protect\w+|Private\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|TemporaryFileSystem|RootDirectory|DynamicUser|BindPaths"
    forbidden = re.compile(rf"^({names})=", re.M)
    for unit in UNITS:
        assert not forbidden.search(unit.read_text()), unit
    keeper = (packages.SOURCE / "systemd/awsomefsd-keeper.service").read_text()
    assert "KillMode=process" in keeper and "OOMPolicy=continue" in keeper, "workers outlive the keeper and each other"


def test_enabling_the_daemon_is_enough() -> None:
    """It starts where there is no node yet (it waits), and brings the keeper and what unmounts at shutdown."""
    for unit in UNITS:
        assert "Condition" not in unit.read_text(), unit
    daemon = (packages.SOURCE / "systemd/awsomefsd.service").read_text()
    wanted = set(re.findall(r"^Wants=(.*)", daemon, re.M)[0].split())
    assert {"awsomefsd-keeper.service", "awsomefsd-mounts.service", "awsomefsd-segments.path"} <= wanted


def test_a_segment_server_runs_where_devices_of_pools_are_and_has_bounds_of_its_own() -> None:
    unit = (packages.SOURCE / "systemd/awsomefsd-segments.service").read_text()
    assert re.findall(r"^MemoryMax=(.*)", unit, re.M) == ["256M"] and "WantedBy" not in unit, "only its path unit starts it"
    path = (packages.SOURCE / "systemd/awsomefsd-segments.path").read_text()
    assert f"PathExists={settings.Settings().state_dir / POOL_DEVICES}" in path and "Unit=awsomefsd-segments.service" in path
    after = {name: re.findall(r"^After=(.*)", (packages.SOURCE / "systemd" / name).read_text(), re.M)[0].split() for name in (
        "awsomefsd-segments.service", "awsomefsd-mounts.service")}  # fmt: skip
    assert "awsomefsd.service" in after["awsomefsd-segments.service"], "it ends before the daemon"
    assert "awsomefsd-segments.service" in after["awsomefsd-mounts.service"], "and mounts end before it"
    for script in (packages.script("deb", "prerm"), packages.script("rpm", "prerm")):
        assert re.search(r"systemctl stop .*awsomefsd-segments\.path awsomefsd-segments\.service", script)


@pytest.mark.parametrize("kind", sorted(packages._HOOKS))
@pytest.mark.parametrize("package", ["deb", "rpm"])
def test_scripts_are_shell(kind: str, package: str) -> None:
    text = packages.script(package, kind)
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    assert "@" not in text and "{" not in text.replace("{print", "") and "systemctl start" not in text


def test_configuration_shows_the_built_in_values(tmp_path: Path) -> None:
    shipped = (packages.SOURCE / "files/awsomefsd.toml").read_text()
    file = tmp_path / "a.toml"
    file.write_text(shipped)
    built_in = settings.load(None, environ={})
    assert settings.load(file, environ={}) == built_in
    file.write_text(re.sub(r"^# (?=\w+ = )", "", shipped, flags=re.M).replace('"awsomefs"', '"root"'))
    assert len(tomllib.loads(file.read_text())) >= 7
    assert settings.load(file, environ={}).model_dump() == built_in.model_dump() | {"admin_group": "root"}


def test_manual_has_every_command() -> None:
    page = manual.page(0)
    for name in COMMANDS:
        assert (f"awsomefsd {name.replace('-', chr(92) + '-')}" in page) == (name not in HIDDEN), name
    if shutil.which("groff"):
        for text in (page, *manual.helper_pages(0).values()):
            done = subprocess.run(["groff", "-man", "-Tutf8", "-wall", "-z"], input=text, capture_output=True, text=True, check=False)
            assert not done.stderr, done.stderr


@pytest.mark.parametrize("shell", sorted(manual.SHELLS))
def test_completions_ask_the_program(shell: str) -> None:
    assert f"_AWSOMEFSD_COMPLETE={shell}_complete" in manual.completion(shell)
    words = {"COMP_WORDS": "awsomefsd vol", "COMP_CWORD": "1" if shell != "fish" else "vol", "_AWSOMEFSD_COMPLETE": f"{shell}_complete"}
    argv = [sys.executable, "-m", "awsomefsd"]
    done = subprocess.run(argv, env=program.environment() | words, capture_output=True, text=True, timeout=60, check=False)
    assert "volume" in done.stdout and "keeper" not in done.stdout, done


def test_locks_cover_what_is_required() -> None:
    """Each dependency stands there once, with hashes, and nothing names a place to get it from."""
    required = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=;]", text)[0] for text in required["dependencies"] + required["optional-dependencies"]["pyfuse3"]}
    lock = (binary.RECIPE / "requirements.lock").read_text()
    pinned = re.findall(r"^([a-z0-9.-]+)==[\w.]+ \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M)
    assert names <= set(pinned), f"{names - set(pinned)}: docs/PACKAGING.md has the command that makes requirements.lock anew"
    assert len(pinned) == len(set(pinned)) == len(re.findall("^[a-z].*==", lock, re.M))
    for name in ("requirements.lock", "tools.lock"):
        assert not re.search(r"https?:|--index|--find-links", (binary.RECIPE / name).read_text())


def test_version_is_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from awsomefsd import __version__
    from buildtools.say import BuildError

    monkeypatch.setattr(binary, "_git", lambda *words: "")
    assert binary.version() == __version__
    monkeypatch.setattr(binary, "_git", lambda *words: "v9.9.9")
    with pytest.raises(BuildError, match="tag"):
        binary.version()


def test_elf_reader_agrees_with_objdump() -> None:
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    path = Path(os.path.realpath("/bin/sh"))
    said = subprocess.run(["objdump", "-p", str(path)], capture_output=True, text=True, check=True).stdout
    found = elf.needs(path)
    assert list(found.libraries) == re.findall(r"NEEDED +(\S+)", said)
    assert {version for _, version in found.versions} == set(re.findall(r"0x[0-9a-f]+ 0x00 \d+ (\S+)", said))
    assert elf.glibc("GLIBC_2.34") == (2, 34) > elf.glibc("GLIBC_2.4") and elf.glibc("GLIBC_PRIVATE") == elf.glibc("ZLIB_1.2") == ()


def test_nobody_compares_with_the_type_of_bytecode_generators() -> None:
    """Generators of compiled code are of another type (base/wait.py)."""
    asking = [path for path in (CHECKOUT / "awsomefsd").rglob("*.py") if "GeneratorType" in path.read_text()]
    assert [path.name for path in asking] == ["wait.py"]


def test_what_differs_between_the_two_formats(tmp_path: Path) -> None:
    """rpm marks documents, removes only directories that it owns, and has other places; each file is in a package once."""
    for place in ("usr/lib/awsomefsd/a/b.so", "usr/share/doc/awsomefsd/copyright", "usr/share/zsh/vendor-completions/_awsomefsd"):
        packages._install(Path(__file__), tmp_path / place)
    for place in ("usr/share/lintian/overrides/awsomefsd", "etc/awsomefsd/awsomefsd.toml"):
        packages._install(Path(__file__), tmp_path / place)
    rows = packages.contents(tmp_path)
    found = {kind: {row["dst"]: row.get("type", "") for row in rows if row.get("packager", kind) == kind} for kind in ("deb", "rpm")}
    for kind, places in found.items():
        assert len(places) == sum(row.get("packager", kind) == kind for row in rows)
        assert places["/usr/lib/awsomefsd/a"] == "dir" and places["/etc/awsomefsd"] == "dir"
        assert places["/etc/awsomefsd/awsomefsd.toml"] == "config|noreplace" and places["/usr/lib/awsomefsd/a/b.so"] == ""
    assert found["rpm"]["/usr/share/doc/awsomefsd/copyright"] == "doc" and found["deb"]["/usr/share/doc/awsomefsd/copyright"] == ""
    only = {kind: set(places) - set(found["rpm" if kind == "deb" else "deb"]) for kind, places in found.items()}
    assert only["rpm"] == {"/usr/share/zsh/site-functions/_awsomefsd"}
    assert only["deb"] == {"/usr/share/zsh/vendor-completions/_awsomefsd", "/usr/share/lintian/overrides/awsomefsd"}


def test_dependencies_of_the_rpm_are_those_of_the_files(tmp_path: Path) -> None:
    shutil.copy(os.path.realpath("/bin/sh"), tmp_path / "program")
    assert {"libc.so.6(GLIBC_2.34)(64bit)", "libc.so.6()(64bit)"} <= set(packages.libraries(tmp_path))


def test_archive_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    target = tmp_path / "awsomefsd-1"
    packages._install(Path(__file__), target / "folder" / "file", 0o755)
    first = binary.archive(target).read_bytes()
    assert binary.archive(target).read_bytes() == first
    with tarfile.open(tmp_path / "awsomefsd-1.tar.xz") as tar:
        names = {member.name: (member.mode & 0o777, member.uid, member.uname) for member in tar}
    assert names["awsomefsd-1/folder/file"] == (0o755, 0, "root") and len(names) == 3
