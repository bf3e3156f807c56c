//go:build !darwin && !freebsd

package main

// volatileDir is where the system's programs keep what goes with a restart. On
// Windows it is part of a pipe's name.
const volatileDir = "/run"
