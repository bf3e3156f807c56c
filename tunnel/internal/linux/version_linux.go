package linux

import "golang.org/x/sys/unix"

// KernelVersion asks the running kernel. It returns the zero Version where the
// release is not in the form of Linux.
func KernelVersion() Version {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return Version{}
	}
	v, err := ParseVersion(unix.ByteSliceToString(name.Release[:]))
	if err != nil {
		return Version{}
	}
	return v
}
