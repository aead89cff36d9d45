"""Every bound has a name, a unit last in the name, and a relation to the others (asserted at the end)."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
NS_PER_MS = 1_000_000

# --- names and attributes (Linux limits) -------------------------------------------------------------------------------
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 64 * KIB
XATTRS_BYTES_MAX = 256 * KIB  # of one inode, names and values
LINKS_MAX = 65_000
ATIMES_PENDING_MAX = 8_192  # times of reads that a worker has not reported yet
ATIMES_PER_ENTRY_MAX = 1_024
FILE_BYTES_MAX = 1 << 53

# --- FUSE ----------------------------------------------------------------------------------------------------------------
FUSE_WRITE_BYTES_MAX = MIB
FUSE_HEADER_BYTES_MAX = 4 * KIB  # room before the payload in a slot
FUSE_READERS = 3  # blocking reader threads, one slot each
FUSE_SLOTS = FUSE_READERS
SLOT_REPLY_BYTES_MAX = 4 * KIB  # replies up to this are stored with state "done"
PARK_BYTES_MAX = 32 * MIB
PARK_RECALL_BYTES = 4 * MIB  # of PARK_BYTES_MAX, kept for requests other than WRITEs
OPEN_FILES_MAX = 65_536
POISON_DEATHS = 2  # a request that was executing at this many deaths is a suspect and runs alone
WORKER_DEATHS_BEFORE_BACKOFF = 5
BACKOFF_MS_MAX = 5_000

# --- data ----------------------------------------------------------------------------------------------------------------
BLOCK_BYTES = 4 * KIB  # checksum unit, and what a flush is padded to at least
PHYSICAL_BLOCK_BYTES_MAX = 64 * KIB  # what a flush is padded to at most; devices with larger physical blocks are not added
SEGMENT_BYTES_DEFAULT = 64 * MIB
SEGMENT_BYTES_MIN = MIB
SEGMENTS_MIN = 32  # a device that would hold fewer is refused
SEGMENTS_WANTED = 512  # a device that would hold fewer takes smaller segments: each restart of a worker seals one that may be nearly empty
SEGMENTS_RESERVED = 3  # never promised to writers: two for what dead workers leave unused, one for collection
SEGMENTS_FOR_COLLECTION = 1  # of SEGMENTS_RESERVED: never leased to a writer
SEGMENTS_LEASED_AHEAD = 2
SEGMENT_REST_SHARE = 8  # a sealed segment is leased again if at least one part in so many of it was never written
SEGMENTS_KNOWN_MAX = 65_536  # rows of segments that a worker remembers; each about 400 bytes
QUARANTINE_SHARE = 8  # with one part in so many of all segments in quarantine, no mount leases ahead of need
DEVICES_REPORTED_MAX = 1_024  # of one node
DEVICE_REPORT_MS = 3_000  # between two reports of a node of the devices it sees
DEVICE_ALONE_MS = 60_000  # for so long only one node may see a shared device without a finding
ABSENT_AFTER_MS = 10_000  # a device that no node can have had open for so long is absent
VOUCH_MS = 2_000  # between two searches for quarantined segments that this node can prove free
DEVICE_WAIT_MS_MAX = 3 * DEVICE_REPORT_MS  # a read waits so long, once, for a device that this node has not found yet
DEVICE_SCAN_MS = 30_000  # between two searches for a shared device that is not found
DEVICE_ERA_LOOK_MS = 1_000  # between two looks whether a device that is open was recovered elsewhere
DEVICE_PROBE_MS_MAX = 5_000  # for reading the superblock of one block device
SCAN_DEVICES_MAX = 4_096  # looked at in one search
COPIES_MAX = 8  # mirrors of a segment
NEEDS_COUNTED_MAX = 1_024  # looked at for one answer; of those with one mirror left the segment's row too
MAINTENANCE_MS_MAX = 7 * 86_400_000  # of a host; its devices are not lost so long
BAYS_PER_ANSWER_MAX = 1_024  # of one GetBays
STALE_BAYS_LOOKED_AT_MAX = 8_192  # rows that one search for stale bays reads
NEEDS_PER_ANSWER_MAX = 256
NEEDS_PAGES_MAX = 64  # that one look of healing reads
BAYS_TRIMMED_AT_ONCE = 256  # of one device, by one entry
SEGMENTS_PER_SESSION_MAX = 64
FRAME_BYTES_MAX = MIB  # logical bytes of one frame
INLINE_BYTES_MAX = 4 * KIB
EXTENTS_PER_INODE_MAX = 1 << 26
EXTENTS_PER_COMMIT_MAX = 512
DIRTY_BYTES_MAX = 96 * MIB  # of the dirty log of one mount
DIRTY_RECALL_BYTES = 4 * MIB  # of DIRTY_BYTES_MAX, kept for what a recall flushes
DIRTY_FLUSH_BYTES = 24 * MIB  # dirty bytes that start a flush
DIRTY_AGE_MS_MAX = 5_000
OP_LOG_BYTES = 4 * MIB  # records of names, attributes and locks of one mount that the cluster has not applied
OP_RECALL_BYTES = 512 * KIB  # of OP_LOG_BYTES, kept for what a recall stores
OP_RECORDS_MAX = 8_192  # of one mount, not applied or not answered
OP_RECORDS_SHARED_MAX = 2_048  # the same where other nodes may have to wait for them
OP_RECORDS_RECALL = 256  # of both, kept for what a recall stores
OP_RECORD_BYTES_MAX = 72 * KIB  # the largest value of an extended attribute, and what is said of it
SHIP_GAP_MS = 100  # for so long records are collected before they are shipped, unless somebody waits: 500 a second are 50 in a batch
SHIP_RECORDS_MAX = 256  # of one batch; so many are shipped at once
SHIP_BYTES = 64 * KIB  # of records that are shipped at once; a batch ends with the record that reaches this
RESERVE_BATCH_BYTES = 64 * MIB
READ_AHEAD_BYTES_MAX = 4 * MIB
CHECKSUM_CACHE_BYTES_MAX = 24 * MIB

COLLECT_LOW_FREE_PERCENT = 12  # of all segments: with less free, collection does not rest and takes segments with little dead
COLLECT_DEAD_PERCENT = 50  # of a segment, from which it is collected while space is not low
COLLECT_DEAD_PERCENT_LOW = 12  # the same while space is low, or when ordered
UPKEEP_BYTES_PER_S_MAX = 64 * MIB  # of a node: copied by collection while space is not low, and read by scrub

# --- caches of names in a worker -------------------------------------------------------------------------------------------
INODES_CACHED_MAX = 50_000
DENTRIES_CACHED_MAX = 100_000
MEMOS_CACHED_MAX = 8_192  # xattrs and link targets
LOOSE_FILES_MAX = 65_536  # files for which a worker knows the version of the pages that the kernel has
DIRECTORY_MODES_MAX = 16_384  # directories whose consistency a worker remembers
CLOSE_TO_OPEN_ATTR_MS = 1_000  # how long the kernel may use the attributes of a file between two opens
ACLS_CACHED_MAX = 4_096  # access ACLs that a worker keeps where it checks callers itself
DIRECTORY_LISTED_ENTRIES_MAX = 20_000  # larger directories are not cached whole

# --- metadata ------------------------------------------------------------------------------------------------------------
RPC_FRAME_BYTES_MAX = 4 * MIB
RPC_INFLIGHT_MAX = 1_024  # of one client
CLIENT_QUEUED_MAX = 64 * RPC_INFLIGHT_MAX  # requests that wait in a client, over RPC_INFLIGHT_MAX
CLIENT_SILENCE_MS = 2_000  # a connection that owes an answer for so long is dropped, if there is another node to ask
READDIR_ENTRIES_MAX = 512
ROWS_ASKED_MAX = 4_096  # keys in one GetRows
ROWS_ANSWER_BYTES = MIB  # an answer to it ends with the row that reaches this
OVERLAY_ROWS_MAX = 200_000  # of what a mount holds, that it remembers beside those that it has changed
ORPHANS_LOOK_MS = 1_000  # between two questions of a shared mount for the unlinked files that wait for it
ORPHANS_PER_LOOK_MAX = 4_096  # of one answer
ORPHANS_TELL_MS = 100  # for so long a shared mount collects unlinked files that it does not have open, to report them together
ORPHANS_PER_ENTRY_MAX = 128
LISTINGS_MAX = 64  # pages of so many entries that a worker keeps for open directories; others ask again
REPORT_FIGURES_MAX = 512  # of one worker
REPORT_NAME_BYTES_MAX = 128  # of one of them
NODE_REPORT_TEXT_BYTES_MAX = 8 * KIB  # of all texts in what a node says of itself; those of NODES_MAX nodes fit one answer
DEVICE_REPORT_TEXT_BYTES_MAX = 256 * KIB  # of all texts in what a node says of the devices that it sees
REPORTS_PAGE_BYTES = 2 * MIB  # an answer with reports ends with the report that reaches this; the next one has those behind it
LAYOUT_EXTENTS_MAX = 16_384  # of one Layout answer
LAYOUT_COUNTED_MAX = 4_096  # extents of a file that are counted each time before a gap is answered as a hole; of larger files once
EXTENTS_PER_PORTION = 1 << 16  # of a larger file, counted by one question: the metadata thread must not read for long
EXTENT_COUNTS_MAX = 4_096  # larger files whose extents are known to be counted
BATCH_ENTRIES_MAX = 512  # proposals in one journal sync
BATCH_BYTES_MAX = 8 * MIB
PROPOSALS_PENDING_MAX = 4 * BATCH_ENTRIES_MAX  # handed to the log and not decided
PROPOSALS_PENDING_BYTES_MAX = 4 * BATCH_BYTES_MAX  # of those
READS_PARKED_MAX = 8 * RPC_INFLIGHT_MAX  # queries that wait until a quorum has spoken
ENTRY_BYTES_MAX = 2 * MIB
RESULTS_PER_MOUNT_MAX = 4_096  # unacknowledged results; admission refuses more
APPLY_RECORDS_MAX = 1_024  # records of one Apply
LISTED_PER_COMMAND_MAX = 1_024  # inodes or segments in a command of a worker; each build's worker sends fewer
LISTED_PER_QUESTION_MAX = 4_096  # segments or devices that one names
INODES_PER_GRANT_MAX = 4_096  # inode numbers that a mount gets at once
INODES_GRANTED_MAX = 4 * INODES_PER_GRANT_MAX  # that a mount has and has not used
INODE_RANGES_MAX = 64  # of those
MOUNTS_KEPT_PER_NODE = 1_024  # rows and results of mounts whose session has ended; the oldest go
ACKS_PER_REQUEST_MAX = 512
JOURNAL_FILE_BYTES = 16 * MIB
JOURNAL_RECORD_BYTES_MAX = ENTRY_BYTES_MAX + 4 * KIB
STORE_MAP_BYTES_MIN = 256 * MIB
STORE_MAP_USE_MAX_PERCENT = 70
STORE_COMMIT_ENTRIES = 2_000  # entries in one generation of the store's overlay, if the disk keeps up
STORE_COMMIT_ROWS = 20_000  # rows in one, the same
STORE_COMMIT_BYTES = 16 * MIB  # keys and values of them, the same
STORE_WAIT_FACTOR = 4  # so many times that, and the metadata thread waits for the generation before
STORE_COMMIT_MS = 1_000
REAP_EXTENTS_PER_ENTRY = 1_024
CHECKPOINT_SEGMENTS_MIN = 64  # a device with fewer has no room for checkpoints
CHECKPOINT_RECORD_BYTES_MAX = 256 * KIB  # payload of one record of an area
CHECKPOINT_BATCH_BYTES_MAX = 4 * MIB  # of entries in one batch of the tail, or one page of the log more
CHECKPOINT_TAIL_MS = 1_000  # between two batches of the tail
CHECKPOINT_TAIL_BYTES = 16 * MIB  # room for the tail in an area; less on small devices
CHECKPOINT_TAIL_SHARE = 4  # a tail that has this part of its copy's bytes, or fills its room, is replaced by a new checkpoint
CHECKPOINT_BYTES_PER_S_MAX = 64 * MIB  # of the copy
CHECKPOINT_RETRY_MS = 1_000  # after a failure
CHECKPOINT_STAND_BY_MS = 10_000  # between two looks of a node that does not lead at the room that it keeps
CHECKPOINT_FAILURES_MAX = 3  # in a row, before freed segments are leased again without one
BACKUP_PIECE_BYTES = 256 * KIB  # of the state store, before compression
BACKUP_WAIT_S = 30.0  # until this node's state holds all that was acknowledged before
CHECKPOINT_HOLD_ENTRIES_MAX = 200_000  # that the journal keeps for the tail
VOLUMES_MAX = 4_096
VOLUME_NAME_BYTES_MAX = 63
SNAPSHOTS_PER_VOLUME_MAX = 1_024
SNAPSHOT_NAME_BYTES_MAX = 255
VOLUMES_PER_SNAPSHOT_MAX = 64  # that one entry makes snapshots of
SNAPSHOT_FLUSH_MS_MAX = 60_000  # for so long a snapshot waits for what mounts hold back
SNAPSHOT_FLUSHES_MAX = 64  # under way at one leader
STORES_MAX = 16
STORE_URL_BYTES_MAX = 1_024
STORE_TEXT_BYTES_MAX = 512  # of an endpoint, a proxy
STORE_CA_BYTES_MAX = 32 * KIB
STORE_SECRET_BYTES_MAX = 16 * KIB
STORE_RPO_MS_MIN, STORE_RPO_MS_MAX = 10_000, 7 * 86_400_000
STORE_KEEP_MS_MIN, STORE_KEEP_MS_MAX = 3_600_000, 3_650 * 86_400_000
CSI_NAME_BYTES_MAX = 128  # of the specification, for every string that is no path
CSI_PATH_BYTES_MAX = 255  # of a directory that stands for a volume
CSI_SETTINGS_BYTES_MAX = 4 * KIB
CSI_PAGE_MAX = 1_000  # volumes in one answer
CSI_INLINE_BYTES = 10 * GIB  # the largest inline volume, until csi.inline_max says another size
LOCKS_PER_INODE_MAX = 8_192
SPACE_RECALL_MS_MAX = 3_000  # for so long a request that needs space waits for what other sessions give back
SPACE_RECALLS_WAITING_MAX = 1_024  # requests that wait so, at one leader
LOCK_WAITERS_PER_INODE_MAX = 1_024
LOCK_WAITERS_PER_MOUNT_MAX = 8_192
LOCK_WAITERS_MAX = 65_536  # at one leader
DEADLOCK_SEARCH_MAX = 10_000  # waiting locks that one search for a circle visits
STREAM_READERS_MAX = 16

# --- Raft ----------------------------------------------------------------------------------------------------------------
RAFT_HEARTBEAT_MS = 200
RAFT_ELECTION_MS_MIN = 1_000
RAFT_ELECTION_MS_MAX = 2_000
RAFT_APPEND_BYTES_MAX = MIB  # payload of one Append, or one entry
RAFT_INFLIGHT_MESSAGES_MAX = 64  # unanswered Appends to one follower
RAFT_INFLIGHT_BYTES_MAX = 8 * MIB
RAFT_APPLY_BYTES_MAX = 8 * MIB  # of committed entries in one Ready, or one entry
RAFT_CACHE_ENTRIES_MAX = 4_096  # stored and applied entries that stay in memory, for followers that are a little behind
RAFT_CACHE_BYTES_MAX = 16 * MIB
RAFT_CHUNK_BYTES = MIB  # of a state snapshot
RAFT_PROMOTE_LAG_ENTRIES_MAX = 10_000  # a learner further behind does not become a voter

# --- between voters ----------------------------------------------------------------------------------------------------------
PEER_QUEUE_BYTES_MAX = 16 * MIB  # frames to one peer that wait for its socket; more are dropped, Raft sends again
PEER_STUCK_MS_MAX = 5_000  # a connection that moves nothing for so long is closed
PEER_REDIAL_MS_MIN = 50
PEER_REDIAL_MS_MAX = 1_000
PEERS_MAX = 64  # connections from others
GREETINGS_PER_NODE_MAX = 2  # of those, that one node has open and has not greeted on
HANDSHAKES_MAX = 64  # connections to the metadata port that have not proved their identity; over it the oldest is closed
HANDSHAKES_PER_TURN = 8  # steps of those, of about a millisecond each; then the metadata thread does something else
HANDSHAKE_MS_MAX = 5_000  # from accept(2) to the proof, and from there to the greeting
GREETING_BYTES_MAX = 4 * KIB  # of a frame before the greeting is accepted
PORT_QUEUE = 1_024  # connections that the kernel keeps until they are accepted; it ignores those beyond, which try again after 1, 3, 7 s
PORT_DEAF_MS = 1_000  # without descriptors no connection is accepted for so long
NAME_LOOK_MS = 5_000  # between two resolutions of another node's host name
STANDING_MS = 500  # between two readings of the nodes' rows: a removed node is cut off within a second
PEM_BYTES_MAX = MIB
HAND_OVER_MS_MAX = 1_000  # that a clean stop waits until another voter leads
VOTER_ANNOUNCE_MS = 250  # between two announcements of a journal that is in no membership
VOTER_DOUBT_MS = 10_000  # a journal whose end is in doubt takes no part in elections for so long while there is no leader
DAMAGE_PAUSE_MS = 5_000  # a voter that met damage in its state reads it again so much later; if it is still there, it joins again
VOTER_RETRY_MS = 200  # after the journal found no room
VOTER_KEEP_ENTRIES = 20_000  # applied entries that every voter keeps for others that are behind
VOTER_KEEP_ENTRIES_MAX = 200_000  # that a leader keeps for a follower that answers; then it gets a state snapshot
STATE_SNAPSHOT_BYTES_PER_S_MAX = 128 * MIB  # sent by one leader, to all
DIGEST_ENTRIES = 8_192  # voters compare the digests of their states at every multiple of this index

# --- segment servers ---------------------------------------------------------------------------------------------------------
SEGMENT_BODY_BYTES_MAX = FRAME_BYTES_MAX + BLOCK_BYTES  # of one record: the largest frame with its header
SEGMENT_GREETING_BYTES_MAX = 16 * KIB  # the body of a greeting, and of other small answers
SEGMENT_REASON_BYTES_MAX = 512  # why a request failed, in words
SEGMENT_BUFFERS_MAX = 64  # of a server, for bodies that are under way; each has room for one plain and one sealed
SEGMENT_BUFFERS_PER_NODE = 16  # … that requests of one node hold: a node that stops inside its records holds up itself
SEGMENT_CONNECTIONS_PER_NODE = 64  # to one server
SEGMENT_HANDSHAKE_BYTES_MAX = 64 * KIB  # that one side sends until the other has its random bytes
SEGMENT_RECORD_MS_MAX = 10_000  # from the first byte of a record to its last one
SEGMENT_STALL_MS = 2_000  # what a peer does not acknowledge for so long ends the connection
SEGMENT_DIAL_MS_MAX = 2_000  # for connect, handshake and greeting
SEGMENT_ANSWER_MS_MAX = 5_000  # for one answer, seen from whoever asks
SEGMENT_DIAL_PAUSE_MS = 50  # after a connection that brought no answer; doubles
SEGMENT_DIAL_PAUSE_MS_MAX = 2_000
MIRRORS_WAIT_MS_MAX = 10_000  # a read waits so long while no mirror can be reached: a segment server that starts again takes a second
MIRRORS_LOOK_MS = 100  # between two attempts
POOL_DEVICES_MS_MAX = 5_000  # that is used of which node serves a device, before it is asked for again
SEGMENT_ASK_MS_MAX = 4_000  # that a segment server waits for the leader's answer
SEGMENT_LOOK_MS = 2_000  # between two looks of a segment server at nodes and devices: a removed node is cut off then
SEGMENT_ATTACH_PAUSE_MS = 1_000  # before a device that could not be attached is tried again; doubles
SEGMENT_ATTACH_PAUSE_MS_MAX = 30_000
SEGMENT_TIDY_MS = 30_000  # between two times at which memory for bodies that nobody uses is given back
SEGMENT_STOP_MS = 5_000  # that the end of a segment server waits for I/O that is under way
SEGMENT_THREAD_STACK_BYTES = 256 * KIB
SEGMENT_COPIES_MAX = 2  # under way at one server, into its bays
SEGMENT_VERIFY_MS_MAX = 60_000  # for one segment: 64 MiB at 1 MiB a second
SEGMENT_COPY_ANSWER_MS = 1_000  # after which an order to copy is answered, though the copy goes on
SEGMENT_NEWEST_BAYS = 256  # that are looked at when a device is attached
SEGMENT_UNREADABLE_MAX = 64  # blocks of one bay; with more the device does not serve
SEGMENT_CONNECTION_MS_MAX = 24 * 3_600_000  # a key is not used for longer
ENSEMBLE_STALL_MS_ALL = 5_000  # without progress of a mirror where no other one makes any; else SEGMENT_STALL_MS
ENSEMBLE_LOOK_MS = 250  # between two looks for silent mirrors, while one owes an answer
ENSEMBLE_BEHIND_BYTES_MAX = 64 * MIB  # that a mirror may lack of what a majority has
ENSEMBLE_BEHIND_MS_MAX = 2_000
ENSEMBLE_SLOW_MS_MIN = 1_000  # a mirror that answers within this is not slow
ENSEMBLE_SLOW_TIMES = 10  # the median of the others …
ENSEMBLE_SLOW_TURNS = 3  # … so many times in a row
ENSEMBLE_AVOID_MS = 60_000  # no segments are asked for on a device that failed; doubles
ENSEMBLE_AVOID_MS_MAX = 3_600_000
BAYS_PAUSE_MS = 1_000  # after leases of which no segment could be opened; doubles …
BAYS_PAUSE_MS_MAX = 300_000
BAYS_KEPT_MAX = 4  # segments of a mount that wait for their bays to be opened

# --- founding a cluster --------------------------------------------------------------------------------------------------------
FOUNDING_NODES_MAX = 64  # that may share one founding token
FOUNDING_STEP_MS = 150  # the second node by name waits so long for the first to propose, the third twice as long, …
FOUNDING_ATTEMPT_MS = 3_000  # for a quorum to answer both rounds, with a synced write in each
FOUNDING_BACKOFF_MS = 200  # after a failed attempt; doubles
FOUNDING_BACKOFF_MS_MAX = 5_000
FOUNDING_FRAME_BYTES_MAX = 64 * KIB

# --- sessions and leases ---------------------------------------------------------------------------------------------------
SESSION_TTL_MS = 10_000
SESSION_RENEW_MS = 3_000
SESSION_SELF_FENCE_MS = SESSION_TTL_MS * 2 // 3
SESSIONS_MAX = 1_024
NUMBERS_JUMP = 1 << 32  # of sessions, epochs and incarnations at a recovery: more than one lost future hands out
SESSIONS_PER_CLIENT_MAX = SESSIONS_MAX // 4  # of a node of role client
CLAIMS_PER_CLIENT_MAX = 1_024  # of a node of role client; each is a row that every change of claims reads
CLOCK_JUMP_MS_MAX = 2_000
LEASES_PER_SESSION_MAX = 65_536  # of each kind that are granted; a write lease that is lowered is one to read more
LEASES_HELD_MAX = 2 * LEASES_PER_SESSION_MAX  # of both kinds
LEASES_LOADED_A_TURN = 1_024  # write leases of before that a new leader takes up in one turn
LEASES_SWEPT_A_CHECK = 256  # write leases that the leader compares with the state, twice a second
LEASE_WAITERS_PER_INODE_MAX = 1_024
LEASE_WAITERS_PER_MOUNT_MAX = 2 * RPC_INFLIGHT_MAX  # a worker and its successor
LEASE_WAITERS_MAX = 65_536  # at one leader
LEASE_IDLE_LOOKS = 3  # after so many checks of a mount, one a second, without use of a write lease it is returned
LEASES_RETURNED_A_LOOK = 1_024
RECALL_MS = 10_000  # for a recall to be answered, or to show progress
PAGES_RECALL_MS = 1_000  # for so long the answer to a recall waits for the kernel to give up pages
CONTEST_RECALLS = 8  # of one inode within CONTEST_WINDOW_MS make it contested
CONTEST_WINDOW_MS = 1_000
CONTEST_QUIET_MS = 250  # a contested inode has to be quiet for so long before a lease on it is granted; doubles with early recalls
CONTEST_QUIET_MS_MAX = 4_000
CONTEST_FORGET_MS = 30_000  # after the last recall
CONTEST_INODES_MAX = 4_096  # that are remembered

# --- nodes ---------------------------------------------------------------------------------------------------------------------
NODES_MAX = 256  # not counting removed ones
NODE_NAME_BYTES_MAX = 253
NODE_LABELS_MAX = 32
NODE_LABEL_BYTES_MAX = 63  # of a key, or a value
REMOVED_NODE_KEPT_MS = 60 * 86_400_000  # its row: twice the life of a certificate
TOKENS_MAX = 1_024
TOKEN_BYTES_MAX = 4_096  # of the printed string
DEAD_TOKEN_KEPT_MS = 7 * 86_400_000  # so long `token list` and a late joiner still see that it was used, revoked or has expired
CAS_MAX = 8
TOKEN_ENDPOINTS_MAX = 8
CONTROL_FRAME_BYTES_MAX = 512 * KIB  # the list of NODES_MAX nodes is the largest
CONTROL_CONNECTIONS_MAX = 64  # of strangers, and as many of nodes with a certificate; one more takes the place of the oldest
CONTROL_STRANGER_MS = 30_000  # in all, for a connection without a certificate
CONTROL_FOUNDING_MS = 90_000  # in all, for one that speaks founding, which has deadlines of its own
CONTROL_HANDSHAKE_MS = 5_000
CONTROL_IDLE_MS = 15_000  # between two frames of a connection, and for one to arrive
CONTROL_CALL_MS = 30_000  # for one answer, seen from the client
JOIN_MS = 60_000  # so long a join looks for the leader
RENEW_RETRY_MS = 60_000  # after a renewal that failed

NODE_REPORT_MS = 2_000  # between two reports of a node to the leader
NODE_HEALTHY_MS = 10_000  # a node that reported since then may become a voter
VOTER_LIVING_MS = 3_000  # a voter that answered since then is counted on
MANAGER_MS = 1_000  # between two checks of the leader which nodes shall vote

# --- processes -------------------------------------------------------------------------------------------------------------
WORKER_MEMORY_BYTES = 256 * MIB
WORKER_MEMORY_BYTES_MIN = 128 * MIB  # that a budget may be
DAEMON_MEMORY_BYTES = 512 * MIB
RECONNECT_MS_MIN = 20
RECONNECT_MS_MAX = 100  # a local socket: the daemon is back within a second, as a rule
RECONNECT_REMOTE_MS_MAX = 400  # other nodes: each try costs them a handshake
CLIENT_CONNECT_MS = 1_000  # for connect(2) to another node
CLIENT_STUCK_MS_MAX = 10_000  # bytes that another node does not acknowledge for so long end the connection
CLIENT_GREETING_MS = 2_000  # for handshake and greeting each, where there is another place to go
UMOUNT_FLUSH_MS_MAX = 120_000

assert SESSION_RENEW_MS * 2 < SESSION_SELF_FENCE_MS < SESSION_TTL_MS, "two renewals may fail before a session fences itself"
assert CONTEST_QUIET_MS < CONTEST_QUIET_MS_MAX < SESSION_TTL_MS < CONTEST_FORGET_MS
assert DIRTY_FLUSH_BYTES * 2 < DIRTY_BYTES_MAX - DIRTY_RECALL_BYTES, "flushing starts long before a writer has to wait"
assert FRAME_BYTES_MAX <= SEGMENT_BYTES_MIN, "a frame fits a segment of any size (in pieces)"
assert FUSE_WRITE_BYTES_MAX <= DIRTY_RECALL_BYTES, "the largest write fits the part that is kept for recalls"
assert INLINE_BYTES_MAX <= BLOCK_BYTES
assert XATTR_VALUE_BYTES_MAX + XATTR_NAME_BYTES_MAX + 2 * NAME_BYTES_MAX + SYMLINK_BYTES_MAX < OP_RECORD_BYTES_MAX
assert OP_RECORD_BYTES_MAX * 4 < OP_RECALL_BYTES < OP_LOG_BYTES // 4, "a recall stores a few of the largest records"
assert OP_RECORDS_RECALL < OP_RECORDS_SHARED_MAX <= OP_RECORDS_MAX and OP_RECORDS_MAX * 384 < OP_LOG_BYTES, "a create takes 384 bytes"
assert SHIP_BYTES + OP_RECORD_BYTES_MAX < ENTRY_BYTES_MAX // 4 and SHIP_RECORDS_MAX < OP_RECORDS_SHARED_MAX
assert ENTRY_BYTES_MAX + KIB <= RPC_FRAME_BYTES_MAX and ENTRY_BYTES_MAX <= BATCH_BYTES_MAX
assert LAYOUT_EXTENTS_MAX * 200 < RPC_FRAME_BYTES_MAX, "an extent and the segment it names take less than 200 bytes on the wire"
assert RAFT_HEARTBEAT_MS * 4 < RAFT_ELECTION_MS_MIN < RAFT_ELECTION_MS_MAX, "a few lost heartbeats start no election"
assert RAFT_APPEND_BYTES_MAX + ENTRY_BYTES_MAX < RPC_FRAME_BYTES_MAX and RAFT_CHUNK_BYTES * 2 < RPC_FRAME_BYTES_MAX
assert RAFT_ELECTION_MS_MAX * 3 < VOTER_DOUBT_MS, "the others have had time to elect somebody"
assert VOTER_KEEP_ENTRIES <= VOTER_KEEP_ENTRIES_MAX
assert RAFT_INFLIGHT_BYTES_MAX + RPC_FRAME_BYTES_MAX < PEER_QUEUE_BYTES_MAX
assert SEGMENT_BUFFERS_MAX * 2 * (SEGMENT_BODY_BYTES_MAX + 2 * BLOCK_BYTES) + 60 * MIB < 256 * MIB, "the memory of a segment server"
assert SEGMENT_ASK_MS_MAX < SEGMENT_ANSWER_MS_MAX, "whoever asks hears that the leader cannot be asked"
assert JOURNAL_RECORD_BYTES_MAX * 2 <= JOURNAL_FILE_BYTES
assert XATTR_VALUE_BYTES_MAX < ENTRY_BYTES_MAX
assert ROWS_ANSWER_BYTES + 2 * XATTR_VALUE_BYTES_MAX + ROWS_ASKED_MAX * 300 < RPC_FRAME_BYTES_MAX, "the last row is whole"
assert FUSE_SLOTS >= FUSE_READERS
assert SEGMENTS_MIN > SEGMENTS_RESERVED + SEGMENTS_LEASED_AHEAD
assert SEGMENTS_FOR_COLLECTION < SEGMENTS_RESERVED
assert DIRTY_BYTES_MAX + PARK_BYTES_MAX + CHECKSUM_CACHE_BYTES_MAX + 64 * MIB <= WORKER_MEMORY_BYTES

# --- repair and scrub
REPAIR_ENTRY_ROWS = 1_000  # rows in one entry of fsck
REPAIR_ENTRY_BYTES = 512 * KIB  # and their bytes
SCRUB_BYTES_PER_S = 64 * MIB
SCRUB_LOOK_MS = 60_000  # whether a round is due
SCRUB_EVERY_S = 28 * 86_400  # from the beginning of one round to that of the next, if nothing else is set
DAMAGED_READS_MAX = 256  # places with wrong bytes that a node remembers until they are over
SCRUB_ROOM_BYTES = 16 * JOURNAL_FILE_BYTES  # that its copy of the rows leaves free where the journal grows
SCRUB_FINDINGS_MAX = 1_000  # kept and shown; all are counted and logged
