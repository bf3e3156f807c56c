package main

import "github.com/weft-net/weft/tunnel/tundev"

// usableTUN says why this user cannot make a TUN in a network namespace of its
// own, and what would allow it.
func usableTUN() error { return tundev.Usable() }
