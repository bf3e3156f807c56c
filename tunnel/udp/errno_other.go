//go:build !linux && !windows

package udp

import "golang.org/x/sys/unix"

const (
	errnoTooBig    = unix.EMSGSIZE
	errnoNoBuffers = unix.ENOBUFS
)
