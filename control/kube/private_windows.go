package kube

import "os"

// checkPrivate has nothing to look at: the mode Windows reports says nothing of
// who may read a file, and a profile's folders are its user's alone.
func checkPrivate(*os.File) error { return nil }
