package engine

import "sync/atomic"

// Counter names one count kept by the engine.
type Counter uint8

// The counters. Packets are inner packets, a super-packet counting as one;
// datagrams are outer UDP datagrams; a run is what one Socket call carries.
// TX is from the Device to the underlay, RX the other way.
const (
	TxBatches        Counter = iota // Device reads
	TxPackets                       // packets read
	TxBytes                         // bytes of those
	TxSuperPackets                  // those that were to be segmented
	TxRuns                          // runs sent
	TxDatagrams                     // datagrams sent
	TxFallbacks                     // runs sent one datagram at a time because the Socket refused them whole
	TxFragmented                    // packets cut into IPv4 fragments
	TxAcksFiltered                  // acknowledgements left out because the next one supersedes them (RFC 3449, 5.2.1)
	TxStaged                        // packets that wait for the keys of a peer
	TxICMP                          // ICMP "too big" sent to inner senders
	TxICMPLimited                   // ICMP "too big" not sent because of the rate limit
	TxDropMalformed                 // not an IP packet
	TxDropUnfinished                // what was put off (checksum, segmentation) cannot be done
	TxDropNoPeer                    // no peer owns the inner destination
	TxDropNoLocal                   // this host terminates nothing of that inner family
	TxDropNoSocket                  // no socket of the peer's outer family
	TxDropNoKeys                    // no keys of the peer yet, and no room to wait for them
	TxDropTooBig                    // larger than the peer's MTU or the path's
	TxDropFull                      // the socket stayed full
	TxDropSend                      // the socket failed otherwise

	RxBatches         // Socket receives
	RxRuns            // runs received
	RxDatagrams       // datagrams in them
	RxPackets         // packets accepted
	RxBytes           // bytes of those
	RxAcksFiltered    // acknowledgements left out, as in TX
	RxWrites          // packets written to the Device, after coalescing
	RxSuperPackets    // those that were super-packets
	RxUnsummed        // packets that came without an outer UDP checksum
	RxPartial         // packets that came with an unfinished transport checksum
	RxSuperFrames     // packets that came as a whole super-packet in one datagram
	RxHandshakes      // datagrams that are of handshakes
	RxFallbacks       // packets written finished because the Device refused an offload
	RxDropTruncated   // shorter than its headers
	RxDropHeader      // VXLAN header without a VNI
	RxDropVNI         // not a VNI of ours
	RxDropFamily      // an inner family this host does not terminate
	RxDropMAC         // inner destination MAC is not ours
	RxDropVLAN        // inner frame with a VLAN tag
	RxDropARP         // inner ARP
	RxDropLLC         // inner frame with a length in place of a type
	RxDropNotIP       // inner frame of another type
	RxDropMalformed   // inner IP header wrong
	RxDropLength      // inner IP length larger than the frame
	RxDropSource      // inner source does not belong to the peer with that outer source
	RxDropDestination // inner destination is not in our subnet
	RxDropSession     // sealed for a session that is over or was never there
	RxDropForged      // sealed with other keys, or changed on the way
	RxDropReplayed    // received before, or far too late
	RxDropRemote      // put-off checksum outside the packet, or under no outer checksum (draft-herbert-vxlan-rco-00)
	RxDropECN         // congestion marked on a packet whose sender cannot hear of it (RFC 6040)
	RxDropTooLong     // more than a datagram or run can be, cut off by the system
	RxDropOverflow    // came while the receive buffer was full
	RxDropDevice      // the Device failed to take it

	Probes         // probes of path MTUs sent
	ProbeAnswers   // answers to them received; they are in RxDatagrams, too
	MTULowered     // times that a path's MTU was lowered
	MTURaised      // and raised
	RunTestsFailed // tests that runs to a peer did not pass, so that it gets single datagrams

	DeviceCalls      // system calls to read and write the Device
	SocketCalls      // system calls to send and receive
	PollCalls        // system calls to wait, and of a ring, which are for all purposes
	counterCount int = iota
)

var counterNames = [counterCount]string{
	TxBatches: "tx_batches", TxPackets: "tx_packets", TxBytes: "tx_bytes",
	TxSuperPackets: "tx_super_packets", TxRuns: "tx_runs", TxDatagrams: "tx_datagrams",
	TxFallbacks: "tx_fallbacks", TxFragmented: "tx_fragmented", TxStaged: "tx_staged", TxAcksFiltered: "tx_acks_filtered", TxDropNoKeys: "tx_drop_no_keys",
	TxICMP: "tx_icmp", TxICMPLimited: "tx_icmp_limited",
	TxDropMalformed: "tx_drop_malformed", TxDropUnfinished: "tx_drop_unfinished",
	TxDropNoPeer: "tx_drop_no_peer", TxDropNoLocal: "tx_drop_no_local",
	TxDropNoSocket: "tx_drop_no_socket", TxDropTooBig: "tx_drop_too_big",
	TxDropFull: "tx_drop_full", TxDropSend: "tx_drop_send",

	RxBatches: "rx_batches", RxRuns: "rx_runs", RxDatagrams: "rx_datagrams",
	RxPackets: "rx_packets", RxBytes: "rx_bytes", RxAcksFiltered: "rx_acks_filtered", RxWrites: "rx_writes",
	RxSuperPackets: "rx_super_packets", RxUnsummed: "rx_unsummed", RxPartial: "rx_partial",
	RxSuperFrames: "rx_super_frames", RxFallbacks: "rx_fallbacks",
	RxDropTruncated: "rx_drop_truncated", RxDropHeader: "rx_drop_header",
	RxDropVNI: "rx_drop_vni", RxDropFamily: "rx_drop_family", RxDropMAC: "rx_drop_mac",
	RxDropVLAN: "rx_drop_vlan", RxDropARP: "rx_drop_arp", RxDropLLC: "rx_drop_llc",
	RxDropNotIP: "rx_drop_not_ip", RxDropMalformed: "rx_drop_malformed",
	RxDropLength: "rx_drop_length", RxDropSource: "rx_drop_source",
	RxDropDestination: "rx_drop_destination", RxDropECN: "rx_drop_ecn", RxDropRemote: "rx_drop_remote_checksum",
	RxHandshakes: "rx_handshakes", RxDropSession: "rx_drop_session", RxDropForged: "rx_drop_forged", RxDropReplayed: "rx_drop_replayed",
	RxDropTooLong: "rx_drop_too_long", RxDropOverflow: "rx_drop_overflow", RxDropDevice: "rx_drop_device",

	Probes: "probes", ProbeAnswers: "probe_answers", MTULowered: "mtu_lowered", MTURaised: "mtu_raised",
	RunTestsFailed: "run_tests_failed",

	DeviceCalls: "device_calls", SocketCalls: "socket_calls", PollCalls: "poll_calls",
}

// String returns the name under which Stats.Each gives the counter.
func (c Counter) String() string { return counterNames[c] }

// Stats is the value of every counter at one moment, since New.
type Stats struct {
	values [counterCount]uint64
}

// Value returns one counter.
func (s Stats) Value(c Counter) uint64 { return s.values[c] }

// Each calls yield for every counter, in a fixed order. Names are lower-case
// with underscores; those of lost packets start with tx_drop_ or rx_drop_.
func (s Stats) Each(yield func(name string, value uint64)) {
	for i, value := range s.values {
		yield(counterNames[i], value)
	}
}

// counters are the counts of one worker. Only the worker changes them; add is
// an ordinary addition, and publish shows the sums to readers once per batch.
type counters struct {
	own    [counterCount]uint64
	public [counterCount]atomic.Uint64
	_      [64]byte // keeps the next worker's counts off the last cache line
}

func (c *counters) add(counter Counter, n int) { c.own[counter] += uint64(n) }

func (c *counters) publish() {
	for i, value := range c.own {
		if c.public[i].Load() != value {
			c.public[i].Store(value)
		}
	}
}

func (c *counters) addTo(stats *Stats) {
	for i := range stats.values {
		stats.values[i] += c.public[i].Load()
	}
}
