#!/bin/sh
# The inside of a node, in mount, pid, uts and ipc namespaces of its own: node.sh NAME PLACE.  What a machine has of its own comes from
# PLACE; programs, libraries and /dev are the host's.  Ends when all is mounted; programs/init goes on as process 1.
set -eu
name=$1 place=$2
mount --make-rprivate /
# A copy of another program's FUSE mount would keep its superblock alive after the other has unmounted it.
awk '$3 ~ /^fuse(\.|$)/ {print $2}' /proc/self/mounts | while read -r target; do umount -i -l "$(printf '%b' "$target")" || true; done
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock
bind() {
    mkdir -p "$place/$1" "$2"
    mount --bind "$place/$1" "$2"
}
bind kubelet /var/lib/kubelet
bind containerd /var/lib/containerd
bind cni-state /var/lib/cni
bind cni /etc/cni/net.d
bind awsomefsd /var/lib/awsomefsd
bind pods /var/log/pods
bind containers /var/log/containers
mount --bind "$place/resolv.conf" /etc/resolv.conf
mount -t proc proc /proc
# An installed package's helper would go to a daemon that is not this node's.
for helper in /sbin/umount.fuse.awsomefs /sbin/mount.fuse.awsomefs; do
    if [ -e "$helper" ]; then mount --bind "$place/umount" "$helper"; fi
done
mount --make-rshared /
echo "$name" > /proc/sys/kernel/hostname
echo 1 > /proc/sys/net/ipv4/ip_forward
touch "$place/ready"
