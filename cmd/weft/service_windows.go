package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kardianos/service"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
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
	if len(os.Args) < 2 || os.Args[1] != "agent" {
		return run(ctx)
	}
	// Only an attempt tells for sure who has started a program.
	p := &program{ctx: ctx, run: run, logs: filepath.Join(os.Getenv("ProgramData"), "weft")}
	err := svc.Run("", p) // the manager knows which service this is
	switch {
	case errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT):
		return run(ctx)
	case err != nil:
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
	logs string // directory
	code int
}

// Execute implements svc.Handler.
func (p *program) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	if log, err := openLog(p.logs); err == nil {
		os.Stdout, os.Stderr = log, log
		defer log.Close()
	}
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.code = p.run(ctx)
	}()
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	status <- running
	for {
		select {
		case <-ended:
			// The manager starts again what is gone without having said that it stops.
			os.Exit(max(p.code, exitFailure))
		case request := <-requests:
			switch request.Cmd {
			case svc.Interrogate:
				status <- running
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				stop()
				<-ended
				return false, 0
			}
		}
	}
}
