// Package local is what the commands of one machine ask of its agent where that
// has a network stack of its own: to dial into the overlay, to ping, and to say
// which ports are carried in and out. It speaks HTTP on the agent's local
// socket, whose owner alone may connect. It must never listen by itself, and
// decides nothing: who may be reached is the agent's Dialer's business.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// Overlay is what the commands need of the agent.
type Overlay interface {
	// DialContext dials "host:port" in the overlay; network is "tcp" or "udp".
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// LookupNetIP resolves a name through cluster DNS.
	LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error)
	Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error)
	Way() Way
}

// Way is what a program has to know to reach the overlay.
type Way struct {
	Proxy  string           `json:"proxy,omitempty"` // host:port of SOCKS5 and HTTP
	DNS    []netip.AddrPort `json:"dns"`
	Search []string         `json:"search"` // domains that names are looked up below
}

// Paths of the resources, below /v1/.
const (
	dialPath = "dial"
	pingPath = "ping"
	wayPath  = "way"
)

// Pong is the answer to one ping.
type Pong struct {
	Address netip.Addr `json:"address"`
	Size    int        `json:"size"`
	// RTT is the round-trip time in nanoseconds.
	RTT time.Duration `json:"rtt_ns"`
}

// Handlers are the resources, by their path below /v1/.
func Handlers(overlay Overlay, ports Ports, logger *slog.Logger) map[string]http.Handler {
	s := &server{overlay, ports, logger}
	return map[string]http.Handler{
		dialPath:  http.HandlerFunc(s.dial),
		pingPath:  http.HandlerFunc(s.ping),
		wayPath:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, s.logger, s.overlay.Way()) }),
		portsPath: http.HandlerFunc(s.servePorts),
	}
}

type server struct {
	overlay Overlay
	ports   Ports
	logger  *slog.Logger
}

// dial turns the request's connection into one with an address in the overlay:
// its bytes for TCP, and frames for UDP.
func (s *server) dial(w http.ResponseWriter, r *http.Request) {
	network, address := r.FormValue("network"), r.FormValue("address")
	if r.Method != http.MethodPost || network != "tcp" && network != "udp" || address == "" {
		http.Error(w, "want POST with network=tcp or network=udp, and address=host:port", http.StatusBadRequest)
		return
	}
	inner, err := s.overlay.DialContext(r.Context(), network, address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer inner.Close()
	controller := http.NewResponseController(w)
	// The server's timeouts are for requests, and this one lasts.
	if err := errors.Join(controller.SetReadDeadline(time.Time{}), controller.SetWriteDeadline(time.Time{})); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	outer, buffered, err := controller.Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer outer.Close()
	if _, err := fmt.Fprintf(outer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgradeTo); err != nil {
		return
	}
	caller := net.Conn(&bufferedConn{Conn: outer, reader: buffered.Reader})
	if network == "udp" {
		caller = newFrames(caller)
	}
	Join(caller, inner, network == "udp")
}

// ping sends one echo request and waits for its answer.
func (s *server) ping(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.Atoi(r.FormValue("size"))
	if err != nil || size < 0 || size > maxPing {
		http.Error(w, fmt.Sprintf("size=%s: want 0 to %d bytes", r.FormValue("size"), maxPing), http.StatusBadRequest)
		return
	}
	host := r.FormValue("host")
	to, err := netip.ParseAddr(host)
	if err != nil {
		addrs, err := s.overlay.LookupNetIP(r.Context(), host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		to = addrs[0]
	}
	rtt, err := s.overlay.Ping(r.Context(), to, size)
	if err != nil {
		http.Error(w, err.Error(), http.StatusGatewayTimeout)
		return
	}
	answer(w, s.logger, Pong{Address: to, Size: size, RTT: rtt})
}

// maxPing is the most bytes that follow the header of an echo request.
const maxPing = 65000

func answer(w http.ResponseWriter, logger *slog.Logger, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		logger.Debug("answer a local request", "err", err)
	}
}
