package local

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/weft-net/weft/netstack/proxy"
)

// Ports are the forwards and exposes of the agent.
type Ports interface {
	AddForward(ctx context.Context, f proxy.Forward) (proxy.State, error)
	AddExpose(ctx context.Context, e proxy.Expose) (proxy.State, error)
	List() []proxy.State
	Remove(id string) error
}

// portsPath lists all ports (GET), adds one (POST, kind and spec) and removes
// one (DELETE, id).
const portsPath = "ports"

func (s *server) servePorts(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		answer(w, s.logger, s.ports.List())
	case http.MethodPost:
		state, err := s.addPort(r.Context(), proxy.Kind(r.FormValue("kind")), r.FormValue("spec"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		answer(w, s.logger, state)
	case http.MethodDelete:
		if err := s.ports.Remove(r.FormValue("id")); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		answer(w, s.logger, struct{}{})
	default:
		http.Error(w, "want GET, POST or DELETE", http.StatusMethodNotAllowed)
	}
}

// addPort opens a port for as long as the agent runs, whoever asked for it.
func (s *server) addPort(ctx context.Context, kind proxy.Kind, spec string) (proxy.State, error) {
	ctx = context.WithoutCancel(ctx)
	switch kind {
	case proxy.KindForward:
		forward, err := proxy.ParseForward(spec)
		if err != nil {
			return proxy.State{}, err
		}
		return s.ports.AddForward(ctx, forward)
	case proxy.KindExpose:
		expose, err := proxy.ParseExpose(spec)
		if err != nil {
			return proxy.State{}, err
		}
		return s.ports.AddExpose(ctx, expose)
	}
	return proxy.State{}, errors.New("kind: want forward or expose")
}

// Ports lists all forwards and exposes.
func (c *Client) Ports(ctx context.Context) ([]proxy.State, error) {
	var states []proxy.State
	err := c.Call(ctx, http.MethodGet, portsPath, nil, &states)
	return states, err
}

// AddPort adds a forward or expose, written as ParseForward or ParseExpose
// takes it. It lasts as long as the agent.
func (c *Client) AddPort(ctx context.Context, kind proxy.Kind, spec string) (proxy.State, error) {
	var state proxy.State
	err := c.Call(ctx, http.MethodPost, portsPath, url.Values{"kind": {string(kind)}, "spec": {spec}}, &state)
	return state, err
}

// RemovePort removes a forward or expose by its ID.
func (c *Client) RemovePort(ctx context.Context, id string) error {
	var nothing json.RawMessage
	return c.Call(ctx, http.MethodDelete, portsPath, url.Values{"id": {id}}, &nothing)
}
