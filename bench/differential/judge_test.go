package differential

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// judge compares what two hosts made of each case of one direction, and counts
// the differences.
type judge struct {
	where  direction
	seed   uint64
	counts map[string]int // cases by difference
	failed int
	done   int // networks
}

func newJudge(t *testing.T, where direction) *judge {
	t.Helper()
	j := &judge{where: where, seed: seed(t), counts: map[string]int{}}
	t.Logf("%s=%d", seedVariable, j.seed)
	return j
}

// verdict says which differences there are, and what the engine has to give.
func verdict(where direction, c *testCase, kernel, engine []output) (found []string, want []output) {
	want = kernel
	for _, d := range differences {
		if d.where != where {
			continue
		}
		next := d.expect(c, want, engine)
		if !same(want, next) {
			found = append(found, d.name)
		}
		want = next
	}
	return found, want
}

func same(a, b []output) bool {
	return slices.EqualFunc(a, b, func(a, b output) bool {
		return a.outer == b.outer && bytes.Equal(a.packet, b.packet)
	})
}

// maxFailures bounds what is printed.
const maxFailures = 10

// record takes the final word on a case.
func (j *judge) record(t *testing.T, c *testCase, kernel, engine []output) {
	t.Helper()
	found, want := verdict(j.where, c, kernel, engine)
	for _, name := range found {
		j.counts[name]++
	}
	if same(want, engine) {
		return
	}
	if j.failed++; j.failed <= maxFailures {
		t.Errorf("%s=%d, %v%s", seedVariable, j.seed, c, show(kernel, want, engine))
	}
}

// show prints what is not as it should be, of long lists the beginning.
func show(kernel, want, engine []output) string {
	equal := 0
	for equal < min(len(want), len(engine)) && same(want[equal:equal+1], engine[equal:equal+1]) {
		equal++
	}
	text := fmt.Sprintf("after %d as they should be\n", equal)
	return text + list("kernel", kernel[min(equal, len(kernel)):]) + list("wanted", want[equal:]) + list("engine", engine[equal:])
}

func list(who string, outputs []output) string {
	const shown = 3
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d packets\n", who, len(outputs))
	for _, o := range outputs[:min(shown, len(outputs))] {
		fmt.Fprintf(&text, "  %x %+v\n", o.packet, o.outer)
	}
	return text.String()
}

// report logs how often each difference was met. One that was not, in as many
// packets as there can be, is no difference any more.
func (j *judge) report(t *testing.T) {
	t.Helper()
	for _, d := range differences {
		if d.where != j.where {
			continue
		}
		n := j.counts[d.name]
		t.Logf("%d cases: %s. %s", n, d.name, d.reason)
		if n == 0 && packets == allPackets && j.done == len(networks) {
			t.Errorf("no case shows the difference %q: take it off the list", d.name)
		}
	}
	if j.failed > maxFailures {
		t.Errorf("%d more cases differ", j.failed-maxFailures)
	}
}
