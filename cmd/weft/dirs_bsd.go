//go:build darwin || freebsd

package main

// volatileDir is where the system's programs keep what goes with a restart.
// There is no /run, and on macOS none can be made.
const volatileDir = "/var/run"

// persistentDir is where they keep what outlives one.
const persistentDir = "/var/db"
