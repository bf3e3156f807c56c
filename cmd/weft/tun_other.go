//go:build !darwin

package main

// tunName is the TUN of the userspace engine.
const tunName = "weft0"
