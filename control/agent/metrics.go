package agent

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// collector turns the status into metrics when scraped.
type collector struct{ status *Tracker }

// Describe implements prometheus.Collector: the engine's counters are not
// known beforehand, so it is unchecked.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	status := c.status.Current(context.Background())
	gauge := func(name, help string, value float64, labels prometheus.Labels) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, labels), prometheus.GaugeValue, value)
	}
	ready := 0.0
	if status.Ready {
		ready = 1
	}
	gauge("weft_ready", "1 while this host's peers are programmed.", ready, nil)
	gauge("weft_build_info", "Version of the agent.", 1, prometheus.Labels{"version": status.Version, "engine": status.Engine})
	gauge("weft_lease_problems", "Unusable entries in the lease source.", float64(len(status.Problems)), nil)
	gauge("weft_mtu_bytes", "Largest inner packet of pods.", float64(status.MTU), nil)
	peers := map[string]int{StateUp: 0, StateProgramming: 0, StateFailed: 0, StateUnreachable: 0}
	for _, peer := range status.Peers {
		peers[peer.State]++
	}
	for state, count := range peers {
		gauge("weft_peers", "Other hosts by state.", float64(count), prometheus.Labels{"state": state})
	}
	for _, peer := range status.Peers {
		labels := prometheus.Labels{"peer": peer.Name, "encap": peer.Encap, "engine": peer.Engine}
		gauge("weft_peer_mtu_bytes", "Largest inner packet to another host, by the way to it.", float64(peer.MTU), labels)
		if peer.RTT != nil {
			gauge("weft_peer_rtt_seconds", "Round-trip time of probes of the way to another host.", *peer.RTT/1000, labels)
			gauge("weft_peer_loss_ratio", "Share of the last 32 probes without an answer.", *peer.Loss, labels)
		}
		if peer.LastHandshake != nil {
			gauge("weft_peer_last_handshake_seconds", "Time of the last WireGuard handshake with another host.", float64(peer.LastHandshake.Unix()), labels)
		}
	}
	items := map[string]int{"done": status.Items.Done, "pending": status.Items.Pending, "failed": status.Items.Failed}
	for state, count := range items {
		gauge("weft_items", "Host objects by state.", float64(count), prometheus.Labels{"state": state})
	}
	for name, value := range status.Counters {
		desc := prometheus.NewDesc("weft_engine_"+name+"_total", "Counter of the userspace engine.", nil, nil)
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value))
	}
}
