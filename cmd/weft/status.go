package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/control/agent"
)

func statusCommand() *cobra.Command {
	var ask asking
	var format format
	command := &cobra.Command{
		Use:   "status",
		Short: "Show this host and, one line each, its peers",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format.check(); err != nil {
				return err
			}
			status, err := ask.status(cmd.Context())
			if err != nil {
				return err
			}
			return format.print(cmd.OutOrStdout(), status, func(w io.Writer) error { return printStatus(w, status, time.Now()) })
		},
	}
	ask.register(command.Flags())
	format.register(command.Flags())
	return command
}

// printStatus writes what a person wants to know, the worst first.
func printStatus(w io.Writer, s agent.Status, now time.Time) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%s\t%s\n", name, value)
		}
	}
	line("host", s.Host)
	line("state", fmt.Sprintf("%s for %s", s.State, now.Sub(s.Since).Truncate(time.Second)))
	line("reason", s.Reason)
	line("subnets", strings.Join(s.Subnets, " "))
	line("address", strings.Join(s.PublicIPs, " "))
	if m := s.Moved; m != nil {
		line("moved", fmt.Sprintf("from %v %s ago (%s)", m.From, now.Sub(m.At).Truncate(time.Second), m.Reason))
	}
	if s.Engine != "" {
		line("engine", fmt.Sprintf("%s (%s)", s.Engine, s.EngineReason))
		line("device", s.Device)
		line("encap", fmt.Sprintf("%s, MTU %d", s.Encap, s.MTU))
		if g := s.WireGuard; g != nil {
			line("wireguard", fmt.Sprintf("%s (%s)", cmp.Or(g.Engine, "none"), g.Reason))
		}
		line("objects", fmt.Sprintf("%d in place, %d pending, %d failed", s.Items.Done, s.Items.Pending, s.Items.Failed))
	}
	for _, why := range s.Offloads {
		line("offload", why)
	}
	for _, failure := range s.Failures {
		line("failed", fmt.Sprintf("%s: %s (%d tries)", failure.Item, failure.Reason, failure.Attempts))
	}
	for _, problem := range s.Problems {
		line("problem", fmt.Sprintf("%s: %s", problem.Source, problem.Reason))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	if len(s.Peers) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PEER\tSTATE\tSUBNETS\tENDPOINT\tENCAP\tENGINE\tMTU\tRTT\tCHANGED\tREASON")
	for _, p := range s.Peers {
		reason := p.Reason
		if p.Trouble != "" {
			reason = p.Trouble + "; " + reason
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s ago\t%s\n", p.Name, p.State, strings.Join(p.Subnets, ","), p.Endpoint,
			p.Encap, p.Engine, mtuOf(p), rttOf(p), now.Sub(p.LastChange).Truncate(time.Second), reason)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print peers: %w", err)
	}
	return nil
}

// mtuOf is a peer's MTU, and what its path carries of it where that is less.
func mtuOf(p agent.PeerStatus) string {
	if p.PathMTU == 0 || p.PathMTU >= p.MTU {
		return strconv.Itoa(p.MTU)
	}
	return fmt.Sprintf("%d of %d", p.PathMTU, p.MTU)
}

// rttOf is the round-trip time that probes find, and how many are lost.
func rttOf(p agent.PeerStatus) string {
	switch {
	case p.RTT == nil:
		return "-"
	case *p.Loss > 0:
		return fmt.Sprintf("%.3gms, %.0f%% lost", *p.RTT, 100**p.Loss)
	}
	return fmt.Sprintf("%.3gms", *p.RTT)
}
