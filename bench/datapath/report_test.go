package datapath

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/report.* anew")

// tcpSample is a second of bulk TCP at a rate in Gbit/s.
func tcpSample(gbps float64, ends ...endSample) sample {
	return sample{
		outcome: outcome{bits: gbps * 1e9, seconds: 1, retransmits: int(gbps)},
		cpu:     2 * time.Second, ends: ends,
	}
}

// weftEnd is an end that has carried so many segments.
func weftEnd(host string, segments, calls, allocations uint64) endSample {
	return endSample{kind: "weft", host: host, allocations: allocations, cpu: time.Second, memory: 20e6, counters: map[string]uint64{
		"tx_datagrams": segments, "tx_runs": segments / 40, "rx_datagrams": 100, "rx_runs": 100,
		"device_calls": calls / 2, "socket_calls": calls - calls/2,
	}}
}

// sampleReport is made of measurements as a run makes it. One path fails.
func sampleReport() Report {
	kernel, weft, naive := pathNamed(pathKernel), pathNamed(pathWeft), pathNamed("naive")
	test := func(name string) Test {
		return Tests[slices.IndexFunc(Tests, func(t Test) bool { return t.Name == name })]
	}
	udp := func(packets float64, cpu time.Duration) sample {
		return sample{outcome: outcome{bits: packets * 512, packets: packets, seconds: 1}, cpu: cpu, steal: 500 * time.Millisecond}
	}
	ping := func(us time.Duration) sample {
		return sample{outcome: outcome{bits: 1e6, packets: 2e3, seconds: 1, half50: us * time.Microsecond, half99: 4 * us * time.Microsecond}, busy: true}
	}
	var rows []Row
	add := func(underlay int, path Path, name string, samples ...sample) {
		r := result{lane: &lane{underlay: Underlays[underlay], path: path}, test: test(name), samples: samples}
		if samples == nil {
			r.failures = []error{errors.New("run iperf3: signal: killed")}
		}
		rows = append(rows, r.rows()...)
	}
	add(0, kernel, "tcp-1", tcpSample(10), tcpSample(12), tcpSample(11))
	add(0, weft, "tcp-1",
		tcpSample(5, weftEnd("a", 500_000, 30_000, 20), weftEnd("b", 400_000, 20_000, 10)),
		tcpSample(5.5, weftEnd("a", 500_000, 29_000, 20), weftEnd("b", 400_000, 20_000, 10)))
	add(0, naive, "tcp-1")
	add(0, pathNamed(pathRootless), "tcp-1", tcpSample(5.25))
	add(0, pathNamed(pathSlirp), "tcp-1", tcpSample(0.25))
	add(0, pathNamed(pathNetstack), "tcp-1", tcpSample(2.625))
	many := tcpSample(2.1)
	many.early = 2.1e9 // of a second that does not count
	add(0, pathNamed(pathNetstack), manyTCP, many)
	add(0, pathNamed(pathWireGuard), "tcp-1", tcpSample(2))
	add(0, pathNamed(pathWeftWireGuard), "tcp-1", tcpSample(5))
	add(0, kernel, "udp-64", udp(1e5, 2*time.Second))
	add(0, weft, "udp-64", udp(1e5, 3*time.Second))
	add(0, kernel, "ping-pong", ping(50))
	add(0, weft, "ping-pong", ping(75))
	add(1, kernel, "tcp-1", tcpSample(5))
	add(1, weft, "tcp-1", tcpSample(5, weftEnd("a", 500_000, 45_000, 20)))
	v := number(30)
	rows = append(rows, Row{Path: agentPath, Test: rowIdleMemory, Unit: "MB", Median: v, Min: v, Max: v, Runs: 1})
	return Report{
		Machine: Machine{
			CPU: "Example 9000", CPUs: 2, Kernel: "6.18.0", Go: "go1.26.0", Iperf: "3.12",
			CongestionControl: "cubic", Rounds: 3, Seconds: 1, CipherMillisPerGbit: number(157.5),
		},
		Rows:     rows,
		Problems: []string{"close path weft-vxlan over underlay A: signal: killed"},
	}
}

func TestReport(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"report.json": sampleReport().WriteJSON,
		"report.txt":  sampleReport().WriteText,
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
		if want := readSample(t, name); !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is not as written in %s:\n%s", name, path, got.Bytes())
		}
	}
}

// TestReportShape holds the fields that others read.
func TestReportShape(t *testing.T) {
	var text bytes.Buffer
	if err := sampleReport().WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	var document struct {
		Machine map[string]any
		Rows    []map[string]any
	}
	if err := json.Unmarshal(text.Bytes(), &document); err != nil {
		t.Fatal(err)
	}
	if len(document.Machine) == 0 || len(document.Rows) != len(sampleReport().Rows) {
		t.Errorf("machine has %d fields, and there are %d rows", len(document.Machine), len(document.Rows))
	}
	for _, row := range document.Rows {
		for _, field := range []string{"underlay", "path", "test", "unit", "median", "min", "max", "cpu_ms_per_gbit", "syscalls_per_kseg"} {
			if _, ok := row[field]; !ok {
				t.Errorf("row %v lacks %s", row, field)
			}
		}
	}
}

func TestWriteSVG(t *testing.T) {
	var svg bytes.Buffer
	if err := sampleReport().WriteSVG(&svg); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", ">tcp-1<", ">udp-64 (lower is better)<", ">weft-vxlan<", ">naive<", "underlay A", "underlay B"} {
		if !strings.Contains(svg.String(), want) {
			t.Errorf("the chart lacks %s", want)
		}
	}
	for decoder := xml.NewDecoder(&svg); ; {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteSVGOfNothing(t *testing.T) {
	if err := (Report{}).WriteSVG(io.Discard); err != nil {
		t.Error(err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteErrors(t *testing.T) {
	r := sampleReport()
	for name, write := range map[string]func(io.Writer) error{"JSON": r.WriteJSON, "text": r.WriteText, "SVG": r.WriteSVG} {
		if err := write(fullDisk{}); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}
