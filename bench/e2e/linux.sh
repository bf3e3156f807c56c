#!/bin/sh
# Unpacks Debian's kernel, with what modules a guest with networks needs, into
# the directory given. Nothing is installed.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
work=$1.new
rm -rf "$work"
mkdir -p "$work"
cd "$work"

# The package linux-image-amd64 is empty and depends on the newest version.
package=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
[ -n "$package" ] || { echo "no package linux-image-amd64 is known: run apt-get update" >&2; exit 1; }
echo "unpacking $package (once)"
apt-get download -qq "$package" 2>/dev/null || { echo "cannot download $package: run apt-get update" >&2; exit 1; }
dpkg-deb --fsys-tarfile ./*.deb | tar -x --transform 's,^\./usr/lib/,./lib/,' --wildcards \
	'*/boot/vmlinuz-*' '*/modules/*/modules.*' '*/kernel/arch/*' '*/kernel/crypto/*' '*/kernel/lib/*' '*/kernel/net/*' \
	'*/kernel/fs/9p/*' '*/kernel/fs/fscache/*' '*/kernel/fs/netfs/*' '*/kernel/drivers/virtio/*' '*/kernel/drivers/net/*'
rm ./*.deb
depmod -b . "$(ls lib/modules)"
rm -rf "$1"
mv "$work" "$1"
