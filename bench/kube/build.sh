#!/bin/sh
# Builds weft-kube (etcd, kube-apiserver and kube-controller-manager in one
# binary) into the file given. A cold build is most of Kubernetes and takes
# minutes; it is skipped while the sources and the toolchain are the same.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FILE" >&2; exit 2; }
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
cd "$(dirname "$0")"

stamp=$({ go env GOVERSION GOOS GOARCH; cat build.sh go.mod go.sum cmd/weft-kube/*.go; } | cksum)
if [ -x "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit 0
fi

mkdir -p "$(dirname "$out")"
log=$out.log
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
package=k8s.io/component-base/version
start=$(date +%s)
echo "building weft-kube with Kubernetes $version (once; up to ten minutes when nothing is cached)"
echo "weft-kube: downloading modules"
total=$(CGO_ENABLED=0 go list -deps ./cmd/weft-kube | wc -l)

# go prints a line for every package it compiles.
CGO_ENABLED=0 go build -v -trimpath -o "$out.new" \
	-ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$(echo "$version" | cut -d. -f2)" \
	./cmd/weft-kube 2>"$log" &
build=$!
trap 'kill "$build" 2>/dev/null' INT TERM
while kill -0 "$build" 2>/dev/null; do
	i=0
	while [ $i -lt 10 ] && kill -0 "$build" 2>/dev/null; do
		sleep 1
		i=$((i + 1))
	done
	echo "weft-kube: $(wc -l <"$log") of at most $total packages compiled, $(($(date +%s) - start)) s"
done
if ! wait "$build"; then
	tail -20 "$log" >&2
	exit 1
fi
mv "$out.new" "$out"
echo "$stamp" >"$out.stamp"
rm "$log"
echo "weft-kube: built in $(($(date +%s) - start)) s"
