"""The settings of a node come from built-in values, then one file, then the environment, then the command line; the later one wins.

The file is /etc/awsomefsd/awsomefsd.toml (or .yaml, .yml), or what AWSOMEFSD_CONFIG or --config names; without one everything has a value.
The environment names a key by its path: AWSOMEFSD_STATE_DIR, AWSOMEFSD_LOG_LEVEL (or AWSOMEFSD_LOG__LEVEL); with _FILE appended the value
is read from that file (secrets mounted by an orchestrator).  Anything unknown is an error that names the key and the nearest one we know:
a mistyped state_dir that is silently ignored would start an empty node.

Only the daemon and the CLI import this module (pydantic costs a worker its start time); a worker gets what it needs in its start message.
"""

from __future__ import annotations

import difflib
import grp
import ipaddress
import os
import re
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import (
    BLOCK_BYTES,
    CSI_INLINE_BYTES,
    DAEMON_MEMORY_BYTES,
    FILE_BYTES_MAX,
    MIB,
    NODE_LABEL_BYTES_MAX,
    NODE_LABELS_MAX,
    NODE_NAME_BYTES_MAX,
    READ_AHEAD_BYTES_MAX,
    SCRUB_EVERY_S,
    TOKEN_BYTES_MAX,
    WORKER_MEMORY_BYTES,
    WORKER_MEMORY_BYTES_MIN,
)
from awsomefsd.base.sizes import parse_bytes
from awsomefsd.config.mount_options import checked

DEFAULT_FILES = tuple(Path("/etc/awsomefsd") / f"awsomefsd.{suffix}" for suffix in ("toml", "yaml", "yml"))
PREFIX = "AWSOMEFSD_"
CONTROL_PORT, METADATA_PORT, SEGMENTS_PORT = 7440, 7441, 7442  # unless the settings `listen` say otherwise
UI_PORT = 7480  # of the examples; the setting is off
# Read elsewhere, not settings: the path of the file itself, overrides of the FUSE negotiation, and switches of the test suite.
_OTHERS = (
    "BINARY", "CONFIG", "DEBUG", "FAILPOINTS", "FAILPOINTS_FILE", "FAULTS", "FUSE_PINS", "KEEPER_STATE_FD", "LEVEL", "PROGRAM", "SEED",
    "TEST_UNFINISHED", "UPDATE_GOLDEN",
)  # fmt: skip
NOT_SETTINGS = frozenset(PREFIX + name for name in _OTHERS)
# A Kubernetes service named "awsomefsd" puts these into every pod of its namespace; AWSOMEFSD_TEST_ is free for test rigs.
NOT_SETTINGS_PREFIXES = ("AWSOMEFSD_SERVICE_", "AWSOMEFSD_PORT", "AWSOMEFSD_TEST_")


def _size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _path(value: Any) -> Any:
    """Refuses an empty path: it would be the directory that somebody happens to be in, such as where a shell's variable was not set."""
    if not isinstance(value, str | Path) or value == "":
        raise ValueError("write the absolute path of a directory")
    return value


def _absolute(path: Path) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError as err:
        raise ValueError(f"{path.parts[0]}: there is no such user, or the user has no home directory") from err
    if not path.is_absolute():  # the command line's are made absolute there; each process is started in another directory
        raise ValueError(f"{path} is not absolute; write the absolute path of a directory")
    return Path(os.path.abspath(path))


def _listen(value: str, info: ValidationInfo) -> str:
    if value in ("", "unix") or (value.startswith("unix:/") and len(value) > len("unix:/")):
        return value
    host, _, port = value.rpartition(":")
    try:
        allowed = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback or info.data.get("public", False)
    except ValueError:
        allowed = False
    if not allowed or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise ValueError('write "" (off), "unix", "unix:/path", or a local address such as "127.0.0.1:9310"; any with metrics.public')
    return value


def _group(value: str | None) -> str | None:
    if value:
        try:
            grp.getgrnam(value)
        except KeyError:
            raise ValueError(f"there is no group {value!r} here; create it with groupadd, or leave admin_group out (root only)") from None
    return value or None


Size = Annotated[int, BeforeValidator(_size)]
Directory = Annotated[Path, BeforeValidator(_path), AfterValidator(_absolute)]


class Section(BaseModel):
    """A section of the settings: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class MetricsSettings(Section):
    public: bool = False  # before `listen`, whose check reads it
    listen: Annotated[str, AfterValidator(_listen)] = ""


class MemorySettings(Section):
    daemon: Annotated[Size, Field(ge=128 * MIB)] = DAEMON_MEMORY_BYTES
    worker: Annotated[Size, Field(ge=WORKER_MEMORY_BYTES_MIN)] = WORKER_MEMORY_BYTES


def _endpoint(value: str, port_shown: int) -> str:
    host, _, port = value.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if port.isdecimal() and 0 < int(port) <= 65_535:
            return value
    except ValueError:
        pass
    raise ValueError(f'write an IP address and a port, such as "10.0.0.1:{port_shown}" or "[fd00::1]:{port_shown}"')


def _voters(value: str) -> str:
    entries = parse_voters(value)
    if len(entries) not in (0, 1, 3, 5):
        raise ValueError(f"{len(entries)} voters; a cluster has 1, 3 or 5")
    return value


def parse_voters(text: str) -> dict[str, tuple[str, int]]:
    """Returns UUID → (host, port) of "UUID=ADDRESS:PORT, …".  Raises ValueError for anything else."""
    found: dict[str, tuple[str, int]] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        node, _, place = word.partition("=")
        try:
            name = str(uuid.UUID(node))
        except ValueError:
            raise ValueError(f"{word!r}: write the node's UUID, '=', and its address") from None
        if name in found:
            raise ValueError(f"node {name} is named twice")
        found[name] = parse_endpoint(place, METADATA_PORT)
    return found


def parse_endpoint(text: str, port_shown: int = CONTROL_PORT) -> tuple[str, int]:
    """Returns (host, port) of "ADDRESS:PORT", the host without brackets.

    Raises ValueError for anything but an IP address and a port; its example has `port_shown`.
    """
    host, _, port = _endpoint(text, port_shown).rpartition(":")
    return host.strip("[]"), int(port)


def _listens(port_shown: int) -> AfterValidator:
    return AfterValidator(lambda value: _endpoint(value, port_shown) if value else value)


def _host(value: str) -> str:
    """Checks the address or DNS name, without a port, at which other nodes reach this one."""
    try:
        ipaddress.ip_address(value.strip("[]"))
    except ValueError:
        labels = value.split(".")
        named = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", value) and all(0 < len(label) <= 63 for label in labels)
        if value and not named:
            raise ValueError('write an address or a host name without a port, such as "10.0.0.1" or "node1.example.net"') from None
    return value.strip("[]")


def parse_labels(text: str) -> dict[str, str]:
    """Returns the labels of a text such as "zone=a, rack=7".  Raises ValueError for anything else, and above the limits of a label."""
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (key and equals and key.isprintable() and value.isprintable()):
            raise ValueError(f'{word!r}: write labels as "zone=a, rack=7"')
        if max(len(key.encode()), len(value.encode())) > NODE_LABEL_BYTES_MAX:
            raise ValueError(f"{word!r}: a label's key and value have at most {NODE_LABEL_BYTES_MAX} bytes each")
        if key in found:
            raise ValueError(f"label {key!r} is given twice")
        found[key] = value
    if len(found) > NODE_LABELS_MAX:
        raise ValueError(f"a node has at most {NODE_LABELS_MAX} labels")
    return found


def _labels(value: str) -> str:
    parse_labels(value)
    return value


def _node_name(value: str) -> str:
    if len(value.encode()) > NODE_NAME_BYTES_MAX or not value.isprintable() or any(char.isspace() for char in value):
        raise ValueError(f"a node's name has at most {NODE_NAME_BYTES_MAX} printable bytes and no space")
    return value


_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_seconds(text: str) -> int:
    """Returns the seconds of "90s", "10m", "24h" or "30d".  Raises ValueError for anything else."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not number.isdecimal() or not 0 < int(number) * _UNITS_S[unit] <= 100 * 365 * 86_400:
        raise ValueError(f'{text!r} is not a length of time; write a number with s, m, h or d, such as "10m" or "24h"')
    return int(number) * _UNITS_S[unit]


def _seconds(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else value


class ClusterSettings(Section):
    """The way in which this node meets the others.  With `listen` empty it stands alone."""

    listen: Annotated[str, _listens(CONTROL_PORT)] = f"0.0.0.0:{CONTROL_PORT}"
    advertise: Annotated[str, AfterValidator(_host)] = ""  # default: the address of the interface that routes to the others
    name: Annotated[str, AfterValidator(_node_name)] = ""  # default: the host's name
    labels: Annotated[str, AfterValidator(_labels)] = ""
    voter_replace_after: Annotated[int, BeforeValidator(_seconds), Field(ge=1)] = 600  # seconds
    discovery: bool = True


class MetadataSettings(Section):
    """The nodes that carry the metadata by configuration, this one among them.  `voters` empty: the configuration names none."""

    voters: Annotated[str, AfterValidator(_voters)] = ""  # "UUID=ADDRESS:PORT, …"
    # "": off; with voters the default is this node's address there
    listen: Annotated[str, _listens(METADATA_PORT)] = f"0.0.0.0:{METADATA_PORT}"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> MetadataSettings:
        if self.voters and not (self.ca and self.certificate and self.key):
            raise ValueError("metadata.voters needs metadata.ca, metadata.certificate and metadata.key; each names a PEM file")
        return self


class SegmentsSettings(Section):
    """The segment server of this node.  With `listen` empty other nodes do not reach it."""

    listen: Annotated[str, _listens(SEGMENTS_PORT)] = f"0.0.0.0:{SEGMENTS_PORT}"


class MountSettings(Section):
    options: Annotated[str, AfterValidator(checked)] = ""
    readahead: Annotated[Size, Field(ge=0, le=READ_AHEAD_BYTES_MAX)] = READ_AHEAD_BYTES_MAX


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if len(text) > TOKEN_BYTES_MAX or any(char.isspace() for char in text):
        raise ValueError("this is not a token: one word that begins with afs1-")
    return SecretStr(text)


def _topology(value: str) -> str:
    """Checks a value that Kubernetes would take for a label."""
    plain = value.replace("-", "").replace("_", "").replace(".", "")
    if value and not (len(value) <= 63 and value.isascii() and plain.isalnum() and value[0].isalnum() and value[-1].isalnum()):
        raise ValueError("write letters, digits, '-', '_' and '.', at most 63, the first and the last a letter or digit")
    return value


def _names(value: str) -> str:
    """Checks host names, separated by commas."""
    for name in filter(None, (word.strip() for word in value.split(","))):
        if len(name) > 253 or not name.isascii() or not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} is no host name; write those of this host, separated by commas")
    return value


class UiSettings(Section):
    """The web page that the daemon serves.  `names`: of this host, by which browsers may ask for it besides its addresses."""

    listen: Annotated[str, _listens(UI_PORT)] = ""
    names: Annotated[str, AfterValidator(_names)] = ""

    @property
    def hosts(self) -> list[str]:
        return [name.strip() for name in self.names.split(",") if name.strip()]


class DeviceSettings(Section):
    """The search for devices.  `scan`: further paths to search, such as files; separated by commas."""

    scan: str = ""

    @property
    def extra(self) -> list[str]:
        return [path.strip() for path in self.scan.split(",") if path.strip()]


class ScrubSettings(Section):
    """`every`: seconds from the beginning of one round of scrub to that of the next."""

    every: Annotated[int, BeforeValidator(_seconds), Field(ge=1)] = SCRUB_EVERY_S


class CsiSettings(Section):
    """The CSI driver, for Kubernetes and other orchestrators (docs/KUBERNETES.md)."""

    enabled: bool = False
    kubelet_dir: Directory = Path("/var/lib/kubelet")
    socket: Directory | None = None  # default: below kubelet_dir
    register_plugin: bool = True
    registration_dir: Directory | None = None  # default: kubelet_dir/plugins_registry
    health_api: Literal["1.12", "1.13", "off"] = "1.12"
    attach: bool = False
    zone: Annotated[str, AfterValidator(_topology)] = ""
    rack: Annotated[str, AfterValidator(_topology)] = ""
    max_volumes: Annotated[int, Field(ge=0, le=100_000)] = 0
    inline: bool = False
    inline_max: Annotated[Size, Field(ge=BLOCK_BYTES, le=FILE_BYTES_MAX)] = CSI_INLINE_BYTES


class KubernetesSettings(Section):
    """Settings of a node in a pod.  `host_keeper`: the keeper runs outside of the pod (node/pod/host_keeper.py).

    `join_token`: a file that gets join tokens as long as the cluster lives, and that is read anew at each try (daemon/renewed_token.py).
    """

    host_keeper: bool = False
    join_token: Directory | None = None


class Settings(BaseSettings):
    """All settings of a node, frozen; docs/OPERATIONS.md has the same table for people.  `load` makes them."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    state_dir: Directory = Path("/var/lib/awsomefsd")
    run_dir: Directory = Path("/run/awsomefsd")
    site: Annotated[int, Field(ge=0, le=255)] = 0
    admin_group: Annotated[str | None, AfterValidator(_group)] = None
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    memory: MemorySettings = MemorySettings()
    mount: MountSettings = MountSettings()
    metadata: MetadataSettings = MetadataSettings()
    cluster: ClusterSettings = ClusterSettings()
    segments: SegmentsSettings = SegmentsSettings()
    token: Annotated[SecretStr, AfterValidator(_token)] = SecretStr("")
    csi: CsiSettings = CsiSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    devices: DeviceSettings = DeviceSettings()
    scrub: ScrubSettings = ScrubSettings()
    ui: UiSettings = UiSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        inputs: Inputs = init_settings.init_kwargs.pop("inputs", None) or Inputs({}, None)
        sources: list[PydanticBaseSettingsSource] = [init_settings, EnvironmentSource(settings_cls, inputs.environ)]
        if inputs.file is not None:
            sources.append(_file_source(settings_cls, inputs.file))
        return tuple(sources)

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def meta_socket(self) -> Path:
        return self.run_dir / "meta.sock"


class Inputs:
    """The environment and the file that one `load` reads."""

    __slots__ = ("environ", "file")

    def __init__(self, environ: Mapping[str, str], file: Path | None) -> None:
        self.environ = environ
        self.file = file


def key_paths(model: type[BaseModel] = Settings) -> Iterator[tuple[str, ...]]:
    """Yields every key as its path: ("state_dir",), ("log", "level"), …"""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((name, *rest) for rest in key_paths(field.annotation))
        else:
            yield (name,)


def _variables() -> dict[str, tuple[str, ...]]:
    return {PREFIX + "_".join(path).upper(): path for path in key_paths()}


class EnvironmentSource(PydanticBaseSettingsSource):
    """Reads AWSOMEFSD_<KEY> and AWSOMEFSD_<KEY>_FILE.  Raises ConfigError for a variable with our prefix that is neither."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._environ = environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # the base class asks for it; __call__ answers for all fields at once

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _variable, path, text in _from_environment(self._environ):
            place = values
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = text
        return values


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    known = _variables()
    seen: dict[tuple[str, ...], str] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS or variable.startswith(NOT_SETTINGS_PREFIXES):
            continue
        plain = variable.replace("__", "_")
        path, text = known.get(plain), environ[variable]
        if path is None and plain.endswith("_FILE"):
            path = known.get(plain.removesuffix("_FILE"))
            text = _read_value(variable, text) if path else text
        if path is None:
            raise ConfigError(f"{variable} in the environment is not a setting{_nearest(plain, known)}; unset it or correct the name")
        if path in seen:
            raise ConfigError(f"{seen[path]} and {variable} both set {'.'.join(path)}; unset one of them")
        seen[path] = variable
        yield variable, path, text


def _read_value(variable: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not text"
        raise ConfigError(f"{variable} names {path}, which cannot be read: {why}; correct the path or unset the variable") from err


def _nearest(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _file_source(settings_cls: type[BaseSettings], path: Path) -> PydanticBaseSettingsSource:
    import yaml  # not at each start of a daemon that has no file

    try:
        path.read_bytes()
        if path.suffix not in (".toml", ".yaml", ".yml"):
            raise ConfigError(f"{path}: a configuration file is called .toml, .yaml or .yml; rename it")
        if path.suffix == ".toml":
            return TomlConfigSettingsSource(settings_cls, toml_file=path)
        return YamlConfigSettingsSource(settings_cls, yaml_file=path)
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}; correct --config or AWSOMEFSD_CONFIG") from err
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} cannot be parsed: {str(err).replace(chr(10), ' ')}") from err
    except (AttributeError, RecursionError, ValueError, TypeError) as err:  # a YAML list, a key that is no text, nesting without end
        raise ConfigError(f"{path} cannot be parsed: it has keys and values; keys are words, nested no deeper than sections") from err


def find_file(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Returns the configuration file to read, None if there is none.  Raises ConfigError if two of the default files exist."""
    named = explicit or (Path(environ["AWSOMEFSD_CONFIG"]) if environ.get("AWSOMEFSD_CONFIG") else None)
    if named is not None:
        return named
    present = [path for path in DEFAULT_FILES if path.exists()]
    if len(present) > 1:
        raise ConfigError(f"{present[0]} and {present[1]} both exist; keep one of them")
    return present[0] if present else None


def load(file: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Returns the settings; `overrides` (from the command line) win, those that are None are left out.  Raises ConfigError only."""
    environ = os.environ if environ is None else environ
    file = find_file(file, environ)
    chosen = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(inputs=Inputs(environ, file), **chosen)  # type: ignore[call-arg]
    except ValidationError as err:
        raise ConfigError(*(_explain(dict(error), environ, file) for error in err.errors())) from err
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as err:  # of a shape that no parser of ours foresaw
        raise ConfigError(f"the configuration ({file or 'environment'}) cannot be read: {err}; start from a smaller configuration") from err


def _explain(error: dict[str, Any], environ: Mapping[str, str], file: Path | None) -> str:
    path = tuple(str(part) for part in error["loc"])
    where = origin(path, environ, file)
    key = ".".join(path)
    if path[:1] == ("token",):  # never shown, whatever it holds
        return f"token in {where}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key} in {where}{_nearest(key, {'.'.join(known) for known in key_paths()})}; remove or correct it"
    if error["type"] == "model_type":
        return f"{key} = {error['input']!r} in {where}: {key} is a section; write its keys below [{key}]"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r} in {where}: {message[:1].lower()}{message[1:]}"


def variable_of(path: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """Returns the environment variable that sets a key, "" if none does.  Raises ConfigError for an environment that cannot be read."""
    return next((variable for variable, known, _text in _from_environment(environ) if known == path), "")


def file_keys(file: Path | None) -> dict[tuple[str, ...], str]:
    """Returns the keys that a file sets, each with the file's name.  Raises ConfigError for a file that cannot be read."""
    if file is None:
        return {}
    content = _file_source(Settings, file)()
    return {path: str(file) for path in key_paths() if _holds(content, path)}


def _holds(content: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def origin(path: tuple[str, ...], environ: Mapping[str, str], file: Path | None) -> str:
    """Returns the source of a value in words: the environment and its variable, the file, or the command line."""
    variable = variable_of(path, environ)
    if variable:
        return f"the environment ({variable})"
    return str(file) if file is not None else "the command line"
