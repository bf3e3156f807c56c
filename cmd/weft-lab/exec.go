package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/bench/demo"
)

func execCommand() *cobra.Command {
	var place demo.Place
	command := &cobra.Command{
		Use:   "exec [--lab PID] HOST[/POD] [-- PROGRAM [ARGUMENT...]]",
		Short: "Run a program, or a shell, in a host or pod of a demo that is kept up",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("which host? give HOST or HOST/POD")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			place.Name = args[0]
			program := args[1:]
			if len(program) > 0 && program[0] == "--" {
				program = program[1:]
			}
			if len(program) == 0 {
				program = []string{"sh"}
			}
			err = demo.Step(place, filepath.Dir(self), program[0], program[1:]...)
			if errors.Is(err, errors.ErrUnsupported) {
				return unsupportedError{err}
			}
			return err
		},
	}
	command.Flags().IntVar(&place.Lab, "lab", 0, "a process of the lab, if several are up")
	command.Flags().SetInterspersed(false) // what follows the place is the program's
	return command
}
