package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/script"
)

// steady keeps packets going between two places while a script does something,
// and counts those that are lost:
//
//	steady FROM TO      begin
//	steady-end          end; fails if one was lost
type steady struct {
	mu      sync.Mutex
	running map[*script.Run]*stream
}

// stream is one request after the other, each waiting for its answer.
type stream struct {
	cancel context.CancelFunc
	done   chan struct{}
	sent   int
	lost   []error
}

// pace is the time between an answer and the next request.
const pace = 5 * time.Millisecond

func (s *steady) commands() map[string]script.Command {
	return map[string]script.Command{"steady": s.begin, "steady-end": s.end}
}

func (s *steady) begin(run *script.Run, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: steady FROM TO")
	}
	from, err := run.Place(args[0])
	if err != nil {
		return err
	}
	addrs, err := run.Addresses(args[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	flow := &stream{cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = map[*script.Run]*stream{}
	}
	if s.running[run] != nil {
		cancel()
		return errors.New("steady is running already")
	}
	s.running[run] = flow
	go func() {
		defer close(flow.done)
		for ctx.Err() == nil {
			_, err := from.Ping(ctx, lab.Probe{To: addrs[0], Timeout: time.Second})
			if ctx.Err() != nil {
				return
			}
			flow.sent++
			if err != nil {
				flow.lost = append(flow.lost, err)
			}
			time.Sleep(pace)
		}
	}()
	return nil
}

func (s *steady) end(run *script.Run, _ []string) error {
	s.mu.Lock()
	flow := s.running[run]
	delete(s.running, run)
	s.mu.Unlock()
	if flow == nil {
		return errors.New("steady was not begun")
	}
	flow.cancel()
	<-flow.done
	fmt.Fprintf(run.Stdout, "%d sent, %d lost\n", flow.sent, len(flow.lost))
	if len(flow.lost) > 0 {
		return fmt.Errorf("%d of %d packets lost: %w", len(flow.lost), flow.sent, flow.lost[0])
	}
	if flow.sent == 0 {
		return errors.New("not one packet was sent")
	}
	return nil
}
