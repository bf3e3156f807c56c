package datapath

import (
	"math"
	"os"
	"strings"
	"testing"
)

func readSample(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestParseIperf reads what iperf3 3.12 has printed.
func TestParseIperf(t *testing.T) {
	for name, want := range map[string]outcome{
		"iperf-tcp.json": {bits: 3899457483 * 8, seconds: 1.002834, retransmits: 2},
		"iperf-udp.json": {bits: 15805504 * 8, seconds: 1.000114, packets: 249156 - 2195},
	} {
		got, err := parseIperf(readSample(t, name))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
}

func TestParseIperfErrors(t *testing.T) {
	received := `{"end": {"sum_received": {"bytes": 1000, "seconds": 1}}, `
	for name, test := range map[string]struct{ text, want string }{
		"what it complains of": {string(readSample(t, "iperf-refused.json")), "unable to connect to server: Connection refused"},
		"nothing":              {"", "parse output"},
		"text":                 {"iperf3: error", "parse output"},
		"no end":               {"{}", "end.sum_received"},
		"nothing received":     {`{"end": {"sum_received": {"bytes": 0, "seconds": 1}}}`, "0 bytes"},
		"no time":              {`{"end": {"sum_received": {"bytes": 1, "seconds": 0}}}`, "0 s"},
		"less than nothing":    {`{"end": {"sum_received": {"bytes": -1, "seconds": 1}}}`, "-1 bytes"},
		"too much":             {`{"end": {"sum_received": {"bytes": 1e308, "seconds": 1}}}`, "1e+308 bytes"},
		"UDP of tiny size":     {received + `"start": {"test_start": {"protocol": "UDP", "blksize": 1e-300}}}`, "blksize"},
		"UDP without size":     {received + `"start": {"test_start": {"protocol": "UDP"}}}`, "blksize"},
		"another type":         {`{"end": {"sum_received": {"bytes": "many", "seconds": 1}}}`, "parse output"},
	} {
		got, err := parseIperf([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, got, err, test.want)
		}
	}
}

func FuzzParseIperf(f *testing.F) {
	// Short ones: the fuzzer shrinks what it finds, which takes long for whole samples.
	for _, text := range []string{
		`{"error": "no"}`,
		`{"end":{"sum_sent":{"retransmits":2},"sum_received":{"bytes":9,"seconds":1}}}`,
		`{"start":{"test_start":{"protocol":"UDP","blksize":64}},"end":{"sum_received":{"bytes":64,"seconds":1}}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := parseIperf(text)
		if err != nil {
			return
		}
		for name, v := range map[string]float64{"bits": o.bits, "seconds": o.seconds} {
			if !(v > 0) || math.IsInf(v, 0) {
				t.Errorf("%s is %v", name, v)
			}
		}
		if math.IsNaN(o.packets) || math.IsInf(o.packets, 0) || o.packets < 0 {
			t.Errorf("packets is %v", o.packets)
		}
	})
}
