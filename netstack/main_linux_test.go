package netstack

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/bench/lab"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}
