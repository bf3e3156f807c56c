//go:build !linux

package main

// usableTUN is nil: there are no network namespaces to make one in.
func usableTUN() error { return nil }
