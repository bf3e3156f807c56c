package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/tunnel/userns"
)

// rootless is what the flags say of a host whose user has no rights: the engine
// and its sockets stay in the host's network namespace, and what it programs is
// in another one, where the containers are.
type rootless struct {
	ask   bool
	netns string
}

func (o *options) registerRootless(f *pflag.FlagSet) {
	f.BoolVar(&o.rootless.ask, "rootless", false, "use a network namespace of this user's own for TUN, routes and pods, and the host's for\n"+
		"everything else; needs no rights, and is what an ordinary user gets (see 'weft netns')")
	f.StringVar(&o.rootless.netns, "netns", "", "with --rootless: the network namespace where the containers are, as in /proc/PID/ns/net\n"+
		"(default: one that weft makes, which stays when the agent ends)")
}

// wanted reports whether this process is to run without rights.
func (r rootless) wanted(device string) bool {
	return r.ask || r.netns != "" || device != "netstack" && ordinaryUser() && !userns.Privileged()
}

// errNoTUN is wrapped by what says why an ordinary user has no TUN here. What
// needs none can still be had.
var errNoTUN = errors.New("no TUN for an ordinary user")

// enterRootless leads an agent that is to run without rights into the user
// namespace where it has some: the program runs again there, and this function
// does not return. Else it returns the network namespace to program, which is
// nil where that is the host's. The error wraps errNoTUN where the machine is
// in the way.
func (o *options) enterRootless(ctx context.Context, logger *slog.Logger) (*userns.Inner, error) {
	inner, err := userns.Inside()
	switch {
	case err != nil:
		return nil, err
	case inner != nil:
		logger.Info("rootless: sockets are in the host's network namespace; TUN, routes and pods in another",
			"socket", o.socket, "subnet_file", o.subnetFile)
		return inner, nil
	case !o.rootless.wanted(o.device):
		return nil, nil
	case o.device == "kernel" || o.device == "netstack":
		return nil, usageError{fmt.Errorf("--rootless does not go with --device=%s: leave one of them out", o.device)}
	}
	if err := usableTUN(); err != nil {
		return nil, fmt.Errorf("rootless: %w: %w", errNoTUN, err)
	}
	return nil, o.rootless.enter(ctx, o.runDir, []string{
		"--socket=" + o.socket, "--subnet-file=" + o.subnetFile, "--state-dir=" + o.wireGuard.stateDir,
	}, logger)
}

// enterAgain is the same for what comes after the agent, and makes no
// namespace. Nothing says that there is none to look into.
func (r rootless) enterAgain(ctx context.Context, runDir, subnetFile string, logger *slog.Logger) (inner *userns.Inner, nothing bool, err error) {
	if inner, err = userns.Inside(); err != nil || inner != nil {
		return inner, false, err
	}
	if r.netns == "" {
		if _, err := userns.Holder(runDir); err != nil {
			return nil, r.wanted("auto"), nil
		}
	}
	return nil, false, r.enter(ctx, runDir, []string{"--subnet-file=" + subnetFile}, logger)
}

// enter runs the program again in the namespaces, and returns only if that
// fails. This user is root there, so that the default paths have to be told.
func (r rootless) enter(ctx context.Context, runDir string, more []string, logger *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("rootless: find this program: %w", err)
	}
	namespaces, err := userns.Open(ctx, userns.Config{
		Dir: runDir, Netns: r.netns, Hold: []string{self, "netns", holdCommand}, Logger: logger,
	})
	if errors.Is(err, userns.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", errNoTUN, err)
	}
	if err != nil {
		return fmt.Errorf("rootless: %w", err)
	}
	argv := slices.Concat([]string{self}, os.Args[1:], []string{"--run-dir=" + runDir}, more)
	err = namespaces.Enter(argv, os.Environ())
	return errors.Join(fmt.Errorf("rootless: %w", err), namespaces.Close())
}

// Directories of an agent, and of one that an ordinary user runs.
const (
	systemRunDir     = volatileDir + "/weft"
	systemSubnetFile = volatileDir + "/flannel/subnet.env"
)

// ordinaryUser is false where there are no user numbers.
func ordinaryUser() bool { return os.Geteuid() > 0 }

// defaultRunDir is where the local API is: for an ordinary user below what the
// XDG base directory specification names.
func defaultRunDir() string {
	if !ordinaryUser() {
		return systemRunDir
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "weft")
	}
	uid := strconv.Itoa(os.Geteuid())
	if dir := "/run/user/" + uid; isDir(dir) {
		return filepath.Join(dir, "weft")
	}
	return filepath.Join(os.TempDir(), "weft-"+uid)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// defaultSubnetFile is where flannel's is, or beside the local API.
func defaultSubnetFile() string {
	if !ordinaryUser() {
		return systemSubnetFile
	}
	return filepath.Join(defaultRunDir(), "subnet.env")
}

// holdCommand is what the agent starts to keep a namespace that it has made.
const holdCommand = "hold"

func netnsCommand() *cobra.Command {
	var runDir string
	command := &cobra.Command{
		Use:   "netns",
		Short: "Say how to enter the network namespace of a rootless host",
		Long: "Say how to enter the network namespace that a rootless agent has made. It has the TUN, the routes and the\n" +
			"pods of this host, and stays when the agent ends; 'weft cleanup' ends it.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, err := userns.Holder(runDir)
			if err != nil {
				return explainNetns(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "nsenter --preserve-credentials --user=/proc/%d/ns/user --net=/proc/%d/ns/net\n", pid, pid)
			return nil
		},
	}
	command.PersistentFlags().StringVar(&runDir, "run-dir", defaultRunDir(), "the agent's run directory")
	command.AddCommand(&cobra.Command{
		Use:   "exec -- COMMAND [ARGUMENT...]",
		Short: "Run a command in it, as root of this user's own",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("a command is missing: weft netns exec -- COMMAND [ARGUMENT...]")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return execInside(runDir, args) },
	}, &cobra.Command{
		Use: holdCommand, Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return userns.Hold(cmd.Context()) },
	})
	return command
}

// explainNetns says what a missing namespace means.
func explainNetns(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (has 'weft agent --rootless' run as this user? --run-dir names its directory)", err)
	}
	return err
}

// execInside runs twice, as the agent does.
func execInside(runDir string, args []string) error {
	inner, err := userns.Inside()
	if err != nil {
		return err
	}
	if inner != nil {
		return inner.Exec(args, os.Environ())
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	namespaces, err := userns.Find(runDir)
	if err != nil {
		return explainNetns(err)
	}
	err = namespaces.Enter(append([]string{self, "netns", "exec", "--run-dir=" + runDir, "--"}, args...), os.Environ())
	return errors.Join(err, namespaces.Close())
}
