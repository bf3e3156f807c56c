package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/bench/lab"
)

// process is a userspace end that runs on a host, seen from the bench. It is
// asked one thing at a time.
type process struct {
	kind    string
	host    string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	ask     *json.Encoder
	answers *json.Decoder
	stderr  *lines
}

// reading is what an end says of itself: sums since its start.
type reading struct {
	Error       string            `json:"error,omitempty"`
	Counters    map[string]uint64 `json:"counters"`
	Allocations uint64            `json:"allocations"` // heap objects
	usage       usage             // as the kernel sees it
}

// startEnd starts an end and waits until it is ready to carry packets. It ends
// with ctx, when closed, and with the bench, whatever happens to that.
func (b *bench) startEnd(ctx context.Context, host *lab.Host, kind string, config endConfig) (p *process, err error) {
	// The host's name is for people who look for the process from outside.
	words := append(slices.Clone(b.End), kind, host.Name())
	if config.User != "" {
		words = append([]string{"nsenter", "--preserve-credentials", "--user", "--target=" + config.User}, words...)
	}
	p = &process{kind: kind, host: host.Name(), cmd: host.Command(ctx, words[0], words[1:]...)}
	p.stderr = &lines{say: func(line string) { b.Detail(fmt.Sprintf("%s on %s: %s", kind, host.Name(), line)) }}
	p.cmd.Stderr = p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.ask, p.answers = json.NewEncoder(p.stdin), json.NewDecoder(stdout)
	if b.Profile != "" {
		config.Profile = filepath.Join(b.Profile, kind+"-"+host.Name()+".pprof")
	}
	if _, err := p.request(config); err != nil {
		return nil, errors.Join(err, p.close())
	}
	b.Detail(fmt.Sprintf("%s runs on %s; from outside: pgrep -f '%s %s$'", kind, host.Name(), kind, host.Name()))
	return p, nil
}

// read asks for the sums.
func (p *process) read() (reading, error) {
	r, err := p.request("read")
	if err == nil {
		r.usage, err = readUsage(p.cmd.Process.Pid)
	}
	return r, err
}

func (p *process) request(what any) (r reading, err error) {
	if err = p.ask.Encode(what); err == nil {
		err = p.answers.Decode(&r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return r, fmt.Errorf("ask %s on %s: %w%s", p.kind, p.host, err, p.stderr.last())
	}
	return r, nil
}

// close ends the process: it stops when its input does.
func (p *process) close() error {
	p.stdin.Close()
	kill := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end %s on %s: %w%s", p.kind, p.host, err, p.stderr.last())
	}
	return nil
}

// lines passes text on line by line and keeps the last line.
type lines struct {
	say func(string)

	mu   sync.Mutex
	part string // of a line that has not ended
	kept string
}

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part += string(text)
	for {
		line, rest, whole := strings.Cut(l.part, "\n")
		if !whole {
			return len(text), nil
		}
		l.part, l.kept = rest, line
		l.say(line)
	}
}

// last is what was said last, for the end of an error.
func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == "" {
		return ""
	}
	return ": it said: " + l.kept
}
