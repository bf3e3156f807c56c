package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/bench/demo"
)

// demoOptions are the flags of demo.
type demoOptions struct {
	json, keep bool
	inProcess  bool
	kube, weft string
	cni        []string
}

func demoCommand(lacking error) *cobra.Command {
	var o demoOptions
	command := &cobra.Command{
		Use:   "demo",
		Short: "Show unlike hosts in one network",
		Long: "Makes throw-away hosts on this machine, with two pods each: two on kernel VXLAN, two on the userspace engine, one whose\n" +
			"agent is an ordinary user's (rootless), and one, the laptop, without rights, device or pods. Prints their leases, pings\n" +
			"every pod from every other, uses the laptop's ports and proxy, and measures TCP. Needs no root. Everything is gone\n" +
			"when it ends.\n\n" +
			"With --in-process, and always where there are no namespaces (macOS, Windows, FreeBSD), all hosts are like the laptop, and\n" +
			"in one process: they have no kernel networking and need no rights at all. Exit code 0: every pod reached every other; 1: not so; 2: wrong usage; 3: this machine cannot do it.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.inProcess || errors.Is(lacking, errors.ErrUnsupported) {
				return o.runInProcess(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			if lacking != nil {
				return unsupportedError{fmt.Errorf("the demo cannot run on this machine: %w (%s shows a part of it)", lacking, inProcessFlag)}
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := command.Flags()
	f.SortFlags = false
	f.BoolVar(&o.json, "json", false, "print one JSON document on standard output, progress on standard error")
	f.BoolVar(&o.keep, "keep", false, "leave everything up until interrupted, and say how to step into a host")
	f.BoolVar(&o.inProcess, strings.TrimPrefix(inProcessFlag, "--"), false, "all hosts in this process, without namespaces")
	f.StringVar(&o.kube, "kube", "", "lease from a real Kubernetes, run by this weft-kube program, instead of etcd")
	f.StringVar(&o.weft, "weft", "", "the weft program (default $WEFT_BIN, else beside weft-lab)")
	f.StringArrayVar(&o.cni, "cni", nil, "directory of CNI plugins, repeatable (default $CNI_PATH, else ../.cache/cni beside weft-lab)")
	return command
}

// inProcessFlag is looked for before flags are parsed.
const inProcessFlag = "--in-process"

// soloHosts are enough to see that a third does not disturb two.
const soloHosts = 3

func (o demoOptions) runInProcess(ctx context.Context, stdout, stderr io.Writer) error {
	if o.keep || o.kube != "" {
		return usageError{errors.New("--keep and --kube need namespaces: leave them out, or run the demo on Linux without " + inProcessFlag)}
	}
	said := stdout
	if o.json {
		said = stderr
	}
	report, err := demo.InProcess{Hosts: soloHosts, Progress: progress(said)}.Run(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	return errors.Join(o.print(report, stdout), report.Err())
}

// print writes the report as the user wants it.
func (o demoOptions) print(report demo.Report, stdout io.Writer) error {
	if o.json {
		return report.WriteJSON(stdout)
	}
	fmt.Fprintln(stdout)
	return report.WriteText(stdout)
}

func (o demoOptions) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	cfg, self, err := o.config()
	if err != nil {
		return err
	}
	said := stdout
	if o.json {
		said = stderr
	}
	cfg.Progress = progress(said)
	d, err := demo.Start(ctx, cfg)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	report, err := d.Measure(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := o.print(report, stdout); err != nil {
		return err
	}
	if o.keep {
		if err := keep(ctx, d, said, self); err != nil {
			return err
		}
	}
	return report.Err()
}

// interrupted is err, or that the user has ended it all: what fails because of
// that is not worth telling.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// config finds the programs.
func (o demoOptions) config() (cfg demo.Config, self string, err error) {
	if self, err = os.Executable(); err != nil {
		return demo.Config{}, "", fmt.Errorf("find this program: %w", err)
	}
	dir := filepath.Dir(self)
	cfg = demo.Config{CNI: o.cni, Kube: o.kube}
	if cfg.Weft, err = findWeft(o.weft, dir); err != nil {
		return demo.Config{}, "", err
	}
	if len(cfg.CNI) == 0 {
		cfg.CNI = filepath.SplitList(os.Getenv("CNI_PATH"))
	}
	if len(cfg.CNI) == 0 {
		cfg.CNI = []string{filepath.Join(dir, "..", ".cache", "cni")}
	}
	cfg.CNI = append(cfg.CNI, dir)
	for i, path := range cfg.CNI {
		if cfg.CNI[i], err = filepath.Abs(path); err != nil {
			return demo.Config{}, "", fmt.Errorf("find %s: %w", path, err)
		}
	}
	return cfg, self, nil
}

// findWeft finds the weft program: the one that is given, else the one that
// the environment names, else the one in the directory of this program.
func findWeft(given, dir string) (path string, err error) {
	path = given
	if path == "" {
		path = os.Getenv("WEFT_BIN")
	}
	if path == "" {
		path = filepath.Join(dir, "weft")
	}
	if path, err = filepath.Abs(path); err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("find weft: %w (run: make build)", err)
	}
	return path, nil
}

// progress prints lines with the time since the start.
func progress(w io.Writer) func(string) {
	var mu sync.Mutex
	start := time.Now()
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%5.1f s  %s\n", time.Since(start).Seconds(), line)
	}
}

// keep waits until the user has seen enough.
func keep(ctx context.Context, d *demo.Demo, w io.Writer, self string) error {
	if err := d.Open(); err != nil {
		return err
	}
	fmt.Fprintf(w, `
All of it stays up until Ctrl-C. Meanwhile, from another terminal:

  %[1]s exec kernel1                    # a shell on a host
  %[1]s exec user1 -- weft status       # or any program there
  %[1]s exec user1 -- tail -f /run/weft/agent.log
  %[1]s exec kernel1/a -- ip addr       # in a pod
  %[1]s exec laptop -- weft expose      # what a host without a device lets in
  %[1]s exec laptop -- weft exec -- sh  # a shell there whose only way out is the overlay
`, self)
	<-ctx.Done()
	return nil
}
