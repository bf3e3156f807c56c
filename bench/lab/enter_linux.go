package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The program runs itself in three further roles, told apart by the name it is
// started under (argv[0]).
const (
	roleInit = "weft-lab-init" // process 1 of the private pid namespace
	roleJoin = "weft-lab-join" // becomes a program inside a host
)

// insideEnv names the variable that holds the identity of the lab's pid
// namespace, so that programs started inside know where they are, and a copy
// of the environment elsewhere means nothing.
const insideEnv = "WEFT_LAB"

// File descriptors that the init gets from the process that called Enter.
const (
	lifeFD   = 3 // ends when that process dies
	statusFD = 4 // takes the text of an error
)

var passedOn = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2,
}

func enter() error {
	switch os.Args[0] {
	case roleInit:
		os.Exit(runInit())
	case roleJoin:
		err := join(os.Args[1:])
		fmt.Fprintln(os.Stderr, err)
		os.Exit(127)
	}
	if id, err := os.Readlink("/proc/self/ns/pid"); err == nil && os.Getenv(insideEnv) == id {
		return nil
	}
	code, err := runOutside()
	if err != nil {
		return explain(err)
	}
	os.Exit(code)
	return nil
}

// runOutside runs the program again in new namespaces and waits for it.
func runOutside() (code int, err error) {
	// The kernel ties the parent-death signal to the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)

	cmd, status, life, err := startInit()
	if err != nil {
		return 0, err
	}
	defer life.Close()
	defer status.Close()
	text, err := io.ReadAll(status)
	if err != nil || len(text) > 0 {
		life.Close()
		return 0, errors.Join(errors.New(string(text)), err, ignoreExit(cmd.Wait()))
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			cmd.Process.Signal(sig) // it may have just ended
		case err := <-done:
			return cmd.ProcessState.ExitCode(), ignoreExit(err)
		}
	}
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil
	}
	return err
}

// startInit starts the init, as root without a user namespace if possible.
func startInit() (cmd *exec.Cmd, status, life *os.File, err error) {
	lifeRead, life, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer lifeRead.Close()
	status, statusWrite, err := os.Pipe()
	if err != nil {
		life.Close()
		return nil, nil, nil, err
	}
	defer statusWrite.Close()
	for _, userNS := range []bool{false, true} {
		if !userNS && os.Geteuid() != 0 {
			continue
		}
		cmd = exec.Command("/proc/self/exe")
		cmd.Args = append([]string{roleInit}, os.Args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.ExtraFiles = []*os.File{lifeRead, statusWrite}
		cmd.SysProcAttr = newNamespaces(userNS)
		if err = cmd.Start(); err == nil {
			return cmd, status, life, nil
		}
	}
	life.Close()
	status.Close()
	return nil, nil, nil, fmt.Errorf("make namespaces: %w", err)
}

func newNamespaces(userNS bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		// Its own process group: an interrupt typed at the terminal reaches it
		// once, passed on, and not twice.
		Setpgid: true,
	}
	if userNS {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// runInit is process 1: it prepares the namespaces, starts the program proper,
// and reaps whatever orphans come to it. The program is its child, so that no
// reaping in here can take the exit status of a child of the program.
func runInit() int {
	unix.CloseOnExec(lifeFD)
	unix.CloseOnExec(statusFD)
	go func() {
		io.Copy(io.Discard, os.NewFile(lifeFD, "life")) // ends with the process outside, which alone holds the other end
		os.Exit(1)                                      // and with process 1 everything in the namespace
	}()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	status := os.NewFile(statusFD, "status")
	child, err := startProper()
	if err != nil {
		io.WriteString(status, err.Error())
		return 1
	}
	status.Close()
	go func() {
		for sig := range signals {
			child.Signal(sig) // it may have just ended
		}
	}()
	return reap(child.Pid)
}

// reap collects children until the one with the given pid ends, and returns
// its exit code as a shell would.
func reap(pid int) int {
	for {
		var ws unix.WaitStatus
		switch ended, err := unix.Wait4(-1, &ws, 0, nil); {
		case err == unix.EINTR:
		case err != nil:
			return 1
		case ended == pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case ended == pid:
			return ws.ExitStatus()
		}
	}
}

// startProper makes the namespaces fit to live in and starts the program.
func startProper() (*os.Process, error) {
	if err := prepareLab(); err != nil {
		return nil, err
	}
	id, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	return os.StartProcess("/proc/self/exe", os.Args[1:], &os.ProcAttr{
		Env:   append(os.Environ(), insideEnv+"="+id),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
}

func prepareLab() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return tun.Close()
}

// join becomes a program in other namespaces; args are the files of those
// namespaces, joined by ':', the program and its arguments. It returns only if
// that fails.
func join(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s: want NAMESPACES PROGRAM [ARGUMENT...]", roleJoin)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	var files []*os.File
	for _, path := range strings.Split(args[0], ":") {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	if err := setNamespaces(files); err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, args[1:], os.Environ()))
}
