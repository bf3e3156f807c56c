// Package script gives testscript (txtar) tests the commands to build a lab,
// run agents in it and look at what they do. It must never know how weft does
// its work: programs are found by environment variables and looked at from
// outside.
//
// A test is a text file:
//
//	host a
//	host b
//	etcd
//	etcdput /coreos.com/network/config '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
//	agent a
//	agent b --engine=userspace
//	wait-ready a b
//	pod a p
//	pod b q
//	ping a/p b/q
//	kill-agent a
//	dump a routes flannel.1
//	cmp stdout routes.golden
//
// and a Go file runs all of them, each with a lab of its own:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//	func TestScripts(t *testing.T) { testscript.Run(t, script.Params(script.Config{Dir: "testdata/script"})) }
//
// # Commands
//
// PLACE is a host, a pod as host/pod, or "outside", where switches and servers
// are. A TARGET is a host, a pod or an address. Each command may be preceded by
// "!", and then must fail.
//
//	switch NAME PREFIX...                    a further switch; all are routed
//	host NAME [switch=S] [mtu=N] [noroute] [ADDRESS/LEN...]
//	link HOST [mtu=N] [loss=PERCENT] [rate=10mbit] [offload=full|checksum|none] [cut] [heal]
//	                                         changes what is named; loss=100 loses all but keeps the carrier,
//	                                         cut takes it away, heal ends both
//	on PLACE [NAME=VALUE...] PROGRAM ARG...  run a program; see stdout, stderr
//	on -bg=JOB PLACE PROGRAM ARG...          in the background, output in $WORK/JOB.log
//	await JOB [timeout=30s]                  wait for its end and show its output; fails if the job failed
//	end JOB [SIGNAL]                         the same, but signal it first (TERM), which may kill it
//	agent HOST [NAME=VALUE...] [FLAG...]     start $WEFT_BIN agent, log in $WORK/HOST.log; $ETCD is its store
//	                                         unless a flag or variable names one; again after kill
//	kill-agent HOST [SIGNAL]                 signal the agent (KILL) and wait for its end
//	wait-ready HOST... [timeout=30s]         until $WEFT_BIN status says that they are, with nothing pending
//	pod HOST NAME [ADDRESS/LEN...]           with addresses: a bare pod; without: by $WEFT_CNI_BIN, with
//	                                         cni.json of the script, or a minimal configuration
//	unpod HOST NAME                          CNI DEL
//	adopt HOST NAME FILE                     a pod that a program made: FILE is the number of a process in it, and
//	                                         the result of CNI ADD
//	ping PLACE TARGET [count=N] [size=BYTES] [df] [each=1s] [timeout=10s]
//	                                         ICMP to every address of TARGET in the families that PLACE
//	                                         has, each until it answers, asking again when a request has gone each
//	                                         without; with !, none may answer count (3) requests
//	reach PLACE TARGET [timeout=10s]         ICMP, TCP and UDP; with !, none of them
//	echo PLACE PORT                          an echo service for TCP and UDP, until the script ends
//	web PLACE PORT                           an HTTP service that says who it is and who has asked
//	dns PLACE NAME=ADDRESS...                a DNS server on port 53 that knows these names
//	ask PLACE tcp|udp ADDRESS:PORT           send to an echo service and compare what comes back
//	throughput PLACE TARGET [time=1s]        one TCP stream; prints Gbit/s
//	dump PLACE links|addrs|routes|neigh|fdb|nft [DEVICE]
//	                                         see lab.Dump; MACs of devices are printed as <host:device>
//	dump -raw ...                            with MACs as they are
//	eventually [timeout=30s] [match=REGEXP] [nomatch=REGEXP] COMMAND...
//	                                         repeat one of these commands until it succeeds and its output
//	                                         is as said
//	etcd [stop]                              start an etcd outside, or again; $ETCD is its IPv4 endpoint, $ETCD6
//	etcdput KEY VALUE, etcdget KEY, etcddel KEY
//	                                         etcdget prints lines of key and value of all keys with that prefix
//
// Programs see the script's environment as it was at its start, and ETCD; more
// is given as NAME=VALUE words, as above.
package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/etcd"
)

// Config says which scripts to run and what they may use.
type Config struct {
	Dir   string   // of the .txtar files
	Files []string // instead of Dir
	// Setup, if not nil, completes a script's environment.
	Setup func(*testscript.Env) error
	// Commands are further commands of the test's own.
	Commands map[string]Command
}

// passed are the environment variables that scripts get from the test's.
var passed = []string{"WEFT_BIN", "WEFT_CNI_BIN", "CNI_PATH", "GOCOVERDIR"}

// Command is a script command: args are the words after its name. What it
// writes to run.Stdout and run.Stderr is what the script's stdout and stderr
// commands look at.
type Command func(run *Run, args []string) error

// Run is a running script.
type Run struct {
	Lab            *lab.Lab
	Stdout, Stderr *bytes.Buffer // of the current command

	work     string
	getenv   func(string) string
	setenv   func(name, value string)
	names    []string // of environment variables
	ctx      context.Context
	commands map[string]Command
	pods     map[string]*lab.Namespace // by host/pod
	podAddrs map[string][]netip.Addr   // what CNI said
	agents   map[string]*job           // by host
	jobs     map[string]*job           // by name
	server   *etcd.Server
	deferred []func() error
}

type runKey struct{}

// Params returns what testscript.Run needs. Scripts run in parallel, each with
// its own Lab.
func Params(config Config) testscript.Params {
	commands := map[string]Command{}
	for _, set := range []map[string]Command{networkCommands, programCommands, podCommands, probeCommands, serveCommands, etcdCommands, config.Commands} {
		for name, command := range set {
			commands[name] = command
		}
	}
	commands["eventually"] = eventually
	adapted := map[string]func(*testscript.TestScript, bool, []string){}
	for name := range commands {
		adapted[name] = adapt(name)
	}
	return testscript.Params{
		Dir: config.Dir, Files: config.Files, Cmds: adapted,
		RequireExplicitExec: true, RequireUniqueNames: true,
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			for _, name := range passed {
				if value := os.Getenv(name); value != "" {
					env.Setenv(name, value)
				}
			}
			if config.Setup != nil {
				if err := config.Setup(env); err != nil {
					return err
				}
			}
			return start(env, commands)
		},
	}
}

// start makes the script's Run.
func start(env *testscript.Env, commands map[string]Command) error {
	world, err := lab.New(lab.Config{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &Run{
		Lab: world, work: env.WorkDir, ctx: ctx, commands: commands,
		pods: map[string]*lab.Namespace{}, podAddrs: map[string][]netip.Addr{},
		agents: map[string]*job{}, jobs: map[string]*job{},
	}
	for _, variable := range env.Vars {
		name, _, _ := strings.Cut(variable, "=")
		run.names = append(run.names, name)
	}
	run.names = append(run.names, etcdVar, etcdVar6)
	run.names = append(run.names, passed...)
	env.Values[runKey{}] = run
	env.Defer(func() {
		cancel()
		if err := run.close(); err != nil {
			env.T().Log(err)
			env.T().FailNow()
		}
	})
	return nil
}

func (r *Run) close() error {
	for _, f := range slices.Backward(r.deferred) {
		if err := f(); err != nil {
			return err
		}
	}
	if r.server != nil {
		if err := r.server.Close(); err != nil {
			return err
		}
	}
	for _, jobs := range []map[string]*job{r.agents, r.jobs} {
		for _, j := range jobs {
			j.end(signals["KILL"])
		}
	}
	return r.Lab.Close()
}

// adapt makes a testscript command of the Command of that name.
func adapt(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		run := ts.Value(runKey{}).(*Run)
		run.getenv, run.setenv = ts.Getenv, ts.Setenv
		err := run.invoke(name, neg, args)
		ts.Stdout().Write(run.Stdout.Bytes())
		ts.Stderr().Write(run.Stderr.Bytes())
		if err != nil {
			run.showLogs(ts.Logf)
			ts.Fatalf("%s: %v", name, err)
		}
	}
}

// invoke runs a command that must succeed, or with neg must fail. Its output
// is that of this command alone.
func (r *Run) invoke(name string, neg bool, args []string) error {
	r.Stdout, r.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
	if command, ok := negated[name]; ok && neg {
		return command(r, args)
	}
	err := r.commands[name](r, args)
	switch {
	case err == nil && neg:
		return errors.New("unexpected success")
	case err != nil && neg:
		fmt.Fprintln(r.Stderr, err)
		return nil
	}
	return err
}

// negated are the commands with which "!" asks for more than a failure.
var negated = map[string]Command{"ping": pingSilent, "reach": reachSilent}

// logTail is how much of each log a failure shows.
const logTail = 2500

// showLogs shows the ends of the logs of everything in the background, first of
// what has ended, as that tells most about a failure.
func (r *Run) showLogs(logf func(string, ...any)) {
	var ended, running []*job
	for _, jobs := range []map[string]*job{r.agents, r.jobs} {
		for _, name := range slices.Sorted(maps.Keys(jobs)) {
			if j := jobs[name]; j.running() {
				running = append(running, j)
			} else {
				ended = append(ended, j)
			}
		}
	}
	for _, j := range append(ended, running...) {
		state := "runs"
		if !j.running() {
			state = fmt.Sprint("ended: ", j.cmd.ProcessState)
		}
		text, err := os.ReadFile(j.log)
		if err != nil {
			text = []byte(err.Error())
		}
		logf("[end of %s, %s]\n%s", filepath.Base(j.log), state, text[max(0, len(text)-logTail):])
	}
}

// environment is what programs get.
func (r *Run) environment(more []string) []string {
	var env []string
	for _, name := range r.names {
		if value := r.getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}

// options takes the words of the form name=value with known names, and known
// bare words, off the end of a command's arguments.
func options(args []string, known ...string) (rest []string, values map[string]string) {
	values = map[string]string{}
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		found := false
		for _, k := range known {
			found = found || k == name
		}
		if found {
			values[name] = value
		} else {
			rest = append(rest, arg)
		}
	}
	return rest, values
}

// duration reads an option; it has a default.
func duration(values map[string]string, name string, standard time.Duration) (time.Duration, error) {
	text, ok := values[name]
	if !ok {
		return standard, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s=%s: want a duration, as in 30s", name, text)
	}
	return d, nil
}

func usage(text string) error { return fmt.Errorf("usage: %s", text) }
