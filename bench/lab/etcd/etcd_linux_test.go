package etcd

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestServesHosts(t *testing.T) {
	world := labtest.New(t)
	host := labtest.Host(t, world, lab.HostConfig{Name: "a"})
	router := world.Switches()[0]
	config := Config{
		Namespace: world.Outside(), Dir: t.TempDir(),
		Addrs: []netip.Addr{router.Router(4), router.Router(6)},
	}
	for round := range 2 {
		server, err := Start(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		client := server.Client()
		got, err := client.Get(t.Context(), "key")
		if err != nil || int(got.Count) != round {
			t.Errorf("round %d: key is there %d times: %v", round, got.Count, err)
		}
		if _, err := client.Put(t.Context(), "key", "value"); err != nil {
			t.Error(err)
		}
		for _, endpoint := range server.Endpoints() {
			transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return host.Dial(ctx, network, addr)
			}}
			response, err := (&http.Client{Transport: transport}).Get(endpoint + "/health")
			if err != nil || response.StatusCode != http.StatusOK {
				t.Errorf("%s: %v %v", endpoint, response, err)
				continue
			}
			response.Body.Close()
			transport.CloseIdleConnections()
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}
