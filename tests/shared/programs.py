"""A process beside the test that calls the functions it is asked to: `python -m tests.shared.programs MODULE`.

Requests and replies are pickles on stdin and stdout.  A request names a function `do_NAME` of the module and its arguments.  So programs
"on" a node run beside each other, hold locks that end with them, and can be killed; the test itself waits for every answer with a bound.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import selectors
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 120.0


class ProgramError(OSError):
    """What the function raised there, with its errno."""


class Program:
    """The pipe to one such process."""

    def __init__(self, module: str = "tests.shared.tasks") -> None:
        argv = [sys.executable, "-m", "tests.shared.programs", module]
        env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT)
        self.asked = False  # a call whose result nobody has taken

    def start(self, name: str, *arguments: Any) -> None:
        assert self.child.stdin is not None
        self.asked = True
        pickle.dump((name, arguments), self.child.stdin)
        self.child.stdin.flush()

    def answered(self, timeout_s: float) -> bool:
        assert self.child.stdout is not None
        with selectors.PollSelector() as poll:
            poll.register(self.child.stdout, selectors.EVENT_READ)
            return bool(poll.select(timeout_s))

    def result(self, timeout_s: float = ANSWER_S) -> Any:
        assert self.child.stdout is not None
        assert self.answered(timeout_s), f"no answer within {timeout_s:.0f} s"
        value, code, words = pickle.load(self.child.stdout)
        self.asked = False
        if code:
            raise ProgramError(code, words)
        assert not words, words
        return value

    def call(self, name: str, *arguments: Any) -> Any:
        self.start(name, *arguments)
        return self.result()

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        self.close()

    def close(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


@contextlib.contextmanager
def running(count: int, module: str = "tests.shared.tasks") -> Iterator[list[Program]]:
    made = [Program(module) for _ in range(count)]
    try:
        yield made
    finally:
        for program in made:
            program.child.kill()
        for program in made:
            program.close()


def together(made: Sequence[Program], requests: Sequence[Sequence[Any]], timeout_s: float = ANSWER_S) -> list[Any]:
    """One request each, at the same time; all answers are awaited, then the first error is raised."""
    for program, request in zip(made, requests, strict=True):
        program.start(*request)
    values, errors = [], []
    for program in made:
        try:
            values.append(program.result(timeout_s))
        except (OSError, AssertionError) as err:
            errors.append(err)
    if errors:
        raise errors[0]
    return values


def _answer(module: Any, name: str, arguments: Sequence[Any]) -> tuple[Any, int, str]:
    try:
        return getattr(module, f"do_{name}")(*arguments), 0, ""
    except OSError as err:
        return None, err.errno or -1, f"{name}{str(arguments)[:200]}: {err}\n{traceback.format_exc()[-1500:]}"
    except Exception:
        return None, 0, f"{name}{str(arguments)[:200]}: {traceback.format_exc()[-3000:]}"


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pickle.dump(_answer(module, *pickle.load(requests)), replies)
            replies.flush()


if __name__ == "__main__":
    main()
