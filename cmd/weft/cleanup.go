package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/control/agent"
)

func cleanupCommand() *cobra.Command {
	var dryRun bool
	var runDir, subnetFile string
	command := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything weft has put into the kernel, and nothing else",
		Long: "Remove everything weft has put into the kernel, and nothing else: the devices flannel.<VNI> and\n" +
			"flannel-v6.<VNI> with what is on them, routes with weft's protocol number, the nftables tables named\n" +
			"weft, and the subnet file. Leases, Node annotations and CNI configuration stay.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket := runDir + "/weft.sock"
			if _, err := agent.FetchStatus(cmd.Context(), socket); err == nil {
				return fmt.Errorf("an agent is running behind %s and would put everything back: stop it first", socket)
			}
			logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
			host, err := newHost(hostConfig{TUN: tunName, Logger: logger})
			if err != nil {
				return err
			}
			removed, err := agent.Cleanup(cmd.Context(), host, dryRun)
			verb := "removed"
			if dryRun {
				verb = "would remove"
			}
			for _, key := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), verb, key)
			}
			for _, path := range []string{subnetFile, socket} {
				if _, statErr := os.Stat(path); statErr != nil {
					continue
				}
				if !dryRun {
					if removeErr := os.Remove(path); removeErr != nil {
						err = errors.Join(err, removeErr)
						continue
					}
				}
				fmt.Fprintln(cmd.OutOrStdout(), verb, path)
			}
			return err
		},
	}
	command.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be removed")
	command.Flags().StringVar(&runDir, "run-dir", defaultRunDir(), "directory of the local API socket")
	command.Flags().StringVar(&subnetFile, "subnet-file", defaultSubnetFile(), "the subnet file to remove")
	return command
}
