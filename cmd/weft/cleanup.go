package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/tunnel/userns"
)

func cleanupCommand() *cobra.Command {
	var c cleanup
	command := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything weft has put into the kernel, and nothing else",
		Long: "Remove everything weft has put into the kernel, and nothing else: the devices flannel.<VNI>,\n" +
			"flannel-v6.<VNI>, flannel-wg and flannel-wg-v6 with what is on them, routes with weft's protocol number, the nftables tables named\n" +
			"weft, and the subnet file; of a rootless host also the network namespace that weft has made, and with it\n" +
			"the network of its pods. Leases, Node annotations and CNI configuration stay.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.out = cmd.OutOrStdout()
			return c.run(cmd.Context())
		},
	}
	command.Flags().BoolVar(&c.dryRun, "dry-run", false, "only print what would be removed")
	command.Flags().StringVar(&c.runDir, "run-dir", defaultRunDir(), "directory of the local API socket")
	command.Flags().StringVar(&c.subnetFile, "subnet-file", defaultSubnetFile(), "the subnet file to remove")
	command.Flags().StringVar(&c.where.netns, "netns", "", "the network namespace that a rootless agent was given")
	return command
}

// cleanup is one call of the command.
type cleanup struct {
	dryRun             bool
	runDir, subnetFile string
	where              rootless
	out                io.Writer
}

func (c cleanup) run(ctx context.Context) error {
	socket := c.runDir + "/weft.sock"
	if _, err := agent.FetchStatus(ctx, socket); err == nil {
		return fmt.Errorf("an agent is running behind %s and would put everything back: stop it first", socket)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	inner, nothing, err := c.where.enterAgain(ctx, c.runDir, c.subnetFile, logger)
	if err != nil {
		return err
	}
	var errs []error
	if !nothing {
		host, err := newHost(hostConfig{TUN: tunName, Logger: logger, Inner: inner})
		if err != nil {
			return err
		}
		removed, err := agent.Cleanup(ctx, host, c.dryRun)
		for _, key := range removed {
			c.report(key)
		}
		errs = append(errs, err)
	}
	for _, path := range []string{c.subnetFile, socket} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		errs = append(errs, c.remove(path, func() error { return os.Remove(path) }))
	}
	if pid, err := userns.Holder(c.runDir); err == nil && c.where.netns == "" {
		errs = append(errs, c.remove(fmt.Sprintf("network namespace held by process %d", pid),
			func() error { return userns.Stop(ctx, c.runDir) }))
	}
	return errors.Join(errs...)
}

// remove removes one thing, unless it should only say so.
func (c cleanup) remove(what string, do func() error) error {
	if !c.dryRun {
		if err := do(); err != nil {
			return err
		}
	}
	c.report(what)
	return nil
}

func (c cleanup) report(what any) {
	verb := "removed"
	if c.dryRun {
		verb = "would remove"
	}
	fmt.Fprintln(c.out, verb, what)
}
