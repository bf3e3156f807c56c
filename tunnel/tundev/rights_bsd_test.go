//go:build darwin || freebsd

package tundev

import "golang.org/x/sys/unix"

const errRights = unix.EPERM
