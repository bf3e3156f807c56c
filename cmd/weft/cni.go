package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/control/cniconf"
)

func cniCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "cni",
		Short: "Set up what the container runtime calls",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var cfg cniconf.Config
	install := &cobra.Command{
		Use:   "install",
		Short: "Copy CNI plugins and, last, the CNI configuration to where the runtime looks",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
			return cniconf.Install(cfg)
		},
	}
	install.Flags().StringVar(&cfg.From, "from", "/opt/weft/cni", "directory of plugins to copy")
	install.Flags().StringVar(&cfg.BinDir, "bin-dir", "/opt/cni/bin", "where plugins go")
	install.Flags().StringVar(&cfg.Conf, "conf", "", "CNI configuration list to install (default: none)")
	install.Flags().StringVar(&cfg.ConfDir, "conf-dir", "/etc/cni/net.d", "where the CNI configuration goes")
	command.AddCommand(install)
	return command
}
