"""How pages are read: commands, what is typed into them and what they show, compared with what another run shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import page

TEXT = """# Title

## Make it

```console
all# first --option "a # b"     # a remark, exit status 3
$ cat > program.py
print("hello")
$ python3 program.py
hello
NAME  STATE
───────────
…
```

```sh
not typed
```
"""


def test_commands_are_found_with_what_belongs_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "PAGE.md").write_text(TEXT)
    monkeypatch.setattr(page, "CHECKOUT", tmp_path)
    first, cat, run = page.commands("PAGE.md")
    assert (first.heading, first.where, first.status, first.shown) == ("Make it", "all", 3, [])
    assert (cat.where, cat.text, cat.typed, cat.shown) == ("", "cat > program.py", ['print("hello")'], [])
    assert (run.plain, run.status, run.shown) == ("python3 program.py", 0, ["hello", "NAME  STATE", "…"])


SHOWN = (
    "demo   52 MiB   none   2,414   b88db7ce-d5bc-4303-b283-a515c7296cb0   up 1 min 21 s   0.4 s ago   20s   n2   leader   "
    "mount=41d9e4bf75c66afd un…"
)


def test_numbers_and_names_of_another_run_are_the_same_to_it() -> None:
    told = "x\n demo  6 B  none 3  00000000-d5bc-4303-b283-a515c7296cb1 up 7 s 12.4 s ago 3m  n1 voter mount=31bb01bf2837099c unique=1  \ny"
    assert page.missing([SHOWN, "y"], told) == []


@pytest.mark.parametrize("changed", ["demon", "quota"])
def test_other_words_are_not(changed: str) -> None:
    told = SHOWN.replace("none", changed) if changed == "quota" else SHOWN.replace("demo", changed)
    assert page.missing([SHOWN], told) == [SHOWN]
    assert page.missing(["hello"], "hello world") == ["hello"]
