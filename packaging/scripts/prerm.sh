# Shared by deb and rpm, for a removal.  Volumes that are mounted are programs' data: the floor is not pulled from under them.
if grep -q ' fuse\.awsomefs ' /proc/self/mounts 2>/dev/null && [ ! -e /etc/awsomefsd/remove-anyway ]; then
    echo "awsomefsd: volumes are mounted, so this is not removed:" >&2
    grep ' fuse\.awsomefs ' /proc/self/mounts | cut -d ' ' -f 1,2 >&2
    echo "awsomefsd: awsomefsd umount --all, then again; or: touch /etc/awsomefsd/remove-anyway, and they are flushed and unmounted" >&2
    exit 1
fi
if [ -d /run/systemd/system ]; then
    awsomefsd umount --all >/dev/null 2>&1 || true
    systemctl stop awsomefsd-mounts.service awsomefsd-segments.path awsomefsd-segments.service awsomefsd.service awsomefsd-keeper.service 2>/dev/null || true
    systemctl disable --quiet awsomefsd-mounts.service awsomefsd-segments.path awsomefsd.service awsomefsd-keeper.service 2>/dev/null || true
fi
