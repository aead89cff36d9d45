"""What the tables of `bench --shared` say of figures: no ratio of what was wrong, no limit of the machine while others use it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from buildtools import prepare
from tests.bench import shared_measures, shared_tables
from tests.bench.shared_measures import HANDOVER, MEASURES, QUICK, READS, WRITES, Wrong


def run(rates: tuple[float, float, float], busy: tuple[float, float, float], others: float = 1.0) -> dict[str, Any]:
    """A run as `--json` keeps it: rates of `shared`, how busy the processors were."""
    measured = {name: {"shared": [rate, rate, rate * 9]} for name, rate in zip(WRITES, rates, strict=True)}
    cost = {"wall_s": 1.0, "busy_s": 2.0, "worker_s": 1.0, "daemon_s": 0.5}
    return {
        "began": "2026-01-01", "minutes": 3.0, "machine": {"kernel": "6", "processors": 2, "python": "3"}, "rounds": 3, "loads": [0.5, 2.5],
        "amounts": {"stream_mib": 512, "creates": 1, "appends": 1, "turns": 1}, "versions": {"MooseFS": "3", "GlusterFS": ""},
        "units": {name: unit for name, unit, _ in MEASURES}, "places": ["shared", "ext4", "MooseFS"], "failed": "", "wrong": {},
        "runs": measured, "requests": {}, "others_percent": [others], "ttl_s": 10.0,
        "processors": {name: {"shared": [cost | {"busy_percent": of}]} for name, of in zip(WRITES, busy, strict=True)},
    }  # fmt: skip


def rows(text: str, begins: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(f"| {begins}")]


def test_medians_and_ratios_of_what_was_measured() -> None:
    found = run((100, 200, 300), (40, 70, 95))
    found["runs"][WRITES[0]] |= {"ext4": [400.0], "MooseFS": [50.0, 60.0, 40.0]}
    found["runs"][HANDOVER] = {"shared": [2.0], "ext4": [0.5], "MooseFS": []}
    found["wrong"] = {HANDOVER: {"MooseFS": "3 of 9 reads stale"}}
    text = shared_tables.measures(found)
    assert rows(text, WRITES[0])[0] == [WRITES[0], "100 MiB/s", "400 MiB/s", "50.0 MiB/s", "0.25", "2.00"]
    assert rows(text, HANDOVER)[0] == [HANDOVER, "2.00 ms", "0.50 ms", "3 of 9 reads stale", "0.25", "-"]
    assert rows(text, READS[0])[0][1:] == ["-"] * 5, "not measured"


def test_a_figure_that_was_right_before_it_was_wrong_is_none() -> None:
    found = run((100, 200, 300), (40, 70, 95))
    found["wrong"] = {WRITES[2]: {"shared": "a client process failed"}}
    assert "a client process failed" in shared_tables.measures(found)
    assert not any(WRITES[0] in said or "write" in said for said in shared_tables.verdicts(found))


@pytest.mark.parametrize(
    ("rates", "busy", "others", "said"),
    [
        ((100, 170, 230), (30, 60, 80), 1.0, "2.30 times what one does (to reach: 2.2: reached)"),
        ((100, 150, 180), (50, 80, 97), 1.0, "so 2.00 times is all that the processors have"),
        ((100, 150, 180), (50, 80, 97), 1.0, "with three nodes 97 % are busy: that is the machine's limit"),
        ((100, 150, 180), (20, 30, 40), 1.0, "the processors are not the limit"),
        ((100, 150, 180), (97, 98, 99), 60.0, "**not shown**: others kept 60 %"),
        ((100, 200, 300), (97, 98, 99), 60.0, "**not shown**: others kept 60 %"),
    ],
)  # fmt: skip
def test_what_is_said_of_three_nodes(rates: tuple[float, ...], busy: tuple[float, ...], others: float, said: str) -> None:
    found = shared_tables.verdicts(run(rates, busy, others))  # type: ignore[arg-type]
    assert len(found) == 1 and said in found[0], found


def test_processor_time_is_told_for_each_gib() -> None:
    text = shared_tables.scaling(run((100, 200, 300), (40, 70, 95)))
    assert rows(text, "write: processor seconds")[0][1:4] == ["4.00", "2.00", "1.33"]  # 2 s for 0.5, 1 and 1.5 GiB


def test_ends_are_held_against_the_session_the_election_and_a_second() -> None:
    found = run((1, 1, 1), (1, 1, 1))
    found["ends"] = {
        "killed, did not lead": [{"lock_s": 11.9, "file_s": 11.0, "ended_s": 0.1}, {"lock_s": 12.1, "file_s": 11.0, "ended_s": 0.1}],
        "killed, led": [{"lock_s": 13.4, "file_s": 13.0, "leader_s": 1.5, "ended_s": 0.1}],
        "stopped cleanly, led": [{"lock_s": 0.4, "file_s": 1.1, "leader_s": 0.5, "ended_s": 2.0}],
    }
    text = shared_tables.ends(found)
    assert rows(text, "killed, did not lead")[0][1:] == ["11.90 12.10", "11.00 11.00", "-", "0.10 0.10", "12.0 s: **not reached**"]
    assert rows(text, "killed, led")[0][-1] == "13.5 s: reached"
    assert rows(text, "stopped")[0][-1] == "1.0 s: **not reached**"


def test_percentiles_are_samples() -> None:
    values = [float(value) for value in range(1, 201)]
    assert [shared_tables.percentile(values, percent) for percent in (50, 99, 100)] == [100, 198, 200]
    assert shared_tables.percentile([7.0], 99) == 7


def test_a_run_that_ended_early_still_has_tables() -> None:
    found = run((100, 200, 300), (40, 70, 95)) | {"failed": "no leader", "runs": {}, "processors": {}}
    del found["places"]
    text = shared_tables.tables(json.loads(json.dumps(found)))
    assert "Not complete: no leader" in text and "2.2" not in text


def test_all_measures_on_one_plain_directory(tmp_path: Path) -> None:
    for name, unit, measure in MEASURES:
        assert measure([tmp_path] * 3, shared_measures.Amounts(1, 3, 3, 3, 3)) > 0, (name, unit)
    assert len({name for name, *_ in MEASURES}) == len(MEASURES) and QUICK.stream_mib < shared_measures.FULL.stream_mib


def test_what_is_not_there_is_installed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    there = {"apt-get", "mfsmaster", "mfschunkserver", "mfsmount", "glusterfs"}
    monkeypatch.setattr(prepare, "_which", lambda name: name if name in there else None)
    monkeypatch.setattr(prepare, "_install", lambda names: asked.append(names) or "no network")
    prepare.others()
    assert asked == [["glusterfs-server", "glusterfs-cli"]]


def test_what_hangs_ends_its_own_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_measures, "LONGEST_S", 0.2)
    with pytest.raises(OSError, match="no end within"):
        shared_measures.together([lambda: None, signal.pause])


def test_bytes_that_differ_are_told(tmp_path: Path) -> None:
    """Two directories that are not the same filesystem: what one writes the other never shows."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "closed").write_bytes(b"something")
    with pytest.raises(Wrong, match="3 of 3 reads stale"):
        shared_measures.closed_then_opened(folders, shared_measures.Amounts(1, 1, 1, 3, 1))
