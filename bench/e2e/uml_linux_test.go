//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab/script"
)

// guestAddress is the guest's on the lab's switch.
var guestAddress = netip.MustParsePrefix("192.168.64.50/24")

// TestSecondKernel has one host that is a real kernel without VXLAN, as an
// ordinary process (user-mode Linux), among hosts with kernel VXLAN.
func TestSecondKernel(t *testing.T) {
	testscript.Run(t, script.Params(script.Config{
		Dir: "testdata/uml",
		Commands: map[string]script.Command{
			"guest":     bootGuest,
			"guest-get": askGuest,
			"guest-pod": attachPod,
			"guest-to":  reachFromGuest,
			"to-guest":  reachGuest,
		},
	}))
}

// bootGuest starts the guest on a host's interface: guest HOST.
func bootGuest(run *script.Run, args []string) error {
	host, err := run.Host(args[0])
	if err != nil {
		return err
	}
	// The host only lends its interface.
	for _, words := range [][]string{{"addr", "flush", "dev", "eth0"}, {"link", "set", "eth0", "promisc", "on"}} {
		if out, err := host.Command(context.Background(), "ip", words...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(words, " "), err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	kernel := []string{"mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet",
		"vec0:transport=raw,ifname=eth0", "con=null", "con0=null,fd:1", "init=" + self}
	for name, value := range map[string]string{
		guestVar: guestAddress.String(), guestEtcdVar: run.Getenv("ETCD"), "WEFT_BIN": os.Getenv("WEFT_BIN"),
		"WEFT_CNI_BIN": os.Getenv("WEFT_CNI_BIN"), "CNI_PATH": os.Getenv("CNI_PATH"),
	} {
		kernel = append(kernel, name+"="+value)
	}
	return run.Background("guest", host.Command(context.Background(), "linux.uml", kernel...))
}

// guestURL is the control server's.
func guestURL(path string, query url.Values) string {
	return fmt.Sprintf("http://%s:%d%s?%s", guestAddress.Addr(), guestPort, path, query.Encode())
}

// getGuest asks the control server from outside.
func getGuest(run *script.Run, path string, query url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DialContext: run.Lab.Outside().Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, guestURL(path, query), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("guest answers %s: %s", response.Status, body)
	}
	return body, err
}

// askGuest prints what the guest says: guest-get PATH.
func askGuest(run *script.Run, args []string) error {
	body, err := getGuest(run, args[0], nil)
	run.Stdout.Write(body)
	return err
}

// attachPod attaches the guest's pod and keeps its address in $WORK/guest-pod.
func attachPod(run *script.Run, _ []string) error {
	result, err := getGuest(run, "/pod", nil)
	if err != nil {
		return err
	}
	addr, err := cniAddress(result)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(run.Getenv("WORK"), "guest-pod"), []byte(addr.String()), 0o600)
}

// reachGuest exchanges bytes with the guest's pod: to-guest PLACE.
func reachGuest(run *script.Run, args []string) error {
	from, err := run.Place(args[0])
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(run.Getenv("WORK"), "guest-pod"))
	if err != nil {
		return err
	}
	for network, size := range map[string]int{"tcp": 256 << 10, "udp": 1000} {
		conn, err := from.Dial(context.Background(), network, fmt.Sprintf("%s:%d", text, guestPort))
		if err != nil {
			return err
		}
		err = exchange(conn, size)
		conn.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", network, err)
		}
	}
	return nil
}

// reachFromGuest has the guest's pod exchange bytes with a pod: guest-to POD.
func reachFromGuest(run *script.Run, args []string) error {
	to, err := run.Place(args[0])
	if err != nil {
		return err
	}
	addrs, err := run.Addresses(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	bound, err := to.Echo(ctx, netip.AddrPortFrom(addrs[0], 0))
	if err != nil {
		return err
	}
	_, err = getGuest(run, "/reach", url.Values{"to": {bound.String()}})
	return err
}
