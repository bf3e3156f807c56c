package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Resources of the local API, beside those of Config.API.
const (
	statusPath = "/v1/status"
	rotatePath = "/v1/key/rotate"
)

// refuseSecond fails where an agent answers at a socket already.
func refuseSecond(ctx context.Context, path string) error {
	if _, err := FetchStatus(ctx, path); err == nil {
		return fmt.Errorf("listen on %s: another agent is running there; stop it, or choose another --run-dir", path)
	}
	return nil
}

// listenHealth binds the health and metrics address.
func listenHealth(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for health checks: %w (change --healthz-ip or --healthz-port)", err)
	}
	return listener, nil
}

// serve answers requests until ctx is done.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return ctx.Err()
}

// localAPI answers `weft status`.
func (a *Agent) localAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.Status.Current(request.Context())); err != nil {
			a.Logger.Debug("answer status", "err", err)
		}
	})
	mux.HandleFunc("POST "+rotatePath, func(w http.ResponseWriter, request *http.Request) {
		if err := a.askRotation(request.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	for path, handler := range a.API {
		mux.Handle("/v1/"+path, handler)
	}
	return mux
}

// healthAPI answers probes and scrapers.
func (a *Agent) healthAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "weft is running")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ready, state := a.Status.readiness(); !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "weft is not ready:", state)
			return
		}
		fmt.Fprintln(w, "weft is ready")
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{a.Status},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

// askRotation has the goroutine that steers begin to replace the key.
func (a *Agent) askRotation(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case a.rotations <- answer:
		return <-answer
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(busyFor):
		return errors.New("this host is not a member yet: see its status")
	}
}

// busyFor is how long a member takes at most to answer.
const busyFor = 2 * time.Second

// FetchStatus asks the agent whose Config.Socket is socket how it stands.
func FetchStatus(ctx context.Context, socket string) (status Status, err error) {
	body, err := ask(ctx, socket, http.MethodGet, statusPath)
	if err != nil {
		return Status{}, err
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return Status{}, fmt.Errorf("read answer of agent at %s: %w", socket, err)
	}
	return status, nil
}

// RotateKey has the agent whose Config.Socket is socket begin to replace its
// WireGuard key.
func RotateKey(ctx context.Context, socket string) error {
	_, err := ask(ctx, socket, http.MethodPost, rotatePath)
	return err
}

// maxAnswer bounds what is read of an answer: the status of some ten thousand peers.
const maxAnswer = 16 << 20

func ask(ctx context.Context, socket, method, path string) ([]byte, error) {
	client := http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return DialLocal(ctx, socket) },
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://weft"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask agent at %s: %w", socket, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer of agent at %s: %w", socket, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask agent at %s: %s: %s", socket, response.Status, bytes.TrimSpace(body[:min(len(body), 1<<10)]))
	}
	return body, nil
}

// notifySystemd sends one state line where systemd asked for it (sd_notify(3)).
func notifySystemd(ctx context.Context, logger *slog.Logger, state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unixgram", socket)
	if err == nil {
		_, err = conn.Write([]byte(state))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		logger.Warn("notify systemd", "err", err)
	}
}
