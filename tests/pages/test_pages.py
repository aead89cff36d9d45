"""The commands of README.md, docs/QUICKSTART.md and docs/TOUR.md, typed on real nodes in the order of the pages (decision 447).

They are taken from the pages, and what a page shows has to be shown.  What is not typed is in `LEFT_OUT`, with the reason: a command that
is new on a page is typed or named there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from buildtools import loops, netns
from buildtools.cluster import Cluster
from tests.conftest import MakeCluster
from tests.pages.machine import Machine
from tests.pages.page import Command, commands

README, QUICKSTART, TOUR = "README.md", "docs/QUICKSTART.md", "docs/TOUR.md"
# (page, heading, how the commands begin): why they are not typed.
LEFT_OUT = {
    (README, "Try it", ""): "takes minutes; it is the first thing that .ci/run does",
    (README, "A first real cluster", "apt install"): "changes the host; tests/packaging installs the packages",
    (QUICKSTART, "2. Install the package", "python3 build.py packages"): "takes minutes; tests/packaging makes them",
    (QUICKSTART, "2. Install the package", "apt install"): "changes the host; tests/packaging installs the packages",
    (QUICKSTART, "4. Make the disk visible", ""): "needs storage in the network",
    (QUICKSTART, "5. Make the cluster", "systemctl"): "needs systemd; the same variable is given to supervise in docs/TOUR.md",
    (QUICKSTART, "8. Mount at boot", ""): "changes the host; tests/packaging mounts by /etc/fstab",
    (TOUR, "One machine, from the checkout", "pip install"): "changes the host, and takes minutes",
}
# A service manager starts it there; README names what stands in its place without one.
INSTEAD = {"systemctl enable --now awsomefsd": "awsomefsd supervise &"}
PAGES = {page: commands(page) for page in (README, QUICKSTART, TOUR)}
IN_README = ("A first real cluster",)
BY_QUICKSTART = ("2. Install the package", "3. Open the ports", "5. Make the cluster", "6. Add the disk, make a volume", "7. Mount")
OF_DEMONSTRATION = (
    "One volume on three nodes", "Kill the workers while a program writes", "Follow the log", "Look at the node and its cluster",
    "Unmount, and try to destroy something", "Check everything",
)  # fmt: skip
ONE_STRING, ONE_MACHINE = "Three real machines with one string", "One machine, from the checkout"
TYPED = {README: IN_README, QUICKSTART: BY_QUICKSTART, TOUR: (*OF_DEMONSTRATION, ONE_STRING, ONE_MACHINE)}

Machines = list[Machine]
MakeMachines = Callable[..., Machines]


def left_out(command: Command) -> bool:
    return any(
        command.page == page and command.heading == heading and command.text.startswith(begins) for page, heading, begins in LEFT_OUT
    )


def chosen(page: str, *headings: str) -> list[Command]:
    return [command for command in PAGES[page] if command.heading in headings and not left_out(command)]


@pytest.fixture
def make_machines(make_cluster: MakeCluster) -> Iterator[MakeMachines]:
    """Machines that all see one disk; without a cluster that is given, nothing runs on them."""
    opened: Machines = []

    def make(count: int = 3, cluster: Cluster | None = None) -> Machines:
        if not loops.usable():
            pytest.skip("needs loop devices")
        cluster = cluster or make_cluster(count)
        disk = os.path.realpath(cluster.nodes[0].attach())
        made = []
        for node in cluster.nodes:
            home = node.directory / "home"
            places = {"/srv/demo": str(cluster.directory), "/srv/": f"{home}/srv/", "/etc/": f"{home}/etc/", "10.0.0.": f"{netns.NET}."}
            places |= dict.fromkeys(("/dev/disk/by-id/…", "/dev/disk/by-id/wwn-0x…"), disk)
            made.append(Machine(cluster, node, places))
        opened.extend(made)
        return made

    yield make
    for machine in opened:
        machine.close()


def type_all(machines: Machines, given: list[Command], after: dict[str, Callable[[str], object]] | None = None) -> None:
    """Types the commands where the page says; `after` names what a reader does behind the one that begins so, with what it showed."""
    for command in given:
        who = {"all": machines, "others": machines[1:], "anywhere": machines[-1:]}.get(command.where, machines[:1])
        told = [machine.type(command, INSTEAD.get(command.plain, "")) for machine in who]
        if "supervise &" in INSTEAD.get(command.plain, command.plain):
            for machine in who:
                machine.await_daemon()
        for begins, then in (after or {}).items():
            if command.text.startswith(begins):
                then(told[0])


def copy_token(machines: Machines) -> Callable[[str], None]:
    def copy(_told: str) -> None:
        for machine in machines[1:]:
            shutil.copy(machines[0].home / "token", machine.home / "token")

    return copy


def test_each_command_is_typed_or_has_a_reason() -> None:
    for (page, heading, begins), why in LEFT_OUT.items():
        found = [command for command in PAGES[page] if command.heading == heading and command.text.startswith(begins)]
        assert found and why, f"{page} has no longer what is left out: {heading!r}, {begins!r}"
    forgotten = [command for page, found in PAGES.items() for command in found if command.heading not in TYPED[page]]
    assert [str(command) for command in forgotten if not left_out(command)] == []
    empty = [(page, heading) for page, headings in TYPED.items() for heading in headings if not chosen(page, heading)]
    assert empty == []


def test_the_first_cluster_of_the_readme(make_machines: MakeMachines) -> None:
    machines = make_machines()
    type_all(machines, chosen(README, *IN_README), {"(umask": copy_token(machines)})


def test_the_quick_start(make_machines: MakeMachines) -> None:
    machines = make_machines()
    for machine in machines:  # "your own input chain"
        machine.run("nft add table inet filter; nft 'add chain inet filter input { type filter hook input priority 0; }'")
    given = [command for command in chosen(QUICKSTART, *BY_QUICKSTART) if command not in second_way()]
    type_all(machines, given, {"(umask": copy_token(machines)})


def second_way() -> list[Command]:
    """The commands of the quick start that make a cluster by a founding token: a machine is in one cluster only."""
    ways = chosen(QUICKSTART, "5. Make the cluster")
    return ways[[command.where for command in ways].index("anywhere") :]


def test_the_tour(make_cluster: MakeCluster, make_machines: MakeMachines) -> None:
    """The last part first: its three machines are then those of the demonstration.  And the second way of the quick start, offline."""
    cluster = make_cluster()
    machines = make_machines(cluster=cluster)
    offline = second_way()

    def paste(told: str) -> None:
        for command in offline:
            command.typed += [told.strip()] if "/dev/stdin" in command.text else []

    type_all(machines, offline, {"awsomefsd token generate": paste})
    type_all(machines, chosen(TOUR, ONE_STRING), {"awsomefsd token generate": copy_token(machines)})
    assert [len(machine.node.ask("node", "ls")) for machine in machines] == [3, 3, 3]
    cluster.share()
    cluster.provision()
    cluster.mount()
    cluster.write_env()
    reader = make_machines(cluster=cluster)[0]  # a shell of its own
    for command in chosen(TOUR, *OF_DEMONSTRATION):
        if "--from N" in command.text:
            reader.node.cli("flush", "photos")  # what the section before wrote is no part of what this one shows
            reader.places["--from N"] = f"--from {reader.node.ask('status')['figures']['applied']}"
        type_all([reader], [command])


def test_one_machine_from_the_checkout(make_machines: MakeMachines) -> None:
    type_all(make_machines(1), chosen(TOUR, ONE_MACHINE))
