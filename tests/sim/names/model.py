"""What names are, said once more and simply: directories of names, files with links and a mode, and what each command makes of them.

A model is never changed, only followed by another one, so the judge keeps all of them.  It says which errors fit a command as a set: where
several things are wrong at once, any of them may be told.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field, replace
from typing import Any

from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api import commands as c

Names = dict[bytes, int]


@dataclass(frozen=True)
class File:
    links: int
    mode: int
    size: int = 0


@dataclass(frozen=True)
class Model:
    directories: dict[int, Names] = field(default_factory=lambda: {ROOT_INO: {}})
    files: dict[int, File] = field(default_factory=dict)

    # --- questions ---------------------------------------------------------------------------------------------------------
    def find(self, parent: int, name: bytes) -> int:
        return self.directories.get(parent, {}).get(name, 0)

    def knows(self, ino: int) -> bool:
        return ino in self.directories or ino in self.files

    def fits(self, attr: Any) -> bool:
        """Says whether attributes are those of now; of a directory only that it is one."""
        if stat.S_ISDIR(attr.mode):
            return attr.ino in self.directories
        file = self.files.get(attr.ino)
        return file is not None and (file.links, file.mode, file.size) == (attr.nlink, attr.mode & 0o7777, attr.size)

    def _holds(self, ino: int, other: int) -> bool:
        """Says whether the directory `other` is `ino`, or below it."""
        return ino == other or any(child in self.directories and self._holds(child, other) for child in self.directories[ino].values())

    # --- commands ----------------------------------------------------------------------------------------------------------
    def errors(self, command: Any) -> set[int]:
        """Returns what is wrong with it; nothing: it is done."""
        if isinstance(command, c.SetAttr):
            return set() if self.knows(command.ino) else {errno.ENOENT}
        wrong = {errno.ENOENT} if command.parent not in self.directories else set()
        found = self.find(command.parent, command.name)
        if isinstance(command, c.Create):
            return wrong | ({errno.EEXIST} if found else set())
        if isinstance(command, c.Link):
            wrong |= {errno.EPERM} if command.ino in self.directories else set() if command.ino in self.files else {errno.ENOENT}
            return wrong | ({errno.EEXIST} if found else set())
        if not found:
            return wrong | {errno.ENOENT}
        if isinstance(command, c.Unlink):
            return {errno.EISDIR} if found in self.directories else set()
        if isinstance(command, c.Rmdir):
            return {errno.ENOTDIR} if found in self.files else {errno.ENOTEMPTY} if self.directories[found] else set()
        return self._rename_errors(command, found)

    def _rename_errors(self, command: c.Rename, found: int) -> set[int]:
        if command.new_parent not in self.directories:
            return {errno.ENOENT}
        target = self.find(command.new_parent, command.new_name)
        wrong: set[int] = set()
        if found in self.directories:
            if self._holds(found, command.new_parent):
                wrong.add(errno.EINVAL)
            if target in self.files:
                wrong.add(errno.ENOTDIR)
        elif target in self.directories:
            wrong.add(errno.EISDIR)
        if target in self.directories and target != found and self.directories[target]:
            wrong.add(errno.ENOTEMPTY)
        return wrong

    def after(self, command: Any, made: int) -> Model:
        """Returns what is there when the command is done; `made`: the number of what it makes."""
        if isinstance(command, c.SetAttr):
            return self._with_file(command.ino, command)
        if isinstance(command, c.Create):
            directories = self._with_name(command.parent, command.name, made)
            if stat.S_ISDIR(command.mode):
                return replace(self, directories={**directories, made: {}})
            return Model(directories, {**self.files, made: File(1, command.mode & 0o7777)})
        if isinstance(command, c.Link):
            file = self.files[command.ino]
            files = {**self.files, command.ino: replace(file, links=file.links + 1)}
            return Model(self._with_name(command.parent, command.name, command.ino), files)
        if isinstance(command, c.Rename):
            return self._renamed(command)
        found = self.find(command.parent, command.name)
        return replace(self, directories=self._with_name(command.parent, command.name, 0))._without(found)

    def _renamed(self, command: c.Rename) -> Model:
        found, target = self.find(command.parent, command.name), self.find(command.new_parent, command.new_name)
        if found == target:
            return self
        gone = replace(self, directories=self._with_name(command.parent, command.name, 0))
        there = replace(gone, directories=gone._with_name(command.new_parent, command.new_name, found))
        return there._without(target) if target else there

    def _with_name(self, parent: int, name: bytes, ino: int) -> dict[int, Names]:
        names = {other: child for other, child in self.directories[parent].items() if other != name}
        return {**self.directories, parent: {**names, name: ino} if ino else names}

    def _without(self, ino: int) -> Model:
        """A name of it has gone."""
        if ino in self.directories:
            return replace(self, directories={other: names for other, names in self.directories.items() if other != ino})
        file = self.files[ino]
        files = {other: kept for other, kept in self.files.items() if other != ino}
        return replace(self, files={**files, ino: replace(file, links=file.links - 1)} if file.links > 1 else files)

    def _with_file(self, ino: int, command: c.SetAttr) -> Model:
        file = self.files.get(ino)
        if file is None:
            return self
        file = replace(file, mode=command.mode & 0o7777) if command.mask & c.SET_MODE else replace(file, size=command.size)
        return replace(self, files={**self.files, ino: file})
