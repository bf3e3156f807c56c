package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/script"
)

// steady keeps packets going between two places, or data on one TCP connection
// to an echo service, while a script does something, and counts what is lost:
//
//	steady FROM TO                begin with packets
//	steady FROM tcp ADDRESS:PORT  begin with a connection
//	steady-end                    end; fails if anything was lost
type steady struct{ running[stream] }

// stream is one request after the other, each waiting for its answer.
type stream struct {
	ask    func() error // sends one request and waits for its answer
	cancel context.CancelFunc
	done   chan struct{}
	sent   int
	lost   []error
}

const (
	pace     = 5 * time.Millisecond // from an answer to the next request
	patience = 10 * time.Second     // for an answer on a connection, which sends again what is lost
)

func (s *steady) commands() map[string]script.Command {
	return map[string]script.Command{"steady": s.start, "steady-end": s.finish}
}

func (s *steady) start(run *script.Run, args []string) error {
	return s.begin(run, "steady", func() (*stream, error) {
		flow, err := newStream(run, args)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		flow.cancel, flow.done = cancel, make(chan struct{})
		go flow.run(ctx)
		return flow, nil
	})
}

// run asks until ctx ends, and then once more: what was done last has to have
// its effect.
func (f *stream) run(ctx context.Context) {
	defer close(f.done)
	for ended := false; !ended; time.Sleep(pace) {
		ended = ctx.Err() != nil
		f.sent++
		if err := f.ask(); err != nil {
			f.lost = append(f.lost, err)
		}
	}
}

func newStream(run *script.Run, args []string) (*stream, error) {
	if len(args) != 2 && (len(args) != 3 || args[1] != "tcp") {
		return nil, errors.New("usage: steady FROM TO | steady FROM tcp ADDRESS:PORT")
	}
	from, err := run.Place(args[0])
	if err != nil {
		return nil, err
	}
	if len(args) == 3 {
		conn, err := from.Dial(context.Background(), "tcp", args[2])
		if err != nil {
			return nil, err
		}
		run.Defer(conn.Close)
		return &stream{ask: func() error { return askOn(conn) }}, nil
	}
	addrs, err := run.Addresses(args[1])
	if err != nil {
		return nil, err
	}
	return &stream{ask: func() error {
		_, err := from.Ping(context.Background(), lab.Probe{To: addrs[0], Timeout: time.Second})
		return err
	}}, nil
}

// askOn sends to an echo service on a connection.
func askOn(conn net.Conn) error {
	sent := bytes.Repeat([]byte("weft"), 1<<10)
	got := make([]byte, len(sent))
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("the answer is not what was sent")
	}
	return nil
}

func (s *steady) finish(run *script.Run, _ []string) error {
	flow, err := s.end(run, "steady")
	if err != nil {
		return err
	}
	flow.cancel()
	<-flow.done
	fmt.Fprintf(run.Stdout, "%d sent, %d lost\n", flow.sent, len(flow.lost))
	if len(flow.lost) > 0 {
		return fmt.Errorf("%d of %d requests lost: %w", len(flow.lost), flow.sent, flow.lost[0])
	}
	return nil
}
