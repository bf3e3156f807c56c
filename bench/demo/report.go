package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what the demo found out.
type Report struct {
	Hosts      []Host
	Reach      []Reach // every ordered pair of pods, by name
	Ports      []Port  // of hosts that have no pods
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
func (r Reach) OK() bool { return allOK(r.Answers) }

func allOK(answers []Answer) bool {
	return !slices.ContainsFunc(answers, func(a Answer) bool { return a.Err != nil })
}

// slowest is the longest round-trip time of all addresses; zero unless all answer.
func slowest(answers []Answer) (longest time.Duration) {
	if !allOK(answers) {
		return 0
	}
	for _, a := range answers {
		longest = max(longest, a.RTT)
	}
	return longest
}

// Port says whether a port answers that is not a pod's, or is not reached as
// one: an exposed one of the laptop, or a pod's through the laptop's proxy.
type Port struct {
	From, To string
	Over     string // tcp, udp or socks5
	Answers  []Answer
}

// Stream is the throughput of one TCP stream from pod to pod, or to a laptop.
type Stream struct {
	From, To string
	Engines  string // of both hosts, joined by "-"
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
	for _, port := range r.Ports {
		for _, answer := range port.Answers {
			if answer.Err != nil {
				lines = append(lines, fmt.Sprintf("%s does not reach %s over %s: %v", port.From, port.To, port.Over, answer.Err))
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
// "reach":[{"from","to","ok","rtt_us"}],"ports":[{"from","to","over","ok","rtt_us"}],
// "throughput":[{"from","to","gbps"}]}. rtt_us is that of the slower family; 0 if
// one does not answer. A host without pods is in reach, ports and throughput by
// its own name; ports is missing where there is no such host.
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
	type port struct {
		From string `json:"from"`
		To   string `json:"to"`
		Over string `json:"over"`
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
		Ports      []port   `json:"ports,omitempty"`
		Throughput []stream `json:"throughput"`
	}{[]host{}, []reach{}, nil, []stream{}}
	for _, h := range r.Hosts {
		document.Hosts = append(document.Hosts, host{h.Name, h.Engine, h.Device, h.Encap, append([]string{}, h.Subnets...)})
	}
	for _, pair := range r.Reach {
		document.Reach = append(document.Reach, reach{pair.From, pair.To, pair.OK(), slowest(pair.Answers).Microseconds()})
	}
	for _, p := range r.Ports {
		document.Ports = append(document.Ports, port{p.From, p.To, p.Over, allOK(p.Answers), slowest(p.Answers).Microseconds()})
	}
	for _, s := range r.Throughput {
		document.Throughput = append(document.Throughput, stream{s.From, s.To, math.Round(s.Gbps*1000) / 1000})
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
	var text bytes.Buffer
	r.leases(&text)
	for family, name := range []string{"IPv4", "IPv6"} {
		r.matrix(&text, family, name)
	}
	r.ports(&text)
	r.streams(&text)
	if _, err := w.Write(text.Bytes()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r Report) leases(text *bytes.Buffer) {
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "HOST\tENGINE\tDEVICE\tENCAP\tMTU\tADDRESSES\tSUBNETS")
	for _, h := range r.Hosts {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", h.Name, h.Engine, h.Device, h.Encap, h.MTU,
			strings.Join(h.Addresses, " "), strings.Join(h.Subnets, " "))
	}
	_ = out.Flush() // to memory
}

// matrix writes the round-trip times of one family: who pings down, who
// answers across, by number.
func (r Report) matrix(text *bytes.Buffer, family int, name string) {
	type pair struct{ from, to string }
	cells, addrs := map[pair]string{}, map[string]string{}
	names, places := 0, 0
	for _, reach := range r.Reach {
		if family >= len(reach.Answers) {
			return
		}
		answer := reach.Answers[family]
		cell := strconv.FormatInt(answer.RTT.Microseconds(), 10)
		if answer.Err != nil {
			cell = "FAIL"
		}
		cells[pair{reach.From, reach.To}], addrs[reach.To] = cell, answer.Addr.String()
		names, places = max(names, len(reach.To)), max(places, len(addrs[reach.To]))
	}
	pods := slices.Sorted(maps.Keys(addrs))
	fmt.Fprintf(text, "\n%s round-trip times, microseconds:\n\n%*s", name, 4+names+2+places, "")
	for i := range pods {
		fmt.Fprintf(text, "%6d", i+1)
	}
	fmt.Fprintln(text)
	for i, from := range pods {
		fmt.Fprintf(text, "%2d  %-*s  %-*s", i+1, names, from, places, addrs[from])
		for _, to := range pods {
			cell, ok := cells[pair{from, to}]
			if !ok {
				cell = "."
			}
			fmt.Fprintf(text, "%6s", cell)
		}
		fmt.Fprintln(text)
	}
}

// ports writes one line for each way: how many use it, and the slowest.
func (r Report) ports(text *bytes.Buffer) {
	if len(r.Ports) == 0 {
		return
	}
	fmt.Fprint(text, "\nHosts without pods, in all families:\n\n")
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, way := range []struct{ over, about string }{
		{"tcp", "their TCP ports"}, {"udp", "their UDP ports"}, {"socks5", "pods through their SOCKS5 proxy"},
	} {
		var all []Answer
		for _, port := range r.Ports {
			if port.Over == way.over {
				all = append(all, port.Answers...)
			}
		}
		if len(all) == 0 {
			continue
		}
		answered := slices.DeleteFunc(slices.Clone(all), func(a Answer) bool { return a.Err != nil })
		fmt.Fprintf(out, "%s\t%d of %d answer\tslowest %d us\n", way.about, len(answered), len(all), slowest(answered).Microseconds())
	}
	_ = out.Flush() // to memory
}

func (r Report) streams(text *bytes.Buffer) {
	fmt.Fprint(text, "\nTCP throughput of one stream, Gbit/s:\n\n")
	out := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, s := range r.Throughput {
		figure := fmt.Sprintf("%.2f", s.Gbps)
		if s.Err != nil {
			figure = "failed"
		}
		fmt.Fprintf(out, "%s\t-> %s\t%s\t%s\n", s.From, s.To, s.Engines, figure)
	}
	_ = out.Flush() // to memory
}
