package datapath

import "golang.org/x/sys/unix"

// tryCongestionControl reports whether TCP may use it in the calling thread's
// namespace: an ordinary user has only those that the machine allows.
func tryCongestionControl(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
}
