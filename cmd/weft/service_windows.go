package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/kardianos/service"
	"golang.org/x/sys/windows"
)

func completeService(*service.Config, serviceOptions) {}

// serviceArgument leaves an argument as it is: the library escapes it.
func serviceArgument(argument string) (string, error) { return argument, nil }

func checkServiceRights(o serviceOptions) error {
	return needsAdministrator(o, windows.GetCurrentProcessToken().IsElevated())
}

func needsAdministrator(o serviceOptions, elevated bool) error {
	switch {
	case o.user:
		return usageError{errors.New("--user: Windows has no services of a user; as an administrator leave --user out, else start 'weft agent' yourself")}
	case !elevated:
		return errors.New("a service needs an administrator: run this in a terminal opened with 'Run as administrator'")
	}
	return nil
}

// maxLog is the size in bytes from which the log of a service is begun anew, at
// its start, with one older kept.
const maxLog = 16 << 20

// managed runs the program, under the service manager if that has started it:
// then the manager's request to stop ends ctx, and as there is no terminal
// messages go to a file.
func managed(ctx context.Context, run func(context.Context) int) int {
	if service.Interactive() {
		return run(ctx)
	}
	directory := filepath.Join(os.Getenv("ProgramData"), "weft")
	if log, err := openLog(directory); err == nil {
		os.Stdout, os.Stderr = log, log
		defer log.Close()
	}
	p := &program{ctx: ctx, run: run}
	// The manager knows which service this is; the name here does not matter.
	manager, err := service.New(p, &service.Config{Name: "weft"})
	if err == nil {
		err = manager.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft: run as a service:", err)
		return exitFailure
	}
	return p.code
}

func openLog(directory string) (*os.File, error) {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	path := filepath.Join(directory, "weft.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("put old log away: %w", err)
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// program is run by the service manager.
type program struct {
	ctx  context.Context
	run  func(context.Context) int
	stop context.CancelFunc
	done sync.WaitGroup
	code int
}

// Start implements service.Interface.
func (p *program) Start(service.Service) error {
	ctx, stop := context.WithCancel(p.ctx)
	p.stop = stop
	p.done.Go(func() {
		p.code = p.run(ctx)
		if ctx.Err() == nil {
			// It has ended by itself, which the manager has to see as a failure.
			os.Exit(max(p.code, exitFailure))
		}
	})
	return nil
}

// Stop implements service.Interface.
func (p *program) Stop(service.Service) error {
	p.stop()
	p.done.Wait()
	return nil
}
