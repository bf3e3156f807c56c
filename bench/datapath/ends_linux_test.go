package datapath

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab/labtest"
)

// newBench makes a bench whose ends are this program.
func newBench(t *testing.T) *bench {
	t.Helper()
	world := labtest.New(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	say := func(line string) { t.Log(line) }
	return &bench{world: world, Config: Config{
		End: []string{self, endRole}, Duration: 200 * time.Millisecond, Rounds: 1, Progress: say, Detail: say,
		Idle: Gate{Window: 10 * time.Millisecond},
	}}
}

func openTestWay(t *testing.T, b *bench, path Path) *way {
	t.Helper()
	w, err := b.openWay(t.Context(), Underlays[0], path)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestPaths opens every path, has packets go to and fro, and looks at what the
// ends say of them.
func TestPaths(t *testing.T) {
	b := newBench(t)
	for _, path := range Installed() {
		t.Run(path.Name, func(t *testing.T) {
			w := openTestWay(t, b, path)
			before, err := w.readEnds()
			if err != nil {
				t.Fatal(err)
			}
			if path.proxied {
				holdStreams(t, b, w)
				return
			}
			o, err := pingPong(t.Context(), b, w)
			if err != nil {
				t.Fatal(err)
			}
			if o.half50 <= 0 || o.half99 < o.half50 || o.packets <= 0 {
				t.Errorf("ping-pong: %+v", o)
			}
			after, err := w.readEnds()
			if err != nil {
				t.Fatal(err)
			}
			for i := range after {
				e := difference(w.ends[i], before[i], after[i])
				if calls, ok := e.calls(); ok && (e.segments() < o.packets/2 || calls < e.segments()) {
					t.Errorf("%s carried %v segments in %v calls, of %v packets", e.kind, e.segments(), calls, o.packets)
				}
			}
			if err := w.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// holdStreams sends over a way that is entered through a proxy, and looks at
// what its end says of that.
func holdStreams(t *testing.T, b *bench, w *way) {
	t.Helper()
	s, err := b.measureOnce(t.Context(), w, Test{proxied: streams{count: 3, start: 50 * time.Millisecond}.run})
	if err != nil {
		t.Fatal(err)
	}
	if s.bits <= 0 || s.early <= 0 || s.seconds < b.Duration.Seconds() {
		t.Errorf("three streams: %+v", s.outcome)
	}
	e := s.ends[0]
	// An end counts what it has sent after the far side may have read it.
	if _, ok := e.calls(); ok || 8*float64(e.counters["tx_bytes"]) < (s.early+s.bits)/2 {
		t.Errorf("of %v bits the end says %v", s.early+s.bits, e.counters)
	}
	if err := w.close(); err != nil {
		t.Error(err)
	}
}

// TestProxyRefuses holds that a far side that does not listen is an error, and
// that a dead proxy is.
func TestProxyRefuses(t *testing.T) {
	b := newBench(t)
	w := openTestWay(t, b, pathNamed(pathNetstack))
	if _, err := w.dialProxy(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	if err := w.close(); err != nil {
		t.Error(err)
	}
	if _, err := w.dialProxy(t.Context()); err == nil {
		t.Error("the proxy has ended and was reached")
	}
}

// TestEndDies holds that an end that has died is said to have.
func TestEndDies(t *testing.T) {
	b := newBench(t)
	w := openTestWay(t, b, pathNamed("naive"))
	if err := w.ends[0].cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.ends[0].cmd.Process.Wait()
	if _, err := w.readEnds(); err == nil || !strings.Contains(err.Error(), "ask naive on host1") {
		t.Errorf("asked a dead end: %v", err)
	}
	if err := w.close(); err == nil {
		t.Error("a dead end was closed in good order")
	}
}

// TestLaneRecovers holds that a path that has failed is opened anew, and one
// that cannot be opened costs the others nothing.
func TestLaneRecovers(t *testing.T) {
	b := newBench(t)
	var seen []*way
	pingPongFigures := Tests[len(Tests)-1].Figures
	flaky := Test{Name: "flaky", Figures: pingPongFigures, run: func(_ context.Context, _ *bench, w *way) (outcome, error) {
		if seen = append(seen, w); len(seen) == 1 {
			return outcome{}, os.ErrDeadlineExceeded
		}
		return outcome{half50: time.Microsecond, half99: time.Microsecond, seconds: 1, bits: 1}, nil
	}}
	impossible := Path{Name: "impossible", open: func(context.Context, *pair) (*way, error) { return nil, os.ErrPermission }}
	b.Paths, b.Rounds = []Path{Paths[0], impossible}, 2
	rows, problems, err := b.measureSet(t.Context(), Set{Underlays[0], []Test{flaky}})
	if err != nil || len(problems) > 0 || len(rows) != 4 {
		t.Fatalf("%d rows, problems %q, %v", len(rows), problems, err)
	}
	if len(seen) != 2 || seen[0] == seen[1] {
		t.Errorf("measured over ways %p, want two that differ", seen)
	}
	if row := rows[0]; row.Runs != 1 || len(row.Errors) != 1 || row.Median == nil {
		t.Errorf("the path that recovered: %+v", row)
	}
	if row := rows[2]; row.Runs != 0 || len(row.Errors) != 2 || row.Median != nil || !strings.Contains(row.Errors[0], "open path impossible") {
		t.Errorf("the path that cannot be: %+v", row)
	}
}

// TestRunEndErrors holds what an end says when it cannot start.
func TestRunEndErrors(t *testing.T) {
	for name, test := range map[string]struct{ kind, config, want string }{
		"unknown kind":     {"other", "{}", `unknown kind "other"`},
		"no configuration": {"naive", "", "read configuration"},
		"bad profile":      {"naive", `{"profile": "/nowhere/x"}`, "make profile"},
		"bad device":       {"weft", `{"device": "a/b", "mtu": 1450}`, "run weft"},
	} {
		var out strings.Builder
		err := RunEnd(t.Context(), test.kind, strings.NewReader(test.config), &out)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

// TestTotal holds that what a path cannot carry is not counted.
func TestTotal(t *testing.T) {
	proxied := func(p Path) bool { return p.proxied }
	i := slices.IndexFunc(Paths, proxied)
	for name, test := range map[string]struct {
		paths []Path
		tests []Test
		want  int
	}{
		"by default":        {Paths[:2], DefaultTests(), 2 * 2 * 5},
		"through a proxy":   {Paths[i : i+1], DefaultTests(), 2 * 2},
		"many":              {Paths[i-1 : i+1], named(manyTCP), 2},
		"many, but nowhere": {Paths[:1], named(manyTCP), 0},
	} {
		config := Config{Sets: []Set{{Underlays[0], test.tests}}, Paths: test.paths, Rounds: 2}
		if got := config.total(); got != test.want {
			t.Errorf("%s: %d measurements, want %d", name, got, test.want)
		}
	}
}

func TestCongestionControl(t *testing.T) {
	b := newBench(t)
	if name, err := b.chooseCongestionControl(); err != nil || name == "" {
		t.Errorf("%q, %v", name, err)
	}
	if err := b.world.Outside().Do(func() error { return tryCongestionControl("nonsense") }); err == nil {
		t.Error("the kernel has a congestion control named nonsense")
	}
}

func TestConfigErrors(t *testing.T) {
	good := Config{
		Sets: []Set{{Underlays[0], Tests}}, Paths: Paths, Rounds: 1, Duration: time.Second, End: []string{"x"},
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no sets":     {func(c *Config) { c.Sets = nil }, "nothing to measure"},
		"no tests":    {func(c *Config) { c.Sets = []Set{{Underlays[0], nil}} }, "nothing to measure"},
		"no paths":    {func(c *Config) { c.Paths = nil }, "nothing to measure"},
		"no rounds":   {func(c *Config) { c.Rounds = 0 }, "Rounds is 0"},
		"half second": {func(c *Config) { c.Duration = time.Second / 2 }, "Duration is 500ms"},
		"not carried": {func(c *Config) { c.Sets = []Set{{Underlays[0], named(manyTCP)}}; c.Paths = Paths[:2] }, "only netstack carries tcp-128"},
		"no end":      {func(c *Config) { c.End = nil }, "End is missing"},
	} {
		config := good
		test.change(&config)
		if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

func named(test string) []Test {
	i := slices.IndexFunc(Tests, func(t Test) bool { return t.Name == test })
	return Tests[i : i+1]
}

// TestNotInstalled holds that a program that is missing is named with its package.
func TestNotInstalled(t *testing.T) {
	b := newBench(t)
	t.Setenv("PATH", "/nowhere")
	for _, path := range Paths[len(Paths)-2:] {
		if slices.ContainsFunc(Installed(), func(p Path) bool { return p.Name == path.Name }) {
			t.Errorf("%s is installed nowhere", path)
		}
	}
	_, err := b.openWay(t.Context(), Underlays[0], Paths[len(Paths)-1])
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends util-linux") {
		t.Errorf("unshare is missing: %v", err)
	}
}
