package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/netstack/local"
)

// format is how a command prints: as text for people or as JSON for programs.
type format struct{ output string }

func (f *format) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
}

func (f *format) check() error {
	if f.output != "text" && f.output != "json" {
		return usageError{fmt.Errorf("--output %q: want text or json", f.output)}
	}
	return nil
}

func (f *format) json() bool { return f.output == "json" }

// print writes a value as JSON, or has text write it.
func (f *format) print(w io.Writer, value any, text func(io.Writer) error) error {
	if !f.json() {
		return text(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// asking is what the commands that ask the agent have in common.
type asking struct{ socket string }

func (a *asking) register(flags *pflag.FlagSet) {
	flags.StringVar(&a.socket, "socket", defaultRunDir()+"/weft.sock", "the agent's local API")
}

func (a *asking) client() *local.Client {
	return &local.Client{Dial: func(ctx context.Context) (net.Conn, error) { return agent.DialLocal(ctx, a.socket) }}
}

func (a *asking) status(ctx context.Context) (agent.Status, error) {
	status, err := agent.FetchStatus(ctx, a.socket)
	if err != nil {
		return status, fmt.Errorf("%w (is the agent running? --socket names its socket)", err)
	}
	return status, nil
}
