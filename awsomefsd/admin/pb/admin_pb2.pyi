from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("cluster", "node", "site", "version", "state_dir", "run_dir", "pid", "uptime_s", "keeper", "keeper_pid", "devices", "volumes", "mounts", "conflicts", "figures", "reasons", "memory_bytes", "memory_bytes_max", "health", "metadata", "keeper_version", "segment_servers")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    KEEPER_FIELD_NUMBER: _ClassVar[int]
    KEEPER_PID_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    KEEPER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_SERVERS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    node: str
    site: int
    version: str
    state_dir: str
    run_dir: str
    pid: int
    uptime_s: float
    keeper: bool
    keeper_pid: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    mounts: _containers.RepeatedCompositeFieldContainer[MountPoint]
    conflicts: _containers.RepeatedCompositeFieldContainer[Conflict]
    figures: _containers.ScalarMap[str, str]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    memory_bytes_max: int
    health: _containers.RepeatedCompositeFieldContainer[Health]
    metadata: Metadata
    keeper_version: str
    segment_servers: _containers.RepeatedCompositeFieldContainer[SegmentServer]
    def __init__(self, cluster: _Optional[str] = ..., node: _Optional[str] = ..., site: _Optional[int] = ..., version: _Optional[str] = ..., state_dir: _Optional[str] = ..., run_dir: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., keeper: _Optional[bool] = ..., keeper_pid: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ..., mounts: _Optional[_Iterable[_Union[MountPoint, _Mapping]]] = ..., conflicts: _Optional[_Iterable[_Union[Conflict, _Mapping]]] = ..., figures: _Optional[_Mapping[str, str]] = ..., reasons: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., memory_bytes_max: _Optional[int] = ..., health: _Optional[_Iterable[_Union[Health, _Mapping]]] = ..., metadata: _Optional[_Union[Metadata, _Mapping]] = ..., keeper_version: _Optional[str] = ..., segment_servers: _Optional[_Iterable[_Union[SegmentServer, _Mapping]]] = ...) -> None: ...

class SegmentServer(_message.Message):
    __slots__ = ("pid", "version", "address", "trouble", "silent_s", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    pid: int
    version: str
    address: str
    trouble: str
    silent_s: float
    figures: _containers.ScalarMap[str, int]
    def __init__(self, pid: _Optional[int] = ..., version: _Optional[str] = ..., address: _Optional[str] = ..., trouble: _Optional[str] = ..., silent_s: _Optional[float] = ..., figures: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("code", "severity", "what", "fix")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    code: str
    severity: str
    what: str
    fix: str
    def __init__(self, code: _Optional[str] = ..., severity: _Optional[str] = ..., what: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

class Metadata(_message.Message):
    __slots__ = ("leader", "leader_name", "term", "level", "voters", "voters_heard", "failures_survived", "members", "without_leader_s", "last_leader", "last_leader_name", "carries", "trouble")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_NAME_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    VOTERS_HEARD_FIELD_NUMBER: _ClassVar[int]
    FAILURES_SURVIVED_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_LEADER_S_FIELD_NUMBER: _ClassVar[int]
    LAST_LEADER_FIELD_NUMBER: _ClassVar[int]
    LAST_LEADER_NAME_FIELD_NUMBER: _ClassVar[int]
    CARRIES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    leader: str
    leader_name: str
    term: int
    level: int
    voters: int
    voters_heard: int
    failures_survived: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    without_leader_s: float
    last_leader: str
    last_leader_name: str
    carries: bool
    trouble: str
    def __init__(self, leader: _Optional[str] = ..., leader_name: _Optional[str] = ..., term: _Optional[int] = ..., level: _Optional[int] = ..., voters: _Optional[int] = ..., voters_heard: _Optional[int] = ..., failures_survived: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., without_leader_s: _Optional[float] = ..., last_leader: _Optional[str] = ..., last_leader_name: _Optional[str] = ..., carries: _Optional[bool] = ..., trouble: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("node", "name", "member", "leader", "heard", "lag", "silent_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    name: str
    member: str
    leader: bool
    heard: bool
    lag: int
    silent_ms: int
    def __init__(self, node: _Optional[str] = ..., name: _Optional[str] = ..., member: _Optional[str] = ..., leader: _Optional[bool] = ..., heard: _Optional[bool] = ..., lag: _Optional[int] = ..., silent_ms: _Optional[int] = ...) -> None: ...

class Conflict(_message.Message):
    __slots__ = ("path", "bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    bytes: int
    def __init__(self, path: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("device", "uuid", "path", "bytes", "segment_bytes", "segments", "segments_free", "shared", "state", "draining", "home", "seen", "alone_ms", "served", "pool")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FREE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    ALONE_MS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    device: int
    uuid: str
    path: str
    bytes: int
    segment_bytes: int
    segments: int
    segments_free: int
    shared: bool
    state: str
    draining: bool
    home: str
    seen: _containers.RepeatedCompositeFieldContainer[DeviceSeen]
    alone_ms: int
    served: _containers.RepeatedCompositeFieldContainer[ServedDevice]
    pool: int
    def __init__(self, device: _Optional[int] = ..., uuid: _Optional[str] = ..., path: _Optional[str] = ..., bytes: _Optional[int] = ..., segment_bytes: _Optional[int] = ..., segments: _Optional[int] = ..., segments_free: _Optional[int] = ..., shared: _Optional[bool] = ..., state: _Optional[str] = ..., draining: _Optional[bool] = ..., home: _Optional[str] = ..., seen: _Optional[_Iterable[_Union[DeviceSeen, _Mapping]]] = ..., alone_ms: _Optional[int] = ..., served: _Optional[_Iterable[_Union[ServedDevice, _Mapping]]] = ..., pool: _Optional[int] = ...) -> None: ...

class ServedDevice(_message.Message):
    __slots__ = ("bays", "bays_open", "copying", "work")
    BAYS_FIELD_NUMBER: _ClassVar[int]
    BAYS_OPEN_FIELD_NUMBER: _ClassVar[int]
    COPYING_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    bays: int
    bays_open: int
    copying: _containers.RepeatedCompositeFieldContainer[BayCopy]
    work: _containers.RepeatedCompositeFieldContainer[DeviceWork]
    def __init__(self, bays: _Optional[int] = ..., bays_open: _Optional[int] = ..., copying: _Optional[_Iterable[_Union[BayCopy, _Mapping]]] = ..., work: _Optional[_Iterable[_Union[DeviceWork, _Mapping]]] = ...) -> None: ...

class BayCopy(_message.Message):
    __slots__ = ("index", "segment", "done_bytes", "end_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    END_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    segment: int
    done_bytes: int
    end_bytes: int
    def __init__(self, index: _Optional[int] = ..., segment: _Optional[int] = ..., done_bytes: _Optional[int] = ..., end_bytes: _Optional[int] = ...) -> None: ...

class DeviceWork(_message.Message):
    __slots__ = ("kind", "done", "bytes", "errors", "seconds", "usual_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    USUAL_MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    done: int
    bytes: int
    errors: int
    seconds: float
    usual_ms: float
    def __init__(self, kind: _Optional[str] = ..., done: _Optional[int] = ..., bytes: _Optional[int] = ..., errors: _Optional[int] = ..., seconds: _Optional[float] = ..., usual_ms: _Optional[float] = ...) -> None: ...

class DeviceSeen(_message.Message):
    __slots__ = ("node", "name", "path", "bytes", "state", "heard_ms_ago")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    node: str
    name: str
    path: str
    bytes: int
    state: str
    heard_ms_ago: int
    def __init__(self, node: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[str] = ..., bytes: _Optional[int] = ..., state: _Optional[str] = ..., heard_ms_ago: _Optional[int] = ...) -> None: ...

class ScanDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScanDevicesReply(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[ScannedDevice]
    def __init__(self, devices: _Optional[_Iterable[_Union[ScannedDevice, _Mapping]]] = ...) -> None: ...

class ScannedDevice(_message.Message):
    __slots__ = ("path", "uuid", "bytes", "verdict", "serial")
    PATH_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    path: str
    uuid: str
    bytes: int
    verdict: str
    serial: str
    def __init__(self, path: _Optional[str] = ..., uuid: _Optional[str] = ..., bytes: _Optional[int] = ..., verdict: _Optional[str] = ..., serial: _Optional[str] = ...) -> None: ...

class GrowDeviceRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class GetPoolStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPoolRequest(_message.Message):
    __slots__ = ("heal_bytes_per_s", "lost_after_ms", "reserve_percent")
    HEAL_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOST_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    RESERVE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    heal_bytes_per_s: int
    lost_after_ms: int
    reserve_percent: int
    def __init__(self, heal_bytes_per_s: _Optional[int] = ..., lost_after_ms: _Optional[int] = ..., reserve_percent: _Optional[int] = ...) -> None: ...

class PoolStatus(_message.Message):
    __slots__ = ("segment_bytes", "raw_bytes", "raw_free_bytes", "stale_bytes", "reserved_bytes", "total_bytes", "free_bytes", "promised_bytes", "policies", "lacks", "lost_segments", "lacking_since_ms", "walks", "counted_ms_ago", "healing", "hosts", "heal_bytes_per_s", "lost_after_ms", "reserve_percent", "standing")
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMISED_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    LOST_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    LACKING_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    WALKS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    HEALING_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    HEAL_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LOST_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    RESERVE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    segment_bytes: int
    raw_bytes: int
    raw_free_bytes: int
    stale_bytes: int
    reserved_bytes: int
    total_bytes: int
    free_bytes: int
    promised_bytes: int
    policies: _containers.RepeatedCompositeFieldContainer[PoolPolicy]
    lacks: _containers.RepeatedCompositeFieldContainer[PoolLack]
    lost_segments: int
    lacking_since_ms: int
    walks: int
    counted_ms_ago: int
    healing: PoolHealing
    hosts: _containers.RepeatedCompositeFieldContainer[PoolHost]
    heal_bytes_per_s: int
    lost_after_ms: int
    reserve_percent: int
    standing: _containers.RepeatedCompositeFieldContainer[PoolStandingDrain]
    def __init__(self, segment_bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., raw_free_bytes: _Optional[int] = ..., stale_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., promised_bytes: _Optional[int] = ..., policies: _Optional[_Iterable[_Union[PoolPolicy, _Mapping]]] = ..., lacks: _Optional[_Iterable[_Union[PoolLack, _Mapping]]] = ..., lost_segments: _Optional[int] = ..., lacking_since_ms: _Optional[int] = ..., walks: _Optional[int] = ..., counted_ms_ago: _Optional[int] = ..., healing: _Optional[_Union[PoolHealing, _Mapping]] = ..., hosts: _Optional[_Iterable[_Union[PoolHost, _Mapping]]] = ..., heal_bytes_per_s: _Optional[int] = ..., lost_after_ms: _Optional[int] = ..., reserve_percent: _Optional[int] = ..., standing: _Optional[_Iterable[_Union[PoolStandingDrain, _Mapping]]] = ...) -> None: ...

class PoolStandingDrain(_message.Message):
    __slots__ = ("device", "node", "segments", "bytes", "since_ms", "why")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    device: int
    node: str
    segments: int
    bytes: int
    since_ms: int
    why: str
    def __init__(self, device: _Optional[int] = ..., node: _Optional[str] = ..., segments: _Optional[int] = ..., bytes: _Optional[int] = ..., since_ms: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class PoolPolicy(_message.Message):
    __slots__ = ("redundancy", "volumes", "total_bytes", "free_bytes", "copies", "min_copies", "domains")
    REDUNDANCY_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    MIN_COPIES_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    redundancy: str
    volumes: _containers.RepeatedScalarFieldContainer[str]
    total_bytes: int
    free_bytes: int
    copies: int
    min_copies: int
    domains: int
    def __init__(self, redundancy: _Optional[str] = ..., volumes: _Optional[_Iterable[str]] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., copies: _Optional[int] = ..., min_copies: _Optional[int] = ..., domains: _Optional[int] = ...) -> None: ...

class PoolLack(_message.Message):
    __slots__ = ("priority", "what", "segments", "bytes_at_most")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_AT_MOST_FIELD_NUMBER: _ClassVar[int]
    priority: int
    what: str
    segments: int
    bytes_at_most: int
    def __init__(self, priority: _Optional[int] = ..., what: _Optional[str] = ..., segments: _Optional[int] = ..., bytes_at_most: _Optional[int] = ...) -> None: ...

class PoolHealing(_message.Message):
    __slots__ = ("copies", "bytes_per_s", "seconds_left", "asleep", "why", "idle_ms")
    COPIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    ASLEEP_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    copies: int
    bytes_per_s: int
    seconds_left: int
    asleep: int
    why: str
    idle_ms: int
    def __init__(self, copies: _Optional[int] = ..., bytes_per_s: _Optional[int] = ..., seconds_left: _Optional[int] = ..., asleep: _Optional[int] = ..., why: _Optional[str] = ..., idle_ms: _Optional[int] = ...) -> None: ...

class PoolHost(_message.Message):
    __slots__ = ("host", "name", "maintenance_until_ms", "bays", "free", "stale", "devices")
    HOST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    BAYS_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    host: str
    name: str
    maintenance_until_ms: int
    bays: int
    free: int
    stale: int
    devices: _containers.RepeatedCompositeFieldContainer[PoolDevice]
    def __init__(self, host: _Optional[str] = ..., name: _Optional[str] = ..., maintenance_until_ms: _Optional[int] = ..., bays: _Optional[int] = ..., free: _Optional[int] = ..., stale: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[PoolDevice, _Mapping]]] = ...) -> None: ...

class PoolDevice(_message.Message):
    __slots__ = ("device", "node", "device_class", "state", "bays", "free", "stale", "left_alone")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BAYS_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    LEFT_ALONE_FIELD_NUMBER: _ClassVar[int]
    device: int
    node: str
    device_class: str
    state: str
    bays: int
    free: int
    stale: int
    left_alone: bool
    def __init__(self, device: _Optional[int] = ..., node: _Optional[str] = ..., device_class: _Optional[str] = ..., state: _Optional[str] = ..., bays: _Optional[int] = ..., free: _Optional[int] = ..., stale: _Optional[int] = ..., left_alone: _Optional[bool] = ...) -> None: ...

class DrainDeviceRequest(_message.Message):
    __slots__ = ("device", "undo", "look")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    device: str
    undo: bool
    look: bool
    def __init__(self, device: _Optional[str] = ..., undo: _Optional[bool] = ..., look: _Optional[bool] = ...) -> None: ...

class DrainDeviceReply(_message.Message):
    __slots__ = ("device", "segments_used", "live_bytes", "segments_standing", "why")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_USED_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_STANDING_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    device: Device
    segments_used: int
    live_bytes: int
    segments_standing: int
    why: str
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ..., segments_used: _Optional[int] = ..., live_bytes: _Optional[int] = ..., segments_standing: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class RemoveDeviceRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class RemoveDeviceReply(_message.Message):
    __slots__ = ("done",)
    DONE_FIELD_NUMBER: _ClassVar[int]
    done: str
    def __init__(self, done: _Optional[str] = ...) -> None: ...

class IdentifyDeviceRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class IdentifyDeviceReply(_message.Message):
    __slots__ = ("facts",)
    FACTS_FIELD_NUMBER: _ClassVar[int]
    facts: _containers.RepeatedCompositeFieldContainer[DeviceFact]
    def __init__(self, facts: _Optional[_Iterable[_Union[DeviceFact, _Mapping]]] = ...) -> None: ...

class DeviceFact(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class ListQuarantineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuarantineReply(_message.Message):
    __slots__ = ("sessions", "segments")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Quarantined]
    segments: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[Quarantined, _Mapping]]] = ..., segments: _Optional[int] = ...) -> None: ...

class Quarantined(_message.Message):
    __slots__ = ("session", "mount", "volume", "node", "node_name", "ended_ms", "segments", "bytes", "live_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    ENDED_MS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: int
    mount: str
    volume: str
    node: str
    node_name: str
    ended_ms: int
    segments: int
    bytes: int
    live_bytes: int
    def __init__(self, session: _Optional[int] = ..., mount: _Optional[str] = ..., volume: _Optional[str] = ..., node: _Optional[str] = ..., node_name: _Optional[str] = ..., ended_ms: _Optional[int] = ..., segments: _Optional[int] = ..., bytes: _Optional[int] = ..., live_bytes: _Optional[int] = ...) -> None: ...

class ReleaseQuarantineRequest(_message.Message):
    __slots__ = ("session", "reason", "confirm")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    session: int
    reason: str
    confirm: str
    def __init__(self, session: _Optional[int] = ..., reason: _Optional[str] = ..., confirm: _Optional[str] = ...) -> None: ...

class ReleaseQuarantineReply(_message.Message):
    __slots__ = ("segments",)
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    segments: int
    def __init__(self, segments: _Optional[int] = ...) -> None: ...

class AddDeviceRequest(_message.Message):
    __slots__ = ("path", "shared", "destroy", "pool", "device_class", "segment_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    DESTROY_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    shared: bool
    destroy: str
    pool: int
    device_class: str
    segment_bytes: int
    def __init__(self, path: _Optional[str] = ..., shared: _Optional[bool] = ..., destroy: _Optional[str] = ..., pool: _Optional[int] = ..., device_class: _Optional[str] = ..., segment_bytes: _Optional[int] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDevicesReply(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("action",)
    ACTION_FIELD_NUMBER: _ClassVar[int]
    action: str
    def __init__(self, action: _Optional[str] = ...) -> None: ...

class CollectReply(_message.Message):
    __slots__ = ("state", "figures", "last_error")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    state: str
    figures: _containers.ScalarMap[str, int]
    last_error: str
    def __init__(self, state: _Optional[str] = ..., figures: _Optional[_Mapping[str, int]] = ..., last_error: _Optional[str] = ...) -> None: ...

class PlanCollectionRequest(_message.Message):
    __slots__ = ("volume", "device")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    volume: str
    device: int
    def __init__(self, volume: _Optional[str] = ..., device: _Optional[int] = ...) -> None: ...

class CollectionPlan(_message.Message):
    __slots__ = ("when", "look_in_seconds", "dead_percent", "dead_percent_low", "low_free_percent", "segments_free", "segments_total", "sets", "left")
    WHEN_FIELD_NUMBER: _ClassVar[int]
    LOOK_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEAD_PERCENT_FIELD_NUMBER: _ClassVar[int]
    DEAD_PERCENT_LOW_FIELD_NUMBER: _ClassVar[int]
    LOW_FREE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FREE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SETS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    when: str
    look_in_seconds: int
    dead_percent: int
    dead_percent_low: int
    low_free_percent: int
    segments_free: int
    segments_total: int
    sets: _containers.RepeatedCompositeFieldContainer[PlannedSet]
    left: _containers.RepeatedCompositeFieldContainer[LeftSegments]
    def __init__(self, when: _Optional[str] = ..., look_in_seconds: _Optional[int] = ..., dead_percent: _Optional[int] = ..., dead_percent_low: _Optional[int] = ..., low_free_percent: _Optional[int] = ..., segments_free: _Optional[int] = ..., segments_total: _Optional[int] = ..., sets: _Optional[_Iterable[_Union[PlannedSet, _Mapping]]] = ..., left: _Optional[_Iterable[_Union[LeftSegments, _Mapping]]] = ...) -> None: ...

class PlannedSet(_message.Message):
    __slots__ = ("how", "segments", "device", "live_bytes", "copied_bytes", "freed_bytes")
    HOW_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    how: str
    segments: _containers.RepeatedScalarFieldContainer[int]
    device: int
    live_bytes: int
    copied_bytes: int
    freed_bytes: int
    def __init__(self, how: _Optional[str] = ..., segments: _Optional[_Iterable[int]] = ..., device: _Optional[int] = ..., live_bytes: _Optional[int] = ..., copied_bytes: _Optional[int] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

class LeftSegments(_message.Message):
    __slots__ = ("reason", "device", "segments", "live_bytes", "dead_bytes")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    device: int
    segments: int
    live_bytes: int
    dead_bytes: int
    def __init__(self, reason: _Optional[str] = ..., device: _Optional[int] = ..., segments: _Optional[int] = ..., live_bytes: _Optional[int] = ..., dead_bytes: _Optional[int] = ...) -> None: ...

class Volume(_message.Message):
    __slots__ = ("volume", "uuid", "name", "quota_bytes", "quota_inodes", "used_bytes", "used_inodes", "reserved_bytes", "mounted", "home", "names")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_INODES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_INODES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOUNTED_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    volume: int
    uuid: str
    name: str
    quota_bytes: int
    quota_inodes: int
    used_bytes: int
    used_inodes: int
    reserved_bytes: int
    mounted: str
    home: str
    names: str
    def __init__(self, volume: _Optional[int] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., quota_inodes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., used_inodes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., mounted: _Optional[str] = ..., home: _Optional[str] = ..., names: _Optional[str] = ...) -> None: ...

class CreateVolumeRequest(_message.Message):
    __slots__ = ("name", "quota_bytes", "quota_inodes", "mode", "uid", "gid", "names", "redundancy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_INODES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REDUNDANCY_FIELD_NUMBER: _ClassVar[int]
    name: str
    quota_bytes: int
    quota_inodes: int
    mode: int
    uid: int
    gid: int
    names: str
    redundancy: str
    def __init__(self, name: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., quota_inodes: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., names: _Optional[str] = ..., redundancy: _Optional[str] = ...) -> None: ...

class ListVolumesRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListVolumesReply(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class SetVolumeRequest(_message.Message):
    __slots__ = ("name", "quota_bytes", "quota_inodes", "new_name", "names")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_INODES_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    name: str
    quota_bytes: int
    quota_inodes: int
    new_name: str
    names: str
    def __init__(self, name: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., quota_inodes: _Optional[int] = ..., new_name: _Optional[str] = ..., names: _Optional[str] = ...) -> None: ...

class DeleteVolumeRequest(_message.Message):
    __slots__ = ("name", "destroy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESTROY_FIELD_NUMBER: _ClassVar[int]
    name: str
    destroy: str
    def __init__(self, name: _Optional[str] = ..., destroy: _Optional[str] = ...) -> None: ...

class DeleteVolumeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseVolumeRequest(_message.Message):
    __slots__ = ("name", "node", "confirm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_FIELD_NUMBER: _ClassVar[int]
    name: str
    node: str
    confirm: str
    def __init__(self, name: _Optional[str] = ..., node: _Optional[str] = ..., confirm: _Optional[str] = ...) -> None: ...

class ReleaseVolumeReply(_message.Message):
    __slots__ = ("paths",)
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, paths: _Optional[_Iterable[str]] = ...) -> None: ...

class MountPoint(_message.Message):
    __slots__ = ("mount", "volume", "directory", "options", "state", "worker_pid", "workers", "last_error", "worker_version", "power_cut")
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKER_PID_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    WORKER_VERSION_FIELD_NUMBER: _ClassVar[int]
    POWER_CUT_FIELD_NUMBER: _ClassVar[int]
    mount: str
    volume: str
    directory: str
    options: _containers.RepeatedScalarFieldContainer[str]
    state: str
    worker_pid: int
    workers: int
    last_error: str
    worker_version: str
    power_cut: str
    def __init__(self, mount: _Optional[str] = ..., volume: _Optional[str] = ..., directory: _Optional[str] = ..., options: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., worker_pid: _Optional[int] = ..., workers: _Optional[int] = ..., last_error: _Optional[str] = ..., worker_version: _Optional[str] = ..., power_cut: _Optional[str] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("volume", "directory", "options")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    volume: str
    directory: str
    options: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, volume: _Optional[str] = ..., directory: _Optional[str] = ..., options: _Optional[_Iterable[str]] = ...) -> None: ...

class UmountRequest(_message.Message):
    __slots__ = ("target", "force")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    target: str
    force: bool
    def __init__(self, target: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class UmountReply(_message.Message):
    __slots__ = ("directory", "flushed", "detached")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    FLUSHED_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    directory: str
    flushed: bool
    detached: bool
    def __init__(self, directory: _Optional[str] = ..., flushed: _Optional[bool] = ..., detached: _Optional[bool] = ...) -> None: ...

class ListMountsRequest(_message.Message):
    __slots__ = ("power_cut",)
    POWER_CUT_FIELD_NUMBER: _ClassVar[int]
    power_cut: bool
    def __init__(self, power_cut: _Optional[bool] = ...) -> None: ...

class ListMountsReply(_message.Message):
    __slots__ = ("mounts",)
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    mounts: _containers.RepeatedCompositeFieldContainer[MountPoint]
    def __init__(self, mounts: _Optional[_Iterable[_Union[MountPoint, _Mapping]]] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class FlushReply(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("after", "follow", "reader")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    after: int
    follow: bool
    reader: str
    def __init__(self, after: _Optional[int] = ..., follow: _Optional[bool] = ..., reader: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("index", "term", "time_ns", "site", "stamp", "mount", "unique", "session", "epoch", "command", "fields")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    time_ns: int
    site: int
    stamp: int
    mount: int
    unique: int
    session: int
    epoch: int
    command: str
    fields: str
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., time_ns: _Optional[int] = ..., site: _Optional[int] = ..., stamp: _Optional[int] = ..., mount: _Optional[int] = ..., unique: _Optional[int] = ..., session: _Optional[int] = ..., epoch: _Optional[int] = ..., command: _Optional[str] = ..., fields: _Optional[str] = ...) -> None: ...

class RemoveReaderRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveReaderReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScrubStartRequest(_message.Message):
    __slots__ = ("bytes_per_s",)
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    bytes_per_s: int
    def __init__(self, bytes_per_s: _Optional[int] = ...) -> None: ...

class ScrubStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScrubStopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Scrub(_message.Message):
    __slots__ = ("state", "bytes_per_s", "started_ns", "ended_ns", "segments", "extents", "bytes", "rechecked", "found", "repaired", "reason", "findings", "by_itself", "complete_ns", "due_ns")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    ENDED_NS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RECHECKED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    BY_ITSELF_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_NS_FIELD_NUMBER: _ClassVar[int]
    DUE_NS_FIELD_NUMBER: _ClassVar[int]
    state: str
    bytes_per_s: int
    started_ns: int
    ended_ns: int
    segments: int
    extents: int
    bytes: int
    rechecked: int
    found: int
    repaired: int
    reason: str
    findings: _containers.RepeatedCompositeFieldContainer[ScrubFinding]
    by_itself: bool
    complete_ns: int
    due_ns: int
    def __init__(self, state: _Optional[str] = ..., bytes_per_s: _Optional[int] = ..., started_ns: _Optional[int] = ..., ended_ns: _Optional[int] = ..., segments: _Optional[int] = ..., extents: _Optional[int] = ..., bytes: _Optional[int] = ..., rechecked: _Optional[int] = ..., found: _Optional[int] = ..., repaired: _Optional[int] = ..., reason: _Optional[str] = ..., findings: _Optional[_Iterable[_Union[ScrubFinding, _Mapping]]] = ..., by_itself: _Optional[bool] = ..., complete_ns: _Optional[int] = ..., due_ns: _Optional[int] = ...) -> None: ...

class ScrubFinding(_message.Message):
    __slots__ = ("kind", "where", "what", "volume", "path", "offset", "repaired")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    where: str
    what: str
    volume: str
    path: str
    offset: int
    repaired: bool
    def __init__(self, kind: _Optional[str] = ..., where: _Optional[str] = ..., what: _Optional[str] = ..., volume: _Optional[str] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., repaired: _Optional[bool] = ...) -> None: ...

class BackupMetadataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupPiece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class GetUpgradeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinalizeUpgradeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpgradeStatus(_message.Message):
    __slots__ = ("level", "known", "nodes")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    level: int
    known: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeLevel]
    def __init__(self, level: _Optional[int] = ..., known: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeLevel, _Mapping]]] = ...) -> None: ...

class NodeLevel(_message.Message):
    __slots__ = ("node", "name", "version", "level")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    node: str
    name: str
    version: str
    level: int
    def __init__(self, node: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., level: _Optional[int] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    def __init__(self, removed: _Optional[bool] = ...) -> None: ...

class ListNodesReply(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("node", "name", "role", "state", "control", "metadata", "labels", "joined_ms", "version", "level", "member", "leader", "heard_ms_ago", "lag", "issuer", "silent_ms", "carries", "readiness", "maintenance_until_ms")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    JOINED_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    CARRIES_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    MAINTENANCE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    name: str
    role: str
    state: str
    control: str
    metadata: str
    labels: _containers.ScalarMap[str, str]
    joined_ms: int
    version: str
    level: int
    member: str
    leader: bool
    heard_ms_ago: int
    lag: int
    issuer: str
    silent_ms: int
    carries: bool
    readiness: str
    maintenance_until_ms: int
    def __init__(self, node: _Optional[str] = ..., name: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., control: _Optional[str] = ..., metadata: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., joined_ms: _Optional[int] = ..., version: _Optional[str] = ..., level: _Optional[int] = ..., member: _Optional[str] = ..., leader: _Optional[bool] = ..., heard_ms_ago: _Optional[int] = ..., lag: _Optional[int] = ..., issuer: _Optional[str] = ..., silent_ms: _Optional[int] = ..., carries: _Optional[bool] = ..., readiness: _Optional[str] = ..., maintenance_until_ms: _Optional[int] = ...) -> None: ...

class SetNodeRequest(_message.Message):
    __slots__ = ("node", "action", "force", "for_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    FOR_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    action: str
    force: bool
    for_ms: int
    def __init__(self, node: _Optional[str] = ..., action: _Optional[str] = ..., force: _Optional[bool] = ..., for_ms: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("force", "purge", "destroy")
    FORCE_FIELD_NUMBER: _ClassVar[int]
    PURGE_FIELD_NUMBER: _ClassVar[int]
    DESTROY_FIELD_NUMBER: _ClassVar[int]
    force: bool
    purge: bool
    destroy: str
    def __init__(self, force: _Optional[bool] = ..., purge: _Optional[bool] = ..., destroy: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("left",)
    LEFT_FIELD_NUMBER: _ClassVar[int]
    left: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, left: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("role", "ttl_s", "uses", "endpoints")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    ttl_s: int
    uses: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, role: _Optional[str] = ..., ttl_s: _Optional[int] = ..., uses: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "kind", "role", "expires_ms", "uses_left", "created_ms", "revoked", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    USES_LEFT_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    role: str
    expires_ms: int
    uses_left: int
    created_ms: int
    revoked: bool
    text: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., role: _Optional[str] = ..., expires_ms: _Optional[int] = ..., uses_left: _Optional[int] = ..., created_ms: _Optional[int] = ..., revoked: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTokensReply(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RevokeTokenReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateTokenRequest(_message.Message):
    __slots__ = ("id", "ttl_s", "endpoints")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    ttl_s: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., ttl_s: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class ListCasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCasReply(_message.Message):
    __slots__ = ("cas",)
    CAS_FIELD_NUMBER: _ClassVar[int]
    cas: _containers.RepeatedCompositeFieldContainer[Ca]
    def __init__(self, cas: _Optional[_Iterable[_Union[Ca, _Mapping]]] = ...) -> None: ...

class Ca(_message.Message):
    __slots__ = ("id", "state", "created_ms", "certificate")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    created_ms: int
    certificate: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., created_ms: _Optional[int] = ..., certificate: _Optional[str] = ...) -> None: ...

class RotateCaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateCaReply(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetFileRequest(_message.Message):
    __slots__ = ("volume", "inode")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    volume: str
    inode: int
    def __init__(self, volume: _Optional[str] = ..., inode: _Optional[int] = ...) -> None: ...

class GetPathsRequest(_message.Message):
    __slots__ = ("volume", "inodes")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    volume: str
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, volume: _Optional[str] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class GetPathsReply(_message.Message):
    __slots__ = ("paths",)
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedCompositeFieldContainer[InodePath]
    def __init__(self, paths: _Optional[_Iterable[_Union[InodePath, _Mapping]]] = ...) -> None: ...

class InodePath(_message.Message):
    __slots__ = ("inode", "path")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    inode: int
    path: str
    def __init__(self, inode: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class FileFacts(_message.Message):
    __slots__ = ("inode", "mode", "nlink", "uid", "gid", "size", "stored_bytes", "inline_data", "extents", "first_extents", "places", "cut", "segments")
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    INLINE_DATA_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_EXTENTS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    stored_bytes: int
    inline_data: bool
    extents: int
    first_extents: _containers.RepeatedCompositeFieldContainer[FileExtent]
    places: _containers.RepeatedCompositeFieldContainer[FilePlace]
    cut: bool
    segments: int
    def __init__(self, inode: _Optional[int] = ..., mode: _Optional[int] = ..., nlink: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., size: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., inline_data: _Optional[bool] = ..., extents: _Optional[int] = ..., first_extents: _Optional[_Iterable[_Union[FileExtent, _Mapping]]] = ..., places: _Optional[_Iterable[_Union[FilePlace, _Mapping]]] = ..., cut: _Optional[bool] = ..., segments: _Optional[int] = ...) -> None: ...

class FileExtent(_message.Message):
    __slots__ = ("offset", "length", "device", "segment", "frame_offset")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FRAME_OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    device: int
    segment: int
    frame_offset: int
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., device: _Optional[int] = ..., segment: _Optional[int] = ..., frame_offset: _Optional[int] = ...) -> None: ...

class FilePlace(_message.Message):
    __slots__ = ("device", "path", "segments", "extents", "bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    device: int
    path: str
    segments: int
    extents: int
    bytes: int
    def __init__(self, device: _Optional[int] = ..., path: _Optional[str] = ..., segments: _Optional[int] = ..., extents: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class SummarizeRequest(_message.Message):
    __slots__ = ("volume", "inode")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    volume: str
    inode: int
    def __init__(self, volume: _Optional[str] = ..., inode: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("directories", "files", "symlinks", "others", "bytes", "stored_bytes", "further_names", "done")
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SYMLINKS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FURTHER_NAMES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    directories: int
    files: int
    symlinks: int
    others: int
    bytes: int
    stored_bytes: int
    further_names: int
    done: bool
    def __init__(self, directories: _Optional[int] = ..., files: _Optional[int] = ..., symlinks: _Optional[int] = ..., others: _Optional[int] = ..., bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., further_names: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class MakeUiLoginRequest(_message.Message):
    __slots__ = ("operator",)
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    operator: bool
    def __init__(self, operator: _Optional[bool] = ...) -> None: ...

class MakeUiLoginReply(_message.Message):
    __slots__ = ("address", "seconds")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    seconds: int
    def __init__(self, address: _Optional[str] = ..., seconds: _Optional[int] = ...) -> None: ...

class GetFiguresRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFiguresReply(_message.Message):
    __slots__ = ("figures", "monotonic_s")
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_S_FIELD_NUMBER: _ClassVar[int]
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    monotonic_s: float
    def __init__(self, figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., monotonic_s: _Optional[float] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "kind", "labels", "value")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    labels: _containers.ScalarMap[str, str]
    value: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., value: _Optional[float] = ...) -> None: ...

class StoreSettings(_message.Message):
    __slots__ = ("endpoint", "region", "ca", "proxy", "rpo_ms", "keep_ms", "sealed", "role", "keys")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    RPO_MS_FIELD_NUMBER: _ClassVar[int]
    KEEP_MS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    region: str
    ca: str
    proxy: str
    rpo_ms: int
    keep_ms: int
    sealed: bool
    role: bool
    keys: StoreKeys
    def __init__(self, endpoint: _Optional[str] = ..., region: _Optional[str] = ..., ca: _Optional[str] = ..., proxy: _Optional[str] = ..., rpo_ms: _Optional[int] = ..., keep_ms: _Optional[int] = ..., sealed: _Optional[bool] = ..., role: _Optional[bool] = ..., keys: _Optional[_Union[StoreKeys, _Mapping]] = ...) -> None: ...

class StoreKeys(_message.Message):
    __slots__ = ("key_id", "secret", "token")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    secret: str
    token: str
    def __init__(self, key_id: _Optional[str] = ..., secret: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class AddStoreRequest(_message.Message):
    __slots__ = ("name", "url", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    url: str
    settings: StoreSettings
    def __init__(self, name: _Optional[str] = ..., url: _Optional[str] = ..., settings: _Optional[_Union[StoreSettings, _Mapping]] = ...) -> None: ...

class SetStoreRequest(_message.Message):
    __slots__ = ("name", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: StoreSettings
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Union[StoreSettings, _Mapping]] = ...) -> None: ...

class CheckStoreRequest(_message.Message):
    __slots__ = ("name", "url", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    url: str
    settings: StoreSettings
    def __init__(self, name: _Optional[str] = ..., url: _Optional[str] = ..., settings: _Optional[_Union[StoreSettings, _Mapping]] = ...) -> None: ...

class DetachStoreRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListStoresRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListStoresReply(_message.Message):
    __slots__ = ("stores",)
    STORES_FIELD_NUMBER: _ClassVar[int]
    stores: _containers.RepeatedCompositeFieldContainer[Store]
    def __init__(self, stores: _Optional[_Iterable[_Union[Store, _Mapping]]] = ...) -> None: ...

class StoreProgress(_message.Message):
    __slots__ = ("finding", "store")
    FINDING_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    finding: StoreFinding
    store: Store
    def __init__(self, finding: _Optional[_Union[StoreFinding, _Mapping]] = ..., store: _Optional[_Union[Store, _Mapping]] = ...) -> None: ...

class StoreFinding(_message.Message):
    __slots__ = ("tried", "level", "words")
    TRIED_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    tried: str
    level: str
    words: str
    def __init__(self, tried: _Optional[str] = ..., level: _Optional[str] = ..., words: _Optional[str] = ...) -> None: ...

class Store(_message.Message):
    __slots__ = ("name", "url", "state", "endpoint", "region", "credentials", "ca", "proxy", "sealed", "rpo_ms", "keep_ms", "era", "era_number", "created_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    RPO_MS_FIELD_NUMBER: _ClassVar[int]
    KEEP_MS_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    ERA_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    url: str
    state: str
    endpoint: str
    region: str
    credentials: str
    ca: str
    proxy: str
    sealed: bool
    rpo_ms: int
    keep_ms: int
    era: str
    era_number: int
    created_ns: int
    def __init__(self, name: _Optional[str] = ..., url: _Optional[str] = ..., state: _Optional[str] = ..., endpoint: _Optional[str] = ..., region: _Optional[str] = ..., credentials: _Optional[str] = ..., ca: _Optional[str] = ..., proxy: _Optional[str] = ..., sealed: _Optional[bool] = ..., rpo_ms: _Optional[int] = ..., keep_ms: _Optional[int] = ..., era: _Optional[str] = ..., era_number: _Optional[int] = ..., created_ns: _Optional[int] = ...) -> None: ...

class CreateSnapshotsRequest(_message.Message):
    __slots__ = ("volumes", "name", "crash_consistent")
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CRASH_CONSISTENT_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedScalarFieldContainer[str]
    name: str
    crash_consistent: bool
    def __init__(self, volumes: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., crash_consistent: _Optional[bool] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: str
    def __init__(self, volume: _Optional[str] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("volume", "name")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    volume: str
    name: str
    def __init__(self, volume: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class SnapshotsReply(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("volume", "name", "number", "uuid", "created_ns", "word", "used_bytes", "used_inodes", "freed_bytes")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_INODES_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    volume: str
    name: str
    number: int
    uuid: str
    created_ns: int
    word: str
    used_bytes: int
    used_inodes: int
    freed_bytes: int
    def __init__(self, volume: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., uuid: _Optional[str] = ..., created_ns: _Optional[int] = ..., word: _Optional[str] = ..., used_bytes: _Optional[int] = ..., used_inodes: _Optional[int] = ..., freed_bytes: _Optional[int] = ...) -> None: ...
