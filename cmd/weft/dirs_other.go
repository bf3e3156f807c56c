//go:build !darwin && !freebsd && !windows

package main

// volatileDir is where the system's programs keep what goes with a restart, and
// persistentDir what outlives one.
const (
	volatileDir   = "/run"
	persistentDir = "/var/lib"
)
