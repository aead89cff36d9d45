# ruff: noqa: B018, F821
"""Names that vulture takes for dead and that somebody else calls, grouped by who.  Our own dead code has no place here: delete it."""

# gRPC calls the methods of the admin service by their names in admin.proto
_.SetNode
_.MakeUiLogin
_.CreateToken
_.RotateToken
_.Collect
_.Flush
_.ListDevices
_.ScanDevices
_.IdentifyDevice
_.ListQuarantine
_.ReleaseQuarantine
_.ListMounts
_.ListVolumes
_.ReleaseVolume
_.Umount
_.ScrubStart
_.ScrubStatus
_.ScrubStop

# gRPC calls the methods of the CSI driver by their names in csi.proto and registration.proto
_.ControllerGetCapabilities
_.ControllerExpandVolume
_.ControllerModifyVolume
_.ValidateVolumeCapabilities
_.ControllerPublishVolume
_.ControllerUnpublishVolume
_.ControllerGetVolume
_.GetCapacity
_.ControllerGetVolumeHealth
_.ControllerListVolumeHealth
_.GetPluginInfo
_.GetPluginCapabilities
_.Probe
_.NodeGetCapabilities
_.NodeGetInfo
_.NodeStageVolume
_.NodeUnstageVolume
_.NodePublishVolume
_.NodeUnpublishVolume
_.NodeExpandVolume
_.NodeGetVolumeStats
_.NodeGetVolumeHealth
_.NodeGetStorageHealth
_.GetInfo
_.NotifyRegistrationStatus

# pyfuse3 calls its operations, and reads these of what they return
_.removexattr
_.releasedir
_.fsyncdir
_.supports_dot_lookup
_.enable_acl
_.f_bsize
_.f_frsize
_.f_blocks
_.f_bfree
_.f_bavail
_.f_files
_.f_ffree
_.f_favail
_.f_namemax
_.st_blksize
_.st_blocks
_.generation
_.entry_timeout
_.attr_timeout

# click looks them up in its groups
_.command_class
_.format_commands
_.get_command
_.params

# pydantic and pydantic-settings
_.model_config
_._complete
_.get_field_value
_.settings_customise_sources
dotenv_settings
env_settings
file_secret_settings

# http.server and socketserver
_.address_string
_.daemon_threads
_.do_GET
_.handle_error
_.log_message
client_address

# the kernel's arguments and the wire's fields, named though not every implementation reads them
datasync
_.features

# the standard library reads them
_.raiseExceptions
_.f_trace_opcodes
_.num_tickets

# pytest
pytest_configure
pytest_report_header
pytest_runtest_makereport
pytest_terminal_summary
pytestmark

# what the service of several voters reports
_.quorum_contact_ns

# hypothesis calls it after each example
_.teardown

# collection of sparse segments moves data with it
_.repoint

# fields of the cluster's configuration and messages that other parts read


# what the proofs of founding cover: encoded as a whole
nonce_dialling
nonce_listening
ca_dialling
ca_listening
GetUpgrade
FinalizeUpgrade
