package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// signals by name, with their numbers on Linux, where hosts are.
var signals = map[string]syscall.Signal{
	"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15, "CONT": 18, "STOP": 19,
}

func parseSignal(name string) (syscall.Signal, error) {
	signal, ok := signals[name]
	if !ok {
		return 0, fmt.Errorf("signal %q: want HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT or STOP", name)
	}
	return signal, nil
}

// job is a program in the background.
type job struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed at its end
	err  error         // of Wait, once done
}

// begin starts a program whose output is appended to a file.
func begin(cmd *exec.Cmd, log string) (*job, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = file, file
	err = cmd.Start()
	file.Close()
	if err != nil {
		return nil, err
	}
	j := &job{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		j.err = cmd.Wait()
		close(j.done)
	}()
	return j, nil
}

func (j *job) running() bool {
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}

// end sends a signal, waits for the end of the program and returns its error.
func (j *job) end(signal syscall.Signal) error {
	if err := j.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-j.done
	return j.err
}

// exitSignal returns the signal that ended a program, if one did.
func exitSignal(err error) (syscall.Signal, bool) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return status.Signal(), ok && status.Signaled()
}

// show copies a log to the command's output.
func (r *Run) show(log string) error {
	text, err := os.ReadFile(log)
	r.Stdout.Write(text)
	return err
}
