package udp

import "golang.org/x/sys/windows"

const (
	errnoTooBig    = windows.WSAEMSGSIZE
	errnoNoBuffers = windows.WSAENOBUFS
)
