package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/netstack/local"
	"github.com/weft-net/weft/netstack/sandbox"
	"github.com/weft-net/weft/tunnel/userns"
)

// execCommand runs a program that reaches the overlay, on a host whose own
// network stack does not.
func execCommand() *cobra.Command {
	var ask asking
	var inside, proxyOnly bool
	command := &cobra.Command{
		Use:   "exec -- COMMAND [ARGUMENT...]",
		Short: "Run a command that reaches the overlay",
		Long: "Run a command that reaches pods, and on a host without a device Services as well, by address and by name.\n\n" +
			"On a host without a device it runs, on Linux, in a user and network namespace of its own, where all that it sends goes into the overlay; it is root\n" +
			"there, and this user outside. Elsewhere, and where such a namespace cannot be had, it is given the agent's proxy\n" +
			"in its environment, which programs like curl, git and browsers heed. On a rootless host the command runs as\n" +
			"'weft netns exec' runs it, on others as it is. The exit code is the command's.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("a command is missing: weft exec -- COMMAND [ARGUMENT...]")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			config := sandbox.Config{Argv: args, Client: ask.client(), Logger: logger}
			// A signal is the command's to heed.
			ctx := context.WithoutCancel(cmd.Context())
			if inside {
				return sandbox.Inside(ctx, config)
			}
			return ask.exec(ctx, config, proxyOnly)
		},
	}
	ask.register(command.Flags())
	command.Flags().BoolVar(&proxyOnly, "proxy-only", false, "only set the proxy in the environment")
	command.Flags().BoolVar(&inside, "inside", false, "")
	command.Flags().Lookup("inside").Hidden = true
	return command
}

func (a *asking) exec(ctx context.Context, config sandbox.Config, proxyOnly bool) error {
	way, err := config.Client.Way(ctx)
	if errors.Is(err, local.ErrOwnStack) {
		if dir := filepath.Dir(a.socket); hasNetns(dir) {
			return execInside(dir, config.Argv)
		}
		return sandbox.RunAsIs(ctx, config)
	}
	if err != nil {
		return err
	}
	if !proxyOnly {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		err = sandbox.Run(ctx, config, slices.Concat([]string{self, "exec", "--inside", "--socket=" + a.socket, "--"}, config.Argv))
		if !errors.Is(err, sandbox.ErrUnavailable) {
			return err
		}
		config.Logger.Warn("the command gets the proxy in its environment instead", "reason", err)
	}
	if way.Proxy == "" {
		return errors.New("the agent has no proxy (its flag --proxy): there is nothing to give the command")
	}
	return sandbox.RunWithProxy(ctx, config, way.Proxy)
}

// hasNetns reports whether a rootless agent holds a namespace.
func hasNetns(runDir string) bool {
	_, err := userns.Holder(runDir)
	return err == nil
}

// notFound is the exit code of shells for a command that is not there.
const notFound = 127

// exitCode is the exit code that an error stands for.
func exitCode(err error) (code int, silent bool) {
	var exit sandbox.ExitError
	var usage usageError
	switch {
	case errors.As(err, &exit):
		return exit.Code, true
	case errors.Is(err, exec.ErrNotFound):
		return notFound, false
	case errors.As(err, &usage):
		return exitUsage, false
	}
	return exitFailure, false
}
