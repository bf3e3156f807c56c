package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// Installed are the paths whose programs this machine has; all but those of
// other projects always are.
func Installed() (paths []Path) {
	for _, p := range Paths {
		if _, foreign := packages[p.Name]; foreign {
			if _, err := exec.LookPath(p.Name); err != nil {
				continue
			}
		}
		paths = append(paths, p)
	}
	return paths
}

// helper is a program that a path needs for as long as it is up.
type helper struct{ *exec.Cmd }

func (h helper) close() error {
	err := h.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	_ = h.Wait() // it was killed
	return err
}

// help starts a program on a host.
func (p *pair) help(ctx context.Context, number int, name string, args ...string) (*exec.Cmd, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, fmt.Errorf("%w: as root, run: apt-get install --no-install-recommends %s", err, packages[name])
	}
	cmd := p.sites[number].host.Command(ctx, name, args...)
	said := &lines{say: func(line string) { p.bench.Detail(fmt.Sprintf("%s: %s", name, line)) }}
	cmd.Stderr = said
	if cmd.Stdout == nil {
		cmd.Stdout = said
	}
	return cmd, nil
}

// packages are those of Debian that bring what helps.
var packages = map[string]string{"unshare": "util-linux", "slirp4netns": "slirp4netns", "pasta": "passt"}

// private makes a network namespace of an ordinary user's own on a host, where
// the tunnel's device and programs then are. pid is a process in it.
func (p *pair) private(ctx context.Context, number int) (pid string, err error) {
	cmd, err := p.help(ctx, number, "unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep infinity")
	if err != nil {
		return "", err
	}
	cmd.Stdout = nil
	output, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	p.helpers = append(p.helpers, helper{cmd})
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		return "", fmt.Errorf("make user and network namespace: %w", err)
	}
	pid = strconv.Itoa(cmd.Process.Pid)
	s := p.sites[number]
	s.place, err = s.host.Adopt("private", "/proc/"+pid+"/ns/net")
	return pid, err
}

// weftRootless is weftToWeft without rights on the host: sockets are in the
// host's network namespace, the TUN is in one of an ordinary user.
func weftRootless(ctx context.Context, p *pair, number int) error {
	pid, err := p.private(ctx, number)
	if err != nil {
		return err
	}
	config := p.vxlanConfig(number)
	config.Peer.RemoteChecksum = true
	config.User = pid
	return p.userspace(ctx, "weft", number, config)
}

// openTranslated leads what leaves a private network namespace through a
// program that opens a socket of the host's for each connection. Nothing
// reaches in.
func openTranslated(name string, args func(pid string) []string) func(context.Context, *pair) (*way, error) {
	return func(ctx context.Context, p *pair) (*way, error) {
		pid, err := p.private(ctx, 0)
		if err != nil {
			return nil, err
		}
		// Both answer echo requests by sockets that the host has to allow.
		err = p.sites[0].host.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
		})
		if err != nil {
			return nil, fmt.Errorf("allow echo requests: %w", err)
		}
		cmd, err := p.help(ctx, 0, name, args(pid)...)
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return nil, err
		}
		p.helpers = append(p.helpers, helper{cmd})
		if err := p.awaitRoute(ctx); err != nil {
			return nil, fmt.Errorf("wait for %s: %w", name, err)
		}
		return &way{from: p.sites[0].place, to: p.sites[1].place, addr: p.sites[1].outer}, nil
	}
}

// awaitRoute waits until the first site's place has a route to the second.
func (p *pair) awaitRoute(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := p.sites[0].place.Dial(ctx, "udp", netip.AddrPortFrom(p.sites[1].outer, pingPort).String())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func slirpArgs(pid string) []string { return []string{"--configure", "--mtu=1500", pid, "tap0"} }

func pastaArgs(pid string) []string {
	return []string{"--foreground", "--quiet", "--runas", "0", "--ipv4-only", "--mtu", "1500", "--config-net", pid}
}

// inside runs functions in the network namespace of a process, as the agent does.
func (c endConfig) inside() func(func() error) error {
	if c.User == "" {
		return nil
	}
	return func(f func() error) error { return inNetwork("/proc/"+c.User+"/ns/net", f) }
}
