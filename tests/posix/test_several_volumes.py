"""A node with a second volume mounted: stopped, started and removed like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildtools.nodes import await_true


@pytest.mark.root
def test_a_further_mount_comes_back_with_its_node(make_node, tmp_path: Path) -> None:
    node = make_node()
    further = tmp_path / "further"
    further.mkdir()
    node.cli("volume", "create", "extra")
    node.cli("mount", "extra", str(further))
    (further / "a").write_text("kept")
    (node.mountpoint / "b").write_text("also")
    node.umount()
    node.stop()
    node.start()
    node.mount()

    def there() -> bool:
        try:
            return (further / "a").read_text() == "kept"
        except OSError:  # ENOTCONN until the daemon has mounted it again
            return False

    await_true("the further mount", there, 60)
    assert (node.mountpoint / "b").read_text() == "also"
    assert node.further_mounts() == [str(further)]
    node.destroy()
    assert not any(str(further) in row for row in Path("/proc/self/mounts").read_text().splitlines())
