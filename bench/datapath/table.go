package datapath

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// WriteText writes tables for people: every figure with how far it scattered
// and its ratio to kernel VXLAN, what bulk TCP cost, and the targets.
func (r Report) WriteText(w io.Writer) error {
	var text bytes.Buffer
	m := r.Machine
	fmt.Fprintf(&text, "%d x %s, Linux %s, %s, iperf3 %s, TCP %s, %d round(s) of %d s\n",
		m.CPUs, m.CPU, m.Kernel, m.Go, m.Iperf, m.CongestionControl, m.Rounds, m.Seconds)
	if m.CipherMillisPerGbit != nil {
		fmt.Fprintf(&text, "%s encrypts: of its CPU time, %s ms/Gbit are ChaCha20-Poly1305\n", pathWireGuard, cell(m.CipherMillisPerGbit))
	}
	fmt.Fprint(&text, "Medians, half their range, and in brackets their ratio to kernel VXLAN (of weft-rootless and netstack to weft-vxlan, of slirp4netns and pasta to weft-rootless). Only the ratios say something of other machines.\n")
	for _, underlay := range distinct(r.Rows, func(row Row) string { return row.Underlay }) {
		if underlay == "" {
			continue // the agent, which is among the targets
		}
		var rows []Row
		for _, row := range r.Rows {
			if row.Underlay == underlay {
				rows = append(rows, row)
			}
		}
		fmt.Fprintf(&text, "\nUnderlay %s: %s\n\n", underlay, aboutUnderlay(underlay))
		r.figures(&text, rows)
		costs(&text, rows)
	}
	r.warnings(&text)
	r.targets(&text)
	if _, err := w.Write(text.Bytes()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func aboutUnderlay(name string) string {
	for _, u := range Underlays {
		if u.Name == name {
			return u.About
		}
	}
	return ""
}

// pathNamed is the zero Path if there is none.
func pathNamed(name string) Path {
	i := slices.IndexFunc(Paths, func(p Path) bool { return p.Name == name })
	if i < 0 {
		return Path{}
	}
	return Paths[i]
}

// distinct returns the values of rows in the order in which they first appear.
func distinct(rows []Row, of func(Row) string) (values []string) {
	for _, row := range rows {
		if v := of(row); !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	return values
}

// figures writes paths down and tests across.
func (r Report) figures(text *bytes.Buffer, rows []Row) {
	tests := distinct(rows, func(row Row) string { return row.Test })
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprint(out, "PATH")
	for _, test := range tests {
		fmt.Fprintf(out, "\t%s", test)
	}
	fmt.Fprintln(out)
	for _, test := range tests {
		i := slices.IndexFunc(rows, func(row Row) bool { return row.Test == test })
		fmt.Fprintf(out, "\t%s", rows[i].Unit)
	}
	fmt.Fprintln(out)
	for _, path := range distinct(rows, func(row Row) string { return row.Path }) {
		fmt.Fprint(out, path)
		for _, test := range tests {
			fmt.Fprintf(out, "\t%s", r.figure(rows[0].Underlay, path, test))
		}
		fmt.Fprintln(out)
	}
	_ = out.Flush() // to memory
}

// figure is a median, half its range, and its ratio to the baseline.
func (r Report) figure(underlay, path, test string) string {
	row := r.row(underlay, path, test)
	if row == nil {
		return "."
	}
	if row.Median == nil {
		return "FAILED"
	}
	text := cell(row.Median)
	if row.Runs > 1 {
		text += fmt.Sprintf(" ±%.0f%%", 50*(*row.Max-*row.Min) / *row.Median)
	}
	if x := ratio(row, r.row(underlay, pathNamed(path).Baseline, test)); x != nil {
		text += fmt.Sprintf(" (%.2f)", *x)
	}
	return text
}

// costs writes what one stream of TCP took.
func costs(text *bytes.Buffer, rows []Row) {
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	seen := false
	for _, row := range rows {
		if row.Test != bulkTCP || row.Median == nil {
			continue
		}
		if !seen {
			fmt.Fprintf(out, "\n%s\tGbit/s\trange\tCPU-ms/Gbit\tcalls/1000 seg\tallocs/packet\tseg/send\tseg/receive\tend RSS MB\tretransmits\n", bulkTCP)
			seen = true
		}
		retransmits := fmt.Sprint(row.Retransmits)
		if pathNamed(row.Path).proxied {
			retransmits = "."
		}
		fmt.Fprintf(out, "%s\t%s\t%s-%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Path, cell(row.Median), cell(row.Min), cell(row.Max),
			cell(row.CPUMillisPerGbit), cell(row.SyscallsPerKseg), allocations(row.AllocsPerPacket),
			cell(row.SegmentsPerSend), cell(row.SegmentsPerReceive), cell(row.EndMemory), retransmits)
	}
	_ = out.Flush() // to memory
}

// cell is a figure, or a dot where there is none.
func cell(v *float64) string {
	if v == nil {
		return "."
	}
	return short(*v)
}

// allocations per packet are told to the thousandth.
func allocations(v *float64) string {
	if v == nil {
		return "."
	}
	return fmt.Sprintf("%.3f", *v)
}

// warnings say what makes figures doubtful.
func (r Report) warnings(text *bytes.Buffer) {
	busy, stolen := 0, 0
	for _, row := range r.Rows {
		if row.BusyRuns > 0 {
			busy++
		}
		if row.StealSeconds > maxSteal.Seconds() {
			stolen++
		}
		for _, err := range row.Errors {
			fmt.Fprintf(text, "\nFAILED: %s %s %s: %s\n", row.Underlay, row.Path, row.Test, err)
		}
	}
	for _, problem := range r.Problems {
		fmt.Fprintf(text, "\nPROBLEM: %s\n", problem)
	}
	if busy > 0 {
		fmt.Fprintf(text, "\nWARNING: the machine was busy with something else before measurements of %d figures.\n", busy)
	}
	if stolen > 0 {
		fmt.Fprintf(text, "\nWARNING: more than %s of processor time was stolen during measurements of %d figures.\n", maxSteal, stolen)
	}
}

// targets writes what weft's engine is to reach, with a device and without, and whether it does.
func (r Report) targets(text *bytes.Buffer) {
	fmt.Fprintf(text, "\nTargets of %s, as ratios to %s unless said otherwise:\n\n", pathWeft, pathKernel)
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "TARGET\tFLOOR\tGOAL\tMEASURED\tVERDICT")
	for _, t := range targets {
		direction, write := "", cell
		if t.lower {
			direction = "at most "
		}
		if t.floor == noAllocations {
			write = allocations
		}
		floor := direction + write(&t.floor)
		if t.floor == noFloor {
			floor = "."
		}
		measured := t.measured(r)
		fmt.Fprintf(out, "%s\t%s\t%s%s\t%s\t%s\n", t.what, floor, direction, write(&t.goal), write(measured), t.verdict(measured))
	}
	_ = out.Flush() // to memory
}
