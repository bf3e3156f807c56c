package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/tunnel"
)

// stranger is a host that takes no part in the connections of a test: number
// says its subnets, version its address and MAC.
func stranger(number, version int) (peers []tunnel.Peer) {
	for _, is4 := range []bool{true, false} {
		peers = append(peers, tunnel.Peer{
			Name: fmt.Sprintf("stranger%d", number), Prefixes: []netip.Prefix{subnet(number, is4)},
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(version), byte(number)}), 8472),
			MAC:      tunnel.MAC{2, 1, 0, 0, byte(version), byte(number)}, VNI: 7, MTU: testMTU,
		})
	}
	return peers
}

// TestConnectionsOutliveLeases: a connection carries data on while leases of
// other hosts come, change and go.
func TestConnectionsOutliveLeases(t *testing.T) {
	var crowd []tunnel.Peer
	for number := 10; number < 250; number++ {
		crowd = append(crowd, stranger(number, 0)...)
	}
	changes := []struct {
		name   string
		others []tunnel.Peer
	}{
		{"one joins", stranger(3, 0)},
		{"another joins", append(stranger(3, 0), stranger(4, 0)...)},
		{"one has a new address and MAC", append(stranger(3, 1), stranger(4, 0)...)},
		{"one has another subnet", append(stranger(5, 1), stranger(4, 0)...)},
		{"they change places", append(stranger(4, 1), stranger(5, 0)...)},
		{"many join", crowd},
		{"many change", append(stranger(3, 0), crowd[20:]...)},
		{"all leave", nil},
	}
	wires(t, func(t *testing.T, a, b *site) {
		for _, is4 := range []bool{true, false} {
			dialled, accepted := connect(t, a, b, is4)
			group, ctx := errgroup.WithContext(timeout(t, time.Minute))
			defer context.AfterFunc(ctx, func() { dialled.Close(); accepted.Close() })()
			group.Go(func() error {
				defer accepted.Close()
				_, err := io.Copy(accepted, accepted)
				return err
			})
			answers, enough := make(chan struct{}), make(chan struct{})
			group.Go(func() error { return talk(dialled, answers, enough) })
			for _, change := range changes {
				for s, peer := range map[*site]*site{a: b, b: a} {
					if err := s.engine.SetPeers(append(peers(peer), change.others...)); err != nil {
						t.Fatalf("%s: %v", change.name, err)
					}
				}
				for range 2 { // the first may be to what was sent before
					select {
					case <-answers:
					case <-ctx.Done():
						t.Fatalf("%s, and the connection (v4=%v) is no more: %v", change.name, is4, group.Wait())
					}
				}
			}
			close(enough)
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
		}
	})
}

// talk sends to a connection that answers with the same, and tells who listens
// of each right answer, until it is enough.
func talk(conn net.Conn, answers chan<- struct{}, enough <-chan struct{}) error {
	defer conn.Close()
	sent := bytes.Repeat([]byte("weft"), 16<<10)
	got := make([]byte, len(sent))
	for round := byte(0); ; round++ {
		sent[0] = round
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, got); err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return errors.New("the answer is not what was sent")
		}
		select {
		case answers <- struct{}{}:
		case <-enough:
			return nil
		default:
		}
	}
}
