package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/netstack/local"
	"github.com/weft-net/weft/netstack/proxy"
)

// portsCommand is forward or expose.
func portsCommand(kind proxy.Kind, form, short, long string) *cobra.Command {
	var ask asking
	var format format
	var remove bool
	command := &cobra.Command{
		Use:   fmt.Sprintf("%s [%s...]", kind, form),
		Short: short,
		Long: long + "\n\nWithout arguments it lists what there is. What is added lasts as long as the agent; the agent's flag --" + string(kind) + "\n" +
			"is for what is always to be there. It is for hosts without a device (see 'weft agent --device=netstack').",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format.check(); err != nil {
				return err
			}
			client := ask.client()
			states := []proxy.State{}
			for _, arg := range args {
				if remove {
					if err := client.RemovePort(cmd.Context(), arg); err != nil {
						return err
					}
					continue
				}
				state, err := client.AddPort(cmd.Context(), kind, arg)
				if err != nil {
					return err
				}
				states = append(states, state)
			}
			if len(args) == 0 {
				all, err := client.Ports(cmd.Context())
				if err != nil {
					return err
				}
				states = ofKind(all, kind)
			}
			return format.print(cmd.OutOrStdout(), states, func(w io.Writer) error { return printPorts(w, states) })
		},
	}
	ask.register(command.Flags())
	format.register(command.Flags())
	command.Flags().BoolVar(&remove, "remove", false, "take the arguments, which are IDs as listed, away again")
	return command
}

func ofKind(all []proxy.State, kind proxy.Kind) []proxy.State {
	states := []proxy.State{}
	for _, state := range all {
		if state.Kind == kind {
			states = append(states, state)
		}
	}
	return states
}

func printPorts(w io.Writer, states []proxy.State) error {
	if len(states) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tLISTEN\tTARGET\tSTATE\tNOW\tTOTAL\tIN\tOUT\tREASON")
	for _, s := range states {
		reason := s.Error
		if reason == "" {
			reason = s.TargetError
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", s.ID, strings.Join(s.Listen, ","), s.Target, s.State,
			s.Connections, s.Total, s.BytesIn, s.BytesOut, reason)
	}
	return table.Flush()
}

func forwardCommand() *cobra.Command {
	return portsCommand(proxy.KindForward, "[udp:]LOCAL=HOST:PORT", "Carry a port of this host to one in the overlay",
		"Carry a port of this host, LOCAL being PORT (on loopback alone) or ADDRESS:PORT, to a pod or Service in the overlay, as in\n"+
			"  weft forward 8080=web.default:80 udp:5353=10.96.0.10:53")
}

func exposeCommand() *cobra.Command {
	return portsCommand(proxy.KindExpose, "[udp:]PORT[=LOCAL:PORT]", "Let pods reach a port of this host",
		"Let pods reach a port of this host at its address in the overlay, as in\n  weft expose 8080 80=127.0.0.1:3000\n"+
			"Nothing can be reached that is not exposed.")
}

func pingCommand() *cobra.Command {
	var ask asking
	var format format
	var count, size int
	var interval, timeout time.Duration
	command := &cobra.Command{
		Use:   "ping HOST",
		Short: "Send echo requests into the overlay, without rights",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("want one HOST: an address or a name in the overlay")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format.check(); err != nil {
				return err
			}
			p := pinger{client: ask.client(), host: args[0], size: size, timeout: timeout, out: cmd.OutOrStdout(), json: format.json()}
			return p.run(cmd.Context(), count, interval)
		},
	}
	ask.register(command.Flags())
	format.register(command.Flags())
	command.Flags().IntVarP(&count, "count", "c", 4, "how many; 0: until interrupted")
	command.Flags().IntVarP(&size, "size", "s", 56, "bytes of data in each")
	command.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time between two")
	command.Flags().DurationVarP(&timeout, "timeout", "W", 2*time.Second, "time to wait for an answer")
	return command
}

// pinger sends echo requests one after the other.
type pinger struct {
	client  *local.Client
	host    string
	size    int
	timeout time.Duration
	out     io.Writer
	json    bool
}

// errNoAnswers makes the exit code tell that nobody answered, as ping's does.
var errNoAnswers = errors.New("no answer")

func (p *pinger) run(ctx context.Context, count int, interval time.Duration) error {
	sent, answered := 0, 0
	var last error
	for ctx.Err() == nil && (count == 0 || sent < count) {
		if sent > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(interval):
			}
		}
		sent++
		err := p.one(ctx, sent)
		if err == nil {
			answered++
			continue
		}
		last = err
		if ctx.Err() == nil && !p.json {
			fmt.Fprintf(p.out, "%s: seq=%d: %v\n", p.host, sent, err)
		}
	}
	if !p.json {
		fmt.Fprintf(p.out, "%d sent, %d answered\n", sent, answered)
	}
	if answered == 0 {
		return fmt.Errorf("ping %s: %w: %w", p.host, errNoAnswers, last)
	}
	return nil
}

func (p *pinger) one(ctx context.Context, number int) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	pong, err := p.client.Ping(ctx, p.host, p.size)
	if err != nil {
		return err
	}
	if p.json {
		return json.NewEncoder(p.out).Encode(pong)
	}
	fmt.Fprintf(p.out, "%d bytes from %s: seq=%d time=%.3f ms\n", pong.Size, pong.Address, number, float64(pong.RTT)/1e6)
	return nil
}
