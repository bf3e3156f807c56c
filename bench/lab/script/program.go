package script

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var programCommands = map[string]Command{
	"on":         runOn,
	"await":      awaitJob,
	"end":        endJob,
	"agent":      startAgent,
	"kill-agent": killAgent,
	"wait-ready": waitReady,
}

// assignments splits leading NAME=VALUE words off.
func assignments(args []string) (env, rest []string) {
	for i, arg := range args {
		if name, _, ok := strings.Cut(arg, "="); !ok || name == "" || strings.HasPrefix(name, "-") {
			return args[:i], args[i:]
		}
	}
	return args, nil
}

// command prepares a program at a place, with the script's environment.
func (r *Run) command(ctx context.Context, place string, args []string) (*exec.Cmd, error) {
	namespace, err := r.Place(place)
	if err != nil {
		return nil, err
	}
	env, args := assignments(args)
	if len(args) == 0 {
		return nil, errors.New("no program given")
	}
	cmd := namespace.Command(ctx, args[0], args[1:]...)
	cmd.Dir = r.work
	cmd.Env = r.environment(env)
	return cmd, nil
}

func runOn(run *Run, args []string) error {
	background := ""
	if len(args) > 0 {
		if name, ok := strings.CutPrefix(args[0], "-bg="); ok {
			background, args = name, args[1:]
		}
	}
	if len(args) < 2 {
		return usage("on [-bg=JOB] PLACE [NAME=VALUE...] PROGRAM [ARG...]")
	}
	cmd, err := run.command(run.ctx, args[0], args[1:])
	if err != nil {
		return err
	}
	if background == "" {
		cmd.Stdout, cmd.Stderr = run.Stdout, run.Stderr
		return cmd.Run()
	}
	return run.Background(background, cmd)
}

func endJob(run *Run, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usage("end JOB [SIGNAL]")
	}
	j, err := run.job(args[0])
	if err != nil {
		return err
	}
	signal, err := parseSignal(append(args, "TERM")[1])
	if err != nil {
		return err
	}
	ended := j.end(signal)
	// To be ended by the signal that was asked for is no failure.
	if got, ok := exitSignal(ended); ok && got == signal {
		ended = nil
	}
	delete(run.jobs, args[0])
	return errors.Join(ended, run.show(j.log))
}

func awaitJob(run *Run, args []string) error {
	args, values := options(args, "timeout")
	if len(args) != 1 {
		return usage("await JOB [timeout=30s]")
	}
	j, err := run.job(args[0])
	if err != nil {
		return err
	}
	timeout, err := duration(values, "timeout", 30*time.Second)
	if err != nil {
		return err
	}
	select {
	case <-j.done:
	case <-time.After(timeout):
		return fmt.Errorf("job %s still runs after %v", args[0], timeout)
	}
	delete(run.jobs, args[0])
	return errors.Join(j.err, run.show(j.log))
}

func (r *Run) job(name string) (*job, error) {
	if j := r.jobs[name]; j != nil {
		return j, nil
	}
	return nil, fmt.Errorf("no job %q", name)
}

// program returns the path of one of weft's programs.
func (r *Run) program(variable string) (string, error) {
	path := r.getenv(variable)
	if path == "" {
		return "", fmt.Errorf("the environment variable %s is not set: it must name the program to test", variable)
	}
	return path, nil
}

func startAgent(run *Run, args []string) error {
	if len(args) < 1 {
		return usage("agent HOST [NAME=VALUE...] [FLAG...]")
	}
	host := args[0]
	if have := run.agents[host]; have != nil && have.running() {
		return fmt.Errorf("the agent on %s is running", host)
	}
	binary, err := run.program("WEFT_BIN")
	if err != nil {
		return err
	}
	env, flags := assignments(args[1:])
	words := append(slices.Clone(env), binary, "agent")
	if endpoint := run.getenv(etcdVar); endpoint != "" && !namesStore(args[1:]) {
		words = append(words, "--etcd-endpoints="+endpoint)
	}
	cmd, err := run.command(run.ctx, host, append(words, flags...))
	if err != nil {
		return err
	}
	run.agents[host], err = begin(cmd, filepath.Join(run.work, host+".log"))
	return err
}

// namesStore says whether an agent's words name the lease store.
func namesStore(words []string) bool {
	return slices.ContainsFunc(words, func(word string) bool {
		name := strings.ToLower(strings.NewReplacer("_", "-").Replace(word))
		return strings.Contains(name, "etcd-endpoints") || strings.Contains(name, "kube-subnet-mgr")
	})
}

func killAgent(run *Run, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usage("kill-agent HOST [SIGNAL]")
	}
	j := run.agents[args[0]]
	if j == nil || !j.running() {
		return fmt.Errorf("no agent runs on %q", args[0])
	}
	signal, err := parseSignal(append(args, "KILL")[1])
	if err != nil {
		return err
	}
	if signal == signals["STOP"] || signal == signals["CONT"] || signal == signals["HUP"] {
		return j.cmd.Process.Signal(signal)
	}
	err = j.end(signal)
	if ended, ok := exitSignal(err); ok && ended == signal && signal == signals["KILL"] {
		return nil
	}
	return err
}

func waitReady(run *Run, args []string) error {
	hosts, values := options(args, "timeout")
	if len(hosts) == 0 {
		return usage("wait-ready HOST... [timeout=30s]")
	}
	timeout, err := duration(values, "timeout", 30*time.Second)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(run.ctx, timeout)
	defer cancel()
	// A host that was ready early has work again when the others have joined.
	for range 2 {
		for _, host := range hosts {
			if err := run.awaitReady(ctx, host); err != nil {
				return fmt.Errorf("the agent on %s is not ready: %w", host, err)
			}
		}
	}
	return nil
}

func (r *Run) awaitReady(ctx context.Context, host string) error {
	j := r.agents[host]
	if j == nil {
		return errors.New("it was not started")
	}
	return until(ctx, func(ctx context.Context) error {
		if !j.running() {
			return final{fmt.Errorf("it has ended: %w", j.err)}
		}
		return r.notReady(ctx, host)
	})
}

// notReady asks the agent itself; nil means ready.
func (r *Run) notReady(ctx context.Context, host string) error {
	binary, err := r.program("WEFT_BIN")
	if err != nil {
		return err
	}
	cmd, err := r.command(ctx, host, []string{binary, "status", "-o", "json"})
	if err != nil {
		return err
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%s", strings.TrimSpace(string(exit.Stderr)))
	}
	var status struct {
		Ready  bool
		State  string
		Reason string
		Items  struct{ Pending int }
	}
	if parseErr := json.Unmarshal(out, &status); parseErr != nil {
		return errors.Join(err, fmt.Errorf("parse status: %w", parseErr))
	}
	if !status.Ready {
		return fmt.Errorf("%s: %s", status.State, status.Reason)
	}
	if status.Items.Pending > 0 {
		return fmt.Errorf("%d objects are pending", status.Items.Pending)
	}
	return nil
}
