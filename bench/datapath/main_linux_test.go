package datapath

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/bench/lab"
)

// endRole makes this program a userspace end, as weft-lab is one.
const endRole = "bench-end"

func TestMain(m *testing.M) {
	lab.MustEnter()
	if len(os.Args) == 4 && os.Args[1] == endRole {
		if err := RunEnd(context.Background(), os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
