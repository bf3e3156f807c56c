// Command weft-lab shows weft on one machine: the demo, and a way into its
// hosts. It parses command lines and prints; what it shows lives in bench.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/bench/lab"
)

// Exit codes.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitUnsupported = 3 // this machine cannot do it
)

// usageError is a command line that cannot be meant.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// unsupportedError is what this machine lacks.
type unsupportedError struct{ error }

func (e unsupportedError) Unwrap() error { return e.error }

func main() {
	// Nothing may come before Enter, which helper processes of the lab pass
	// through as well; only exec looks at a lab from the outside, and a demo in
	// process has none.
	var lacking error
	if !withoutLab(os.Args[1:]) {
		lacking = lab.Enter()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, lacking, os.Args[1:])
	stop()
	os.Exit(code)
}

func withoutLab(args []string) bool {
	return len(args) > 0 && (args[0] == "exec" || args[0] == "demo" && slices.Contains(args[1:], inProcessFlag))
}

// run executes one command line and returns the exit code. lacking is why
// there can be no lab.
func run(ctx context.Context, lacking error, args []string) int {
	root := &cobra.Command{
		Use:           "weft-lab",
		Short:         "weft-lab shows weft on throw-away hosts on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(demoCommand(lacking), benchCommand(lacking), benchEndCommand(), execCommand())
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "weft-lab:", err)
	switch {
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "run 'weft-lab --help' for the commands, 'weft-lab COMMAND --help' for its flags")
		return exitUsage
	case errors.As(err, new(unsupportedError)):
		return exitUnsupported
	}
	return exitFailure
}
