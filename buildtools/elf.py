"""What an ELF file asks of the machine it runs on: libraries by name, and symbol versions of each (section .gnu.version_r).

Little-endian 64-bit files only; nothing else is built.  Own code because it is a page, and a build must not pass for want of objdump.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NEED, _NEED_AUX = struct.Struct("<HHIII"), struct.Struct("<IHHII")
_DYNAMIC = struct.Struct("<qQ")
_SHT_DYNAMIC, _SHT_VERNEED = 6, 0x6FFFFFFE
_DT_NEEDED = 1


class Section(NamedTuple):
    kind: int
    data: bytes
    link: int
    info: int


class Needs(NamedTuple):
    libraries: tuple[str, ...]
    versions: frozenset[tuple[str, str]]  # (library, version)


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _sections(raw: bytes) -> list[Section]:
    header = _HEADER.unpack_from(raw)
    offset, entry_bytes, count = header[6], header[11], header[12]
    found = []
    for index in range(count):
        _, kind, _, _, start, length, link, info, _, _ = _SECTION.unpack_from(raw, offset + index * entry_bytes)
        found.append(Section(kind, raw[start : start + length], link, info))
    return found


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def needs(path: Path) -> Needs:
    raw = path.read_bytes()
    if raw[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path} is no little-endian 64-bit ELF file")
    sections = _sections(raw)
    libraries: list[str] = []
    versions: set[tuple[str, str]] = set()
    for section in sections:
        if section.kind == _SHT_DYNAMIC:
            strings = sections[section.link].data
            usable = len(section.data) // _DYNAMIC.size * _DYNAMIC.size
            libraries += [_text(strings, value) for tag, value in _DYNAMIC.iter_unpack(section.data[:usable]) if tag == _DT_NEEDED]
        if section.kind == _SHT_VERNEED:
            versions |= _versions(section, sections[section.link].data)
    return Needs(tuple(libraries), frozenset(versions))


def _versions(section: Section, strings: bytes) -> set[tuple[str, str]]:
    found, at = set(), 0
    for _ in range(section.info):
        _, count, library, aux, following = _NEED.unpack_from(section.data, at)
        place = at + aux
        for _ in range(count):
            _, _, _, name, next_aux = _NEED_AUX.unpack_from(section.data, place)
            found.add((_text(strings, library), _text(strings, name)))
            place += next_aux
        at += following
    return found


def elf_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink() and is_elf(path))


def glibc(version: str) -> tuple[int, ...]:
    """GLIBC_2.34 -> (2, 34); () for what is not a version of glibc."""
    name, _, numbers = version.partition("_")
    return tuple(map(int, numbers.split("."))) if name == "GLIBC" and numbers[:1].isdigit() else ()


def glibc_floor(directory: Path) -> tuple[tuple[int, ...], list[Path]]:
    """The oldest glibc that all files below `directory` run with, and which of them ask for that one."""
    highest: dict[Path, tuple[int, ...]] = {}
    for path in elf_files(directory):
        highest[path] = max((glibc(version) for _, version in needs(path).versions), default=())
    floor = max(highest.values(), default=())
    return floor, [path for path, version in highest.items() if version == floor]


def foreign_libraries(directory: Path) -> dict[str, list[Path]]:
    """Libraries that are asked for and not below `directory`, and by whom."""
    own = {path.name for path in directory.rglob("*")}
    found: dict[str, list[Path]] = {}
    for path in elf_files(directory):
        for library in needs(path).libraries:
            if library not in own:
                found.setdefault(library, []).append(path)
    return found
