package demo

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/report.* anew")

func answer(addr string, microseconds int) Answer {
	return Answer{Addr: netip.MustParseAddr(addr), RTT: time.Duration(microseconds)*time.Microsecond + 400}
}

// sample has a pod that does not answer over IPv6 and a stream that broke.
func sample() Report {
	lost := Answer{Addr: netip.MustParseAddr("fd00:10:244:1::2"), Err: errors.New("ping fd00:10:244:1::2 from a: timeout")}
	return Report{
		Hosts: []Host{
			{Name: "kernel1", Engine: "kernel", Device: "flannel.1", Encap: "vxlan", MTU: 1430,
				Subnets: []string{"10.244.0.0/24", "fd00:10:244::/64"}, Addresses: []string{"192.168.64.1", "fd64::1"}},
			{Name: "user1", Engine: "userspace", Device: "weft0", Encap: "vxlan", MTU: 1430,
				Subnets: []string{"10.244.12.0/24", "fd00:10:244:1::/64"}, Addresses: []string{"192.168.64.2", "fd64::2"}},
			{Name: "user2"}, // has no lease
		},
		Reach: []Reach{
			{From: "kernel1/a", To: "user1/a", Answers: []Answer{answer("10.244.12.2", 85), lost}},
			{From: "user1/a", To: "kernel1/a", Answers: []Answer{answer("10.244.0.2", 12345), answer("fd00:10:244::2", 90)}},
		},
		Ports: []Port{
			{From: "kernel1/a", To: "laptop", Over: "tcp", Answers: []Answer{answer("10.244.5.0", 70), answer("fd00:10:244:5::", 75)}},
			{From: "kernel1/a", To: "laptop", Over: "udp", Answers: []Answer{answer("10.244.5.0", 60), lost}},
			{From: "laptop", To: "kernel1/a", Over: "socks5", Answers: []Answer{answer("10.244.0.2", 80)}},
		},
		Throughput: []Stream{
			{From: "kernel1/a", To: "user1/a", Engines: "kernel-userspace", Gbps: 3.14159},
			{From: "user1/a", To: "kernel1/a", Engines: "userspace-kernel", Err: errors.New("measure throughput: connection refused")},
		},
	}
}

func TestReport(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"report.json": sample().WriteJSON,
		"report.txt":  sample().WriteText,
	} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got.String(), want)
		}
	}
}

func TestReportErr(t *testing.T) {
	err := sample().Err()
	for _, want := range []string{"kernel1/a does not reach user1/a: ping fd00:10:244:1::2", "connection refused", "kernel1/a does not reach laptop over udp: ping"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want it to say %q", err, want)
		}
	}
	fine := sample()
	fine.Reach, fine.Ports, fine.Throughput = fine.Reach[1:], fine.Ports[:1], fine.Throughput[:1]
	if err := fine.Err(); err != nil {
		t.Errorf("all is well, but: %v", err)
	}
}

// TestEmptyJSON holds that lists are never null.
func TestEmptyJSON(t *testing.T) {
	var got bytes.Buffer
	if err := (Report{}).WriteJSON(&got); err != nil {
		t.Fatal(err)
	}
	if want := `{"hosts":[],"reach":[],"throughput":[]}`; strings.Join(strings.Fields(got.String()), "") != want {
		t.Errorf("got %s, want %s", got.String(), want)
	}
}
