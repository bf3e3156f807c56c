package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/control/agent"
)

// Paths on every host.
const (
	socketPath = "/run/weft/weft.sock"
	logPath    = "/run/weft/agent.log"
)

// member is a host with its agent and pods.
type member struct {
	*lab.Host
	kind   kind
	agent  *exec.Cmd
	log    *os.File
	ended  chan struct{} // closed when the agent has ended, with cause set
	cause  error
	status agent.Status // as last heard
	pods   []Pod
}

// startAgent starts weft on a host that has joined the datastore.
func (d *Demo) startAgent(ctx context.Context, m *member) error {
	if err := m.prepare(d.store.files); err != nil {
		return fmt.Errorf("prepare host %s: %w", m.Name(), err)
	}
	argv := slices.Concat(m.kind.agent(d.cfg.Weft), []string{"--node-name=" + m.Name()}, d.store.args)
	m.agent = m.Command(ctx, argv[0], argv[1:]...)
	m.agent.Stdout, m.agent.Stderr = m.log, m.log
	if err := m.agent.Start(); err != nil {
		return fmt.Errorf("start agent of %s: %w", m.Name(), err)
	}
	m.ended = make(chan struct{})
	go func() {
		m.cause = m.agent.Wait()
		close(m.ended)
	}()
	return nil
}

// agent is the command line of an agent, but for where it leases from.
func (k kind) agent(weft string) []string {
	switch k {
	case rootless:
		return withoutRights(weft, "agent", "--rootless", "--ip-masq")
	case deviceless:
		return withoutRights(weft, "agent", "--device=netstack",
			fmt.Sprintf("--expose=%d=%s", echoPort, echoAt), fmt.Sprintf("--expose=udp:%d=%s", echoPort, echoAt),
			fmt.Sprintf("--expose=%d=%s", sinkPort, sinkAt), "--proxy="+proxyAt.String())
	}
	return []string{weft, "agent", "--engine=" + string(k), "--ip-masq"}
}

// withoutRights is a command line that an ordinary user could give: root keeps
// its number, as there is no other in a lab, and the one right that lets it be
// root of a further user namespace.
func withoutRights(argv ...string) []string {
	return append([]string{"setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all,+setfcap", "--no-new-privs"}, argv...)
}

// prepare writes files on the host and opens the agent's log there, where it
// goes away with the host.
func (m *member) prepare(files map[string][]byte) error {
	return m.Do(func() (err error) {
		for path, text := range files {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
			return err
		}
		m.log, err = os.OpenFile(logPath, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
		return err
	})
}

// close waits for the agent, which the end of its host has killed.
func (m *member) close() error {
	if m.ended != nil {
		<-m.ended
	}
	if m.log != nil {
		return m.log.Close()
	}
	return nil
}

// waitReady waits until every agent is ready and has a working way to every
// other host.
func (d *Demo) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	ready := map[string]bool{}
	for {
		for _, m := range d.members {
			why := m.unready(ctx, len(d.members)-1)
			if why == nil && !ready[m.Name()] {
				ready[m.Name()] = true
				d.cfg.Progress(fmt.Sprintf("%s reaches its peers: %s engine, %s", m.Name(), m.kind, strings.Join(m.status.Subnets, " ")))
			}
			gaveUp := ctx.Err() != nil || errors.Is(why, errAgentEnded)
			if why != nil && gaveUp {
				return fmt.Errorf("host %s is not ready: %w\nthe end of its log:\n%s", m.Name(), why, m.lastLines(15))
			}
		}
		if len(ready) == len(d.members) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var errAgentEnded = errors.New("its agent has ended")

// unready says why the host cannot be used yet.
func (m *member) unready(ctx context.Context, peers int) error {
	select {
	case <-m.ended:
		return fmt.Errorf("%w: %w", errAgentEnded, m.cause)
	default:
	}
	status, err := agent.FetchStatus(ctx, m.socket())
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	m.status = status
	return readiness(status, peers)
}

// readiness says why a host cannot be used yet.
func readiness(status agent.Status, peers int) error {
	up := slices.DeleteFunc(slices.Clone(status.Peers), func(p agent.PeerStatus) bool { return p.State != agent.StateUp })
	switch {
	case !status.Ready:
		return fmt.Errorf("state %s: %s", status.State, status.Reason)
	case len(up) < peers:
		return fmt.Errorf("%d of %d peers are up: %s", len(up), peers, peersText(status.Peers))
	}
	return nil
}

// socket is the agent's local API. Its own root directory shows it to this
// process, too.
func (m *member) socket() string {
	return fmt.Sprintf("/proc/%d/root%s", m.agent.Process.Pid, socketPath)
}

func peersText(peers []agent.PeerStatus) string {
	var parts []string
	for _, p := range peers {
		parts = append(parts, strings.TrimSpace(p.Name+" "+p.State+" "+p.Reason))
	}
	return strings.Join(parts, ", ")
}

// lastLines is the end of the agent's log, indented.
func (m *member) lastLines(n int) string {
	const most = 64 << 10
	size, err := m.log.Seek(0, io.SeekEnd)
	if err != nil {
		return "  " + err.Error()
	}
	text, err := io.ReadAll(io.NewSectionReader(m.log, max(0, size-most), most))
	if err != nil {
		return "  " + err.Error()
	}
	if len(text) == 0 {
		return "  (it is empty)"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}
