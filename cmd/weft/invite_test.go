package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/control/kube"
)

func TestPrintGuests(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	var out strings.Builder
	err := printGuests(&out, []kube.Guest{
		{Name: "anna", PodCIDRs: []string{"10.244.7.0/24", "fd00:10:244:7::/64"}, Expires: now.Add(8 * time.Hour), Joined: true, Holder: "mac/1/x", Renewed: now.Add(-3 * time.Second)},
		{Name: "bert", Expires: now.Add(-time.Minute)},
		{Name: "cleo"},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"NAME PODCIDR EXPIRES JOINED RENEWED MACHINE",
		"anna 10.244.7.0/24,fd00:10:244:7::/64 in 8h0m0s yes 3s ago mac/1/x",
		"bert 1m0s ago no never",
		"cleo unreadable no never",
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("line %d is %q, want %q", i, got, want[i])
		}
	}
}

// TestMachine holds that the agent behind another socket is another machine,
// and the same one is the same whenever it starts.
func TestMachine(t *testing.T) {
	one, same, other := options{socket: "/run/weft/weft.sock"}, options{socket: "/run/weft/weft.sock"}, options{socket: "/tmp/weft.sock"}
	if one.machine() != same.machine() || one.machine() == other.machine() {
		t.Errorf("machines are %s, %s and %s", one.machine(), same.machine(), other.machine())
	}
}
