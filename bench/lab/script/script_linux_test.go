package script

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestScripts(t *testing.T) {
	testscript.Run(t, Params(Config{Dir: "testdata/script"}))
}
