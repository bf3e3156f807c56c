package datapath

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// Report is what a Run has found out.
type Report struct {
	Machine Machine `json:"machine"`
	Rows    []Row   `json:"rows"`
	// Problems are what went wrong beside measuring, such as a userspace end that
	// had to be killed.
	Problems []string `json:"problems,omitempty"`
}

// Machine is what was measured on. Figures of different machines do not compare.
type Machine struct {
	CPU               string `json:"cpu"`
	CPUs              int    `json:"cpus"`
	Kernel            string `json:"kernel"`
	Go                string `json:"go"`
	Iperf             string `json:"iperf"`
	CongestionControl string `json:"congestion_control"`
	Rounds            int    `json:"rounds"`
	Seconds           int    `json:"seconds"` // of one measurement
	// CipherMillisPerGbit is the processor time that WireGuard's cipher alone
	// takes at both ends; null where wireguard-go is not measured.
	CipherMillisPerGbit *float64 `json:"chacha20poly1305_cpu_ms_per_gbit"`
}

// Row is one figure of one path over one underlay. Figures that are not known
// are null.
type Row struct {
	Underlay string   `json:"underlay"`
	Path     string   `json:"path"`
	Test     string   `json:"test"`
	Unit     string   `json:"unit"`
	Median   *float64 `json:"median"` // null: every run failed
	Min      *float64 `json:"min"`
	Max      *float64 `json:"max"`
	// Medians of all runs. CPU time is of the whole machine.
	CPUMillisPerGbit *float64 `json:"cpu_ms_per_gbit"`
	GbitPerSecond    *float64 `json:"gbit_per_s"`
	PacketsPerSecond *float64 `json:"packets_per_s"` // delivered; of UDP
	// Of the userspace end where it is largest.
	SyscallsPerKseg    *float64 `json:"syscalls_per_kseg"`
	AllocsPerPacket    *float64 `json:"allocs_per_packet"`
	SegmentsPerSend    *float64 `json:"segments_per_send"`
	SegmentsPerReceive *float64 `json:"segments_per_receive"`
	EndCPUPerGbit      *float64 `json:"end_cpu_ms_per_gbit"` // without what interrupts do for it
	EndMemory          *float64 `json:"end_rss_mb"`
	Retransmits        int      `json:"retransmits"` // worst run, as iperf3 tells; 0 where it does not send
	StealSeconds       float64  `json:"steal_s"`     // worst run
	Runs               int      `json:"runs"`
	BusyRuns           int      `json:"busy_runs"` // begun though the machine was not idle
	Errors             []string `json:"errors,omitempty"`
}

// rows makes a Row of each figure.
func (r result) rows() (rows []Row) {
	for _, figure := range r.test.Figures {
		row := Row{
			Underlay: r.lane.underlay.Name, Path: r.lane.path.Name, Test: figure.Name, Unit: figure.Unit,
			Runs: len(r.samples),
		}
		values := known(r.samples, func(s sample) float64 { return figure.value(s) })
		row.Median = median(values)
		if len(values) > 0 {
			row.Min, row.Max = number(slices.Min(values)), number(slices.Max(values))
		}
		r.fill(&row)
		rows = append(rows, row)
	}
	return rows
}

// fill adds what all figures of a test have in common.
func (r result) fill(row *Row) {
	of := func(value func(sample) float64) *float64 { return median(known(r.samples, value)) }
	row.CPUMillisPerGbit = of(func(s sample) float64 { return float64(s.cpu.Milliseconds()) / ((s.early + s.bits) / 1e9) })
	row.GbitPerSecond = of(rate)
	row.PacketsPerSecond = of(func(s sample) float64 { return positive(s.packets / s.seconds) })
	end := func(value func(sample, endSample) float64) *float64 { return of(largest(value)) }
	row.SyscallsPerKseg = end(func(_ sample, e endSample) float64 {
		calls, ok := e.calls()
		return ifKnown(ok, 1000*calls/e.segments())
	})
	row.AllocsPerPacket = end(func(_ sample, e endSample) float64 { return float64(e.allocations) / e.segments() })
	row.SegmentsPerSend = end(func(_ sample, e endSample) float64 { return e.count("tx_datagrams") / e.count("tx_runs") })
	row.SegmentsPerReceive = end(func(_ sample, e endSample) float64 { return e.count("rx_datagrams") / e.count("rx_runs") })
	row.EndCPUPerGbit = end(func(s sample, e endSample) float64 { return float64(e.cpu.Milliseconds()) / ((s.early + s.bits) / 1e9) })
	row.EndMemory = end(func(_ sample, e endSample) float64 { return float64(e.memory) / 1e6 })
	for _, s := range r.samples {
		row.Retransmits = max(row.Retransmits, s.retransmits)
		row.StealSeconds = max(row.StealSeconds, s.steal.Seconds())
		if s.busy {
			row.BusyRuns++
		}
	}
	for _, err := range r.failures {
		row.Errors = append(row.Errors, err.Error())
	}
}

// largest takes the largest value of all userspace ends; NaN if none is known.
func largest(value func(sample, endSample) float64) func(sample) float64 {
	return func(s sample) float64 {
		most := math.NaN()
		for _, e := range s.ends {
			if v := value(s, e); isKnown(v) && !(v <= most) {
				most = v
			}
		}
		return most
	}
}

// isKnown tells a value from the quotient of nothing.
func isKnown(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func ifKnown(ok bool, v float64) float64 {
	if !ok {
		return math.NaN()
	}
	return v
}

func positive(v float64) float64 { return ifKnown(v > 0, v) }

// known returns the values of all samples that have one.
func known(samples []sample, value func(sample) float64) (values []float64) {
	for _, s := range samples {
		if v := value(s); isKnown(v) {
			values = append(values, v)
		}
	}
	return values
}

// median is the middle value, or the mean of the two in the middle; nil of none.
func median(values []float64) *float64 {
	if len(values) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return number(sorted[middle])
	}
	return number((sorted[middle-1] + sorted[middle]) / 2)
}

// number rounds to what is worth reading.
func number(v float64) *float64 {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64)
	if err != nil {
		return nil
	}
	return &rounded
}

// short writes a figure with about three digits.
func short(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// WriteJSON writes the report as one document.
func (r Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
