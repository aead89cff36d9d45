# Shared by deb and rpm; $kind is "install" or "upgrade".  Nothing is started that was not running.
if [ -d /run/systemd/system ]; then
    systemd-sysusers awsomefsd.conf >/dev/null 2>&1 || true
    systemd-tmpfiles --create awsomefsd.conf >/dev/null 2>&1 || true
    systemctl daemon-reload >/dev/null 2>&1 || true
fi
getent group awsomefs >/dev/null 2>&1 || groupadd --system awsomefs
if [ "$kind" = upgrade ] && [ -d /run/systemd/system ]; then
    # The daemon first: workers of the new build need a daemon of it.  Mounts wait for a moment, nothing on them fails.
    if systemctl is-active --quiet awsomefsd.service; then
        systemctl restart awsomefsd.service || echo "awsomefsd: the daemon did not start again; see: journalctl -u awsomefsd" >&2
    fi
    # Writers on all nodes go on in other segments for the second that this takes.
    systemctl try-restart awsomefsd-segments.service || echo "awsomefsd: the segment server did not start again; see: journalctl -u awsomefsd-segments" >&2
    if systemctl is-active --quiet awsomefsd-keeper.service; then
        systemctl reload awsomefsd-keeper.service || echo "awsomefsd: the keeper is still the old program; later: systemctl reload awsomefsd-keeper" >&2
    fi
fi
if [ "$kind" = install ]; then
    if [ -e /var/lib/awsomefsd/node.json ]; then
        echo "awsomefsd: a node's state is in /var/lib/awsomefsd; it goes on with: systemctl enable --now awsomefsd"
    else
        echo "awsomefsd: nothing was started.  Next: systemctl enable --now awsomefsd; then awsomefsd init, or awsomefsd join TOKEN"
    fi
fi
