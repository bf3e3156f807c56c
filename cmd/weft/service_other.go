//go:build !linux && !windows

package main

import (
	"os"

	"github.com/kardianos/service"
)

func completeService(*service.Config, serviceOptions) {}

// serviceArgument leaves an argument as it is: the library escapes it.
func serviceArgument(argument string) (string, error) { return argument, nil }

func checkServiceRights(o serviceOptions) error { return needsRoot(o, os.Geteuid()) }
