package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// Report is what the demo found out.
type Report struct {
	Hosts      []Host
	Reach      []Reach // every ordered pair of pods, by name
	Throughput []Stream
}

// Host is one host's lease and who carries its packets.
type Host struct {
	Name, Engine, Device, Encap string
	Subnets                     []string
	Addresses                   []string // outer
	MTU                         int      // inner
}

// Reach says whether one pod answers another.
type Reach struct {
	From, To string
	Answers  []Answer // one per address of To, IPv4 first
}

// Answer is the result of pinging one address.
type Answer struct {
	Addr netip.Addr
	RTT  time.Duration
	Err  error
}

// OK reports whether the pod answers on all its addresses.
func (r Reach) OK() bool {
	return !slices.ContainsFunc(r.Answers, func(a Answer) bool { return a.Err != nil })
}

// rtt is the longest round-trip time of all addresses; zero unless all answer.
func (r Reach) rtt() (longest time.Duration) {
	if !r.OK() {
		return 0
	}
	for _, a := range r.Answers {
		longest = max(longest, a.RTT)
	}
	return longest
}

// Stream is the throughput of one TCP stream from pod to pod.
type Stream struct {
	From, To string
	Engines  tunnel.Engine // of both hosts, joined by "-"
	Gbps     float64
	Err      error
}

// Err names every pod that could not be reached and every stream that broke;
// nil if there is none.
func (r Report) Err() error {
	var lines []string
	for _, pair := range r.Reach {
		for _, answer := range pair.Answers {
			if answer.Err != nil {
				lines = append(lines, fmt.Sprintf("%s does not reach %s: %v", pair.From, pair.To, answer.Err))
			}
		}
	}
	for _, stream := range r.Throughput {
		if stream.Err != nil {
			lines = append(lines, stream.Err.Error())
		}
	}
	if lines == nil {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(lines, "\n"))
}

// WriteJSON writes one document: {"hosts":[{"name","engine","device","encap","subnets"}],
// "reach":[{"from","to","ok","rtt_us"}],"throughput":[{"from","to","gbps"}]}.
// rtt_us is that of the slower family; 0 if one does not answer.
func (r Report) WriteJSON(w io.Writer) error {
	type host struct {
		Name    string   `json:"name"`
		Engine  string   `json:"engine"`
		Device  string   `json:"device"`
		Encap   string   `json:"encap"`
		Subnets []string `json:"subnets"`
	}
	type reach struct {
		From string `json:"from"`
		To   string `json:"to"`
		OK   bool   `json:"ok"`
		RTT  int64  `json:"rtt_us"`
	}
	type stream struct {
		From string  `json:"from"`
		To   string  `json:"to"`
		Gbps float64 `json:"gbps"`
	}
	document := struct {
		Hosts      []host   `json:"hosts"`
		Reach      []reach  `json:"reach"`
		Throughput []stream `json:"throughput"`
	}{[]host{}, []reach{}, []stream{}}
	for _, h := range r.Hosts {
		document.Hosts = append(document.Hosts, host{h.Name, h.Engine, h.Device, h.Encap, append([]string{}, h.Subnets...)})
	}
	for _, pair := range r.Reach {
		document.Reach = append(document.Reach, reach{pair.From, pair.To, pair.OK(), pair.rtt().Microseconds()})
	}
	for _, s := range r.Throughput {
		document.Throughput = append(document.Throughput, stream{s.From, s.To, s.Gbps})
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(document); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// WriteText writes tables for people: leases, round-trip times, throughput.
func (r Report) WriteText(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "HOST\tENGINE\tDEVICE\tENCAP\tMTU\tADDRESSES\tSUBNETS")
	for _, h := range r.Hosts {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", h.Name, h.Engine, h.Device, h.Encap, h.MTU,
			strings.Join(h.Addresses, " "), strings.Join(h.Subnets, " "))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	for family, name := range []string{"IPv4", "IPv6"} {
		if err := r.writeMatrix(w, family, name); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	fmt.Fprint(w, "\nTCP throughput of one stream, Gbit/s:\n\n")
	for _, s := range r.Throughput {
		figure := fmt.Sprintf("%.2f", s.Gbps)
		if s.Err != nil {
			figure = "failed"
		}
		fmt.Fprintf(out, "%s\t->\t%s\t%s\t%s\n", s.From, s.To, s.Engines, figure)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// writeMatrix writes the round-trip times of one family: who pings down, who
// answers across, by number.
func (r Report) writeMatrix(w io.Writer, family int, name string) error {
	type pair struct{ from, to string }
	cells, addrs := map[pair]string{}, map[string]netip.Addr{}
	var pods []string
	for _, reach := range r.Reach {
		if !slices.Contains(pods, reach.From) {
			pods = append(pods, reach.From)
		}
		if family >= len(reach.Answers) {
			return nil
		}
		answer := reach.Answers[family]
		cell := strconv.FormatInt(answer.RTT.Microseconds(), 10)
		if answer.Err != nil {
			cell = "FAIL"
		}
		cells[pair{reach.From, reach.To}], addrs[reach.To] = cell, answer.Addr
	}
	fmt.Fprintf(w, "\n%s round-trip times between pods, microseconds:\n\n", name)
	out := tabwriter.NewWriter(w, 5, 0, 1, ' ', tabwriter.AlignRight)
	var head strings.Builder
	for i := range pods {
		fmt.Fprintf(&head, "%d\t", i+1)
	}
	fmt.Fprintf(out, "\t\t\t%s\n", head.String())
	for i, from := range pods {
		fmt.Fprintf(out, "%d\t%s\t%s\t", i+1, from, addrs[from])
		for _, to := range pods {
			if to == from {
				fmt.Fprint(out, ".\t")
				continue
			}
			fmt.Fprintf(out, "%s\t", cells[pair{from, to}])
		}
		fmt.Fprintln(out)
	}
	return out.Flush()
}
