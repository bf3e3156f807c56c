//go:build e2e && linux

package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const nobody = 65534

// benchCommand prepares weft-lab to measure as a user, who finds programs in
// path and owns the current directory.
func benchCommand(t *testing.T, user uint32, path string, args ...string) *exec.Cmd {
	t.Helper()
	program := os.Getenv("WEFT_LAB_BIN")
	if program == "" {
		t.Fatal("WEFT_LAB_BIN is not set: run `make e2e`")
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "weft-bench-") // the parents of t.TempDir are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	public := filepath.Join(dir, "weft-lab")
	if err := os.WriteFile(public, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(user), int(user)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, public, append([]string{"bench", "datapath"}, args...)...)
	cmd.Env = []string{"PATH=" + path, "HOME=" + dir} // without this test's own lab
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	cmd.WaitDelay = time.Second
	return cmd
}

// TestBench measures little, as root and as others, and holds what the
// document and the chart promise.
func TestBench(t *testing.T) {
	for name, test := range map[string]struct {
		user uint32
		args []string
	}{
		"root":   {0, []string{"--rounds=3", "--check"}},
		"nobody": {nobody, []string{"--rounds=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{
				"--underlay=A", "--paths=kernel-vxlan,weft-vxlan", "--tests=tcp-1", "--quick", "--json", "--svg=chart.svg",
			}, test.args...)
			cmd := benchCommand(t, test.user, os.Getenv("PATH"), args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, stderr.String(), out)
			}
			checkDocument(t, out)
			chart, err := os.ReadFile(filepath.Join(cmd.Dir, "chart.svg"))
			if err != nil || !bytes.Contains(chart, []byte("<svg")) || !bytes.Contains(chart, []byte("weft-vxlan")) {
				t.Errorf("chart: %v\n%.200s", err, chart)
			}
		})
	}
}

func checkDocument(t *testing.T, text []byte) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var report Report
	if err := decoder.Decode(&report); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if _, err := decoder.Token(); err != io.EOF {
		t.Errorf("more than one document: %v", err)
	}
	if m := report.Machine; m.CPUs < 1 || m.Kernel == "" || m.Iperf == "" || m.CongestionControl == "" || m.Seconds != 1 {
		t.Errorf("machine is %+v", m)
	}
	if len(report.Rows) != 2 {
		t.Fatalf("%d rows, want 2", len(report.Rows))
	}
	for i, path := range []string{pathKernel, pathWeft} {
		row := report.Rows[i]
		if row.Underlay != "A" || row.Path != path || row.Test != bulkTCP || row.Unit != unitRate || len(row.Errors) > 0 {
			t.Errorf("row %d is %+v", i, row)
		}
		if row.Median == nil || *row.Median < 0.1 || *row.Min > *row.Median || *row.Max < *row.Median || row.CPUMillisPerGbit == nil {
			t.Errorf("figures of %s: %+v", path, row)
		}
		engine := path == pathWeft
		if got := row.SyscallsPerKseg != nil && row.AllocsPerPacket != nil && row.SegmentsPerSend != nil; got != engine {
			t.Errorf("%s has counters of userspace ends: %v, want %v", path, got, engine)
		}
	}
}

// TestBenchExitCodes holds what is said when there is nothing to measure with.
func TestBenchExitCodes(t *testing.T) {
	for name, test := range map[string]struct {
		path string
		args []string
		code int
		want string
	}{
		"no iperf3":   {"/nowhere", []string{"--tests=tcp-1"}, 3, "apt-get install --no-install-recommends iperf3"},
		"bad path":    {os.Getenv("PATH"), []string{"--paths=vxlan"}, 2, `--paths "vxlan": want one or more of veth`},
		"bad chart":   {os.Getenv("PATH"), []string{"--tests=tcp-1", "--svg=/nowhere/x"}, 1, "--svg"},
		"no agent":    {os.Getenv("PATH"), []string{"--weft=/nowhere/weft"}, 1, "make build"},
		"vain check":  {os.Getenv("PATH"), []string{"--check", "--tests=udp-64"}, 2, "--tests must name tcp-1"},
		"no such arg": {os.Getenv("PATH"), []string{"now"}, 2, `"now"`},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := benchCommand(t, 0, test.path, test.args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("exit code %d, want %d and %q: %v\n%s", code, test.code, test.want, err, stderr.String())
			}
		})
	}
}
