"""What `awsomefsd pool` prints, and what it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.cli import main
from awsomefsd.cli.looking import pool

MIB = 1 << 20


def found() -> pb.PoolStatus:
    made = pb.PoolStatus(
        segment_bytes=64 * MIB, raw_bytes=6_400 * MIB, raw_free_bytes=3_200 * MIB, stale_bytes=64 * MIB, reserved_bytes=384 * MIB,
        total_bytes=3_000 * MIB, free_bytes=1_500 * MIB, promised_bytes=MIB, heal_bytes_per_s=64 * MIB, lost_after_ms=600_000,
        reserve_percent=4, counted_ms_ago=300,
    )  # fmt: skip
    made.policies.add(redundancy="replicas=3", volumes=[f"v{number}" for number in range(7)], copies=3, min_copies=2, domains=2)
    made.policies.add(redundancy="replicas=2", volumes=["w"], copies=2, min_copies=2, domains=1)
    host = made.hosts.add(host="u1", name="node-1", bays=50, free=25, maintenance_until_ms=1_700_000_000_000)
    host.devices.add(device=1, node="node-1", device_class="ssd", bays=50, free=25, state="ok", left_alone=True)
    return made


class Client:
    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def call(self, rpc: str, **fields: Any) -> pb.PoolStatus:
        self.asked.append((rpc, fields))
        return found()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(main.Invocation, "client", lambda self: made)
    return made


def run(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(main.cli, ["pool", *words], obj=main.Invocation())
    assert done.exit_code == status, done.output
    return done.output


def test_a_pool_in_order(client: Client) -> None:
    said = run("status")
    assert client.asked == [("GetPoolStatus", {})]
    for words in (
        "6.2 GiB, 3.1 GiB free, 64 MiB not trimmed yet, 384 MiB for repair", "1.0 MiB of it promised to writers", "lacking  nothing",
        "v0, v1, v2, v3, v4 and 2 more", "2 of 3 now", "nothing can be written: 1 of 2 take data", "50 %", "maintenance until",
        "heals with 64 MiB/s to a device, counts a device as lost after 600 s, and keeps 4 % of each host for repair",
    ):  # fmt: skip
        assert words in said, (words, said)
    assert "gets no copies" not in said and "gets no copies for some time" in run("status", "-v")


def test_what_lacks_and_how_it_is_mended(capsys: pytest.CaptureFixture[str]) -> None:
    made = found()
    made.lacks.add(priority=1, what="have fewer mirrors than wanted", segments=3, bytes_at_most=192 * MIB)
    made.lost_segments, made.lacking_since_ms, made.walks = 1, 1_700_000_000_000, 1
    made.healing.MergeFrom(pb.PoolHealing(copies=1, bytes_per_s=8 * MIB, seconds_left=24, asleep=2, why="no device has room"))
    pool._print(made, verbose=False)
    said = capsys.readouterr().out
    for words in (
        "3 segments have fewer mirrors than wanted, 192 MiB at most", "1 segment: nothing is left of them", "since 2023-11-",
        "1 change still being looked through", "1 copy under way, 8.0 MiB/s, about 24 s left",
        "nothing can be done for 2 segments: no device has room",
    ):  # fmt: skip
        assert words in said, (words, said)


def test_a_pool_that_nobody_has_counted(capsys: pytest.CaptureFixture[str]) -> None:
    made = found()
    made.counted_ms_ago = -1
    pool._print(made, verbose=False)
    assert "not counted yet by the node that leads" in capsys.readouterr().out


def test_a_drain_that_does_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    made = found()
    made.standing.add(device=3, node="node-3", segments=2, bytes=128 * MIB, since_ms=1_700_000_000_000, why="no device has room")
    pool._print(made, verbose=False)
    said = capsys.readouterr().out
    assert "2 segments (128 MiB of bays) cannot leave device 3 of node node-3 since 2023-11-" in said and "no device has room" in said


def test_json_has_all(client: Client) -> None:
    said = json.loads(run("status", "-o", "json"))
    assert said["raw_bytes"] == 6_400 * MIB and said["hosts"][0]["devices"][0]["left_alone"] is True


def test_set_sends_what_is_given(client: Client) -> None:
    assert "counts a device as lost after 600 s" in run("set", "--heal-rate", "32M", "--lost-after", "20m", "--reserve", "0")
    run("set", "--reserve", "7")
    assert client.asked == [
        ("SetPool", {"heal_bytes_per_s": 32 * MIB, "lost_after_ms": 1_200_000, "reserve_percent": 0}), ("SetPool", {"reserve_percent": 7}),
    ]  # fmt: skip
    assert "nothing is to be changed" in run("set", status=2)
    assert "--reserve" in run("set", "--reserve", "-1", status=2) and "--lost-after" in run("set", "--lost-after", "soon", status=2)
    assert len(client.asked) == 2


def test_it_is_in_no_list() -> None:
    assert "pool" not in [line.split()[0] for line in CliRunner().invoke(main.cli, ["--help"]).output.splitlines() if line.strip()]
