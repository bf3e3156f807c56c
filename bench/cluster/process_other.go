//go:build !linux

package cluster

import "os/exec"

// dieWithParent has no equivalent here: only Stop ends the children.
func dieWithParent(*exec.Cmd) {}
