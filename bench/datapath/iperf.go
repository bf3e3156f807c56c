package datapath

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	iperfProgram = "iperf3"
	iperfPort    = "5201"
)

// iperf is traffic that iperf3 makes.
type iperf struct {
	streams int // of TCP
	udp     int // bytes of payload; 0: TCP
}

// args are those of the client.
func (i iperf) args(b *bench, w *way) []string {
	args := []string{
		"-c", w.addr.String(), "-p", iperfPort, "-t", strconv.Itoa(int(b.Duration / time.Second)), "-J",
	}
	if i.udp > 0 {
		return append(args, "-u", "-b", "0", "-l", strconv.Itoa(i.udp))
	}
	return append(args, "-C", b.congestion, "-P", strconv.Itoa(i.streams))
}

// run starts a server for one test, then the client.
func (i iperf) run(ctx context.Context, b *bench, w *way) (o outcome, err error) {
	server := w.to.Command(ctx, iperfProgram, "-s", "-1", "-p", iperfPort, "-B", w.addr.String(), "--forceflush")
	output, err := server.StdoutPipe()
	if err != nil {
		return outcome{}, err
	}
	if err := server.Start(); err != nil {
		return outcome{}, fmt.Errorf("start %s server: %w", iperfProgram, err)
	}
	defer server.Wait()
	defer server.Process.Kill() // it may have ended by itself
	said := bufio.NewReader(output)
	if err := awaitListening(said); err != nil {
		return outcome{}, err
	}
	go io.Copy(io.Discard, said) // ends with the server
	out, err := w.from.Command(ctx, iperfProgram, i.args(b, w)...).Output()
	if o, parseErr := parseIperf(out); parseErr == nil || len(out) > 0 {
		return o, parseErr // it says why, where it fails
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return outcome{}, fmt.Errorf("run %s: %w", iperfProgram, err)
}

func awaitListening(said *bufio.Reader) error {
	for {
		line, err := said.ReadString('\n')
		if strings.Contains(line, "Server listening") {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for %s server: %w: %s", iperfProgram, err, strings.TrimSpace(line))
		}
	}
}

// What no test of iperf3 can reach.
const (
	maxIperfBytes   = 1e18
	maxIperfSeconds = 1e6
)

// parseIperf reads what a client of iperf3 prints with -J. What counts is what
// the receiver has got.
func parseIperf(text []byte) (o outcome, err error) {
	type sum struct {
		Bytes       float64 `json:"bytes"`
		Seconds     float64 `json:"seconds"`
		Retransmits int     `json:"retransmits"`
	}
	var document struct {
		Error string `json:"error"`
		Start struct {
			Test struct {
				Protocol string  `json:"protocol"`
				Block    float64 `json:"blksize"`
			} `json:"test_start"`
		} `json:"start"`
		End struct {
			Sent     sum `json:"sum_sent"`
			Received sum `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return outcome{}, fmt.Errorf("parse output of %s: %w", iperfProgram, err)
	}
	if document.Error != "" {
		return outcome{}, fmt.Errorf("%s: %s", iperfProgram, document.Error)
	}
	received := document.End.Received
	within := func(v, least, most float64) bool { return v > least && v < most }
	if !within(received.Bytes, 0, maxIperfBytes) || !within(received.Seconds, 0, maxIperfSeconds) {
		return outcome{}, fmt.Errorf("parse output of %s: end.sum_received has %v bytes in %v s, want more than 0, and less than %v in %v",
			iperfProgram, received.Bytes, received.Seconds, maxIperfBytes, maxIperfSeconds)
	}
	o = outcome{bits: received.Bytes * 8, seconds: received.Seconds, retransmits: document.End.Sent.Retransmits}
	if document.Start.Test.Protocol == "UDP" {
		size := document.Start.Test.Block
		if !(size >= 1 && size < 1<<16) {
			return outcome{}, fmt.Errorf("parse output of %s: start.test_start.blksize is %v, want 1 to 65535", iperfProgram, size)
		}
		o.packets = received.Bytes / size
	}
	return o, nil
}
