package main

import (
	"fmt"
	"os"
)

// main has nothing to call: the CNI library knows no network namespaces here.
func main() {
	fmt.Fprintln(os.Stderr, "weft-cni: there are no CNI plugins on FreeBSD")
	os.Exit(1)
}
