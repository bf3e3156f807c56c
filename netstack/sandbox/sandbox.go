// Package sandbox runs a program whose only way out leads into the overlay: in
// a user and network namespace of its own, where a TUN takes everything it
// sends, and all its connections are dialled by the agent. It is for hosts whose
// own network stack does not reach the overlay. It must never touch the host's
// network, and lets nothing out but through the agent.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/netstack/local"
)

// Config says what to run.
type Config struct {
	// Argv is the program and its arguments. It has this process's environment,
	// input and output.
	Argv   []string
	Client *local.Client
	Logger *slog.Logger
}

// ErrUnavailable means that this system, or this user here, has no such
// namespaces or no TUN in them.
var ErrUnavailable = errors.New("no namespace with a TUN for this user")

// ExitError is the end of a program that failed by itself.
type ExitError struct{ Code int }

// Error implements error.
func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// resolvConf tells the program where cluster DNS is. Of servers on other ports
// than DNS' own it cannot speak.
func resolvConf(way local.Way) string {
	var b strings.Builder
	for _, server := range way.DNS {
		if server.Port() == 53 {
			fmt.Fprintf(&b, "nameserver %s\n", server.Addr())
		}
	}
	if len(way.Search) > 0 {
		fmt.Fprintf(&b, "search default.%s %s\noptions ndots:5\n", way.Search[0], strings.Join(way.Search, " "))
	}
	return b.String()
}

// RunWithProxy runs config.Argv with a proxy of the overlay in its environment.
func RunWithProxy(ctx context.Context, config Config, proxy string) error {
	return run(ctx, config,
		"ALL_PROXY=socks5h://"+proxy, "all_proxy=socks5h://"+proxy,
		"HTTP_PROXY=http://"+proxy, "http_proxy=http://"+proxy,
		"HTTPS_PROXY=http://"+proxy, "https_proxy=http://"+proxy,
		"NO_PROXY=localhost,127.0.0.1,::1", "no_proxy=localhost,127.0.0.1,::1")
}

// RunAsIs runs config.Argv where everything it needs can be reached.
func RunAsIs(ctx context.Context, config Config) error { return run(ctx, config) }

func run(ctx context.Context, config Config, env ...string) error {
	command := exec.CommandContext(ctx, config.Argv[0], config.Argv[1:]...)
	command.Env = append(os.Environ(), env...)
	return await(command)
}

// await runs a command on this process's input and output. What the terminal
// sends reaches it by itself; what is sent to this process alone is passed on.
func await(command *exec.Cmd) error {
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := command.Start(); err != nil {
		return fmt.Errorf("run %s: %w", command.Path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM {
				_ = command.Process.Signal(s) // it may have ended meanwhile, which is what comes next
			}
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return ExitError{exitCode(exit)}
			}
			return err
		}
	}
}

// exitCode is as shells have it: a signal counts from 128 on.
func exitCode(exit *exec.ExitError) int {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// idleFor is how long a UDP flow lasts on which nothing is said.
const idleFor = 2 * time.Minute

// idling closes a connection on which nothing was read or written for idleFor.
type idling struct {
	net.Conn
	timer *time.Timer
}

func newIdling(c net.Conn) idling {
	return idling{c, time.AfterFunc(idleFor, func() { c.Close() })}
}

func (c idling) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.timer.Reset(idleFor)
	return n, err
}

func (c idling) Write(b []byte) (int, error) {
	c.timer.Reset(idleFor)
	return c.Conn.Write(b)
}

func (c idling) Close() error {
	c.timer.Stop()
	return c.Conn.Close()
}

// gateAddresses are the far end of the TUN; of networks for benchmarks, which
// nobody reaches anything in (RFC 2544, RFC 5180).
func gateAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:2::1")}
}
