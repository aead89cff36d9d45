# Shared by deb and rpm, for a removal and for a purge.
rm -f /etc/awsomefsd/remove-anyway
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || true
fi
if [ -e /var/lib/awsomefsd/node.json ]; then
    echo "awsomefsd: kept are the state of the node in /var/lib/awsomefsd and all data on its devices; to destroy the state: rm -r /var/lib/awsomefsd"
else
    rmdir /var/lib/awsomefsd 2>/dev/null || true
fi
