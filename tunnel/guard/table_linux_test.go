package guard

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

func TestGolden(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	h.apply(firewall4(), firewall6())
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := h.tables(); got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// tables are both our tables as nft shows them.
func (h *testHost) tables() string {
	h.t.Helper()
	return h.nft("list table ip weft") + h.nft("list table ip6 weft")
}

// variants are all kinds of Firewall there can be.
func variants(fw tunnel.Firewall) (all []tunnel.Firewall) {
	for bits := range 8 {
		fw.Masquerade, fw.RandomFully, fw.Forward = bits&1 != 0, bits&2 != 0, bits&4 != 0
		all = append(all, fw)
	}
	return all
}

// TestVariants goes from every Firewall to every other one.
func TestVariants(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	for _, fw := range []tunnel.Firewall{firewall4(), firewall6()} {
		wide := fw
		wide.Network = netip.PrefixFrom(fw.Network.Addr(), 8).Masked()
		all := append(variants(fw), wide)
		for _, before := range all {
			for _, want := range all {
				h.apply(before, want)
				h.check(want)
				h.apply(want)
				h.check(want)
			}
		}
		h.drain()
		for range 2 {
			if err := h.driver.Delete(t.Context(), fw); err != nil {
				t.Fatal(err)
			}
		}
		h.awaitToken("delete")
		h.check()
	}
}

// TestDrift makes changes by hand to the table of one family: each must be
// seen, told of and mended, and the other family must not notice.
func TestDrift(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	h.apply(firewall4(), firewall6())
	golden := h.tables()
	for _, command := range []string{
		"delete table ip weft",
		"flush table ip weft",
		"flush chain ip weft postrouting",
		"flush chain ip weft spec",
		"delete rule ip weft postrouting handle HANDLE",
		"replace rule ip weft postrouting handle HANDLE return",
		"add rule ip weft postrouting counter masquerade",
		"insert rule ip weft forward drop",
		"add rule ip weft forward notrack",
		"delete rule ip weft postrouting handle HANDLE; add rule ip weft postrouting ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return comment \"outside to own pods\"",
		"delete chain ip weft forward",
		"add chain ip weft forward { policy drop; }",
		"add chain ip weft input { type filter hook input priority 0; policy drop; }",
		"add chain ip weft more",
		"delete chain ip weft forward; add chain ip weft forward { type filter hook forward priority 10; }",
		"add table ip weft { flags dormant; }",
		"flush chain ip weft spec; add rule ip weft spec return comment \"10.244.0.0/16 10.244.2.0/24 masquerade random-fully forward\"",
		"flush chain ip weft spec; add rule ip weft spec return comment \"fd00::/16 fd00::/24\"",
		"flush chain ip weft spec; add rule ip weft spec return comment \"nonsense\"",
		"flush chain ip weft spec; add rule ip weft spec return",
	} {
		h.drain()
		if strings.Contains(command, "HANDLE") {
			command = strings.ReplaceAll(command, "HANDLE", h.handle("outside to own pods"))
		}
		h.nft(command)
		h.awaitToken(command)
		have, err := h.driver.Observe(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if have[firewall4().Key()] == tunnel.Object(firewall4()) {
			t.Errorf("not seen: %s", command)
		}
		if have[firewall6().Key()] != tunnel.Object(firewall6()) {
			t.Errorf("seen in the other table: %s", command)
		}
		h.apply(firewall4())
		h.check(firewall4(), firewall6())
		if got := h.tables(); got != golden {
			t.Errorf("not mended: %s: got:\n%s", command, got)
		}
	}
}

// handle finds the handle of our rule with a comment.
func (h *testHost) handle(comment string) string {
	h.t.Helper()
	for line := range strings.Lines(h.nft("list table ip weft", "-a")) {
		if _, handle, ok := strings.Cut(line, `comment "`+comment+`" # handle `); ok {
			return strings.TrimSpace(handle)
		}
	}
	h.t.Fatalf("no rule %q", comment)
	return ""
}

// TestOwnChangesEnd holds that what Apply does causes tokens, but looking at
// them does not cause more.
func TestOwnChangesEnd(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	h.apply(firewall4(), firewall6())
	h.awaitToken("apply")
	h.drain()
	for range 10 {
		h.check(firewall4(), firewall6())
	}
	h.nft("add table ip other { chain c { accept; }; }")
	select {
	case <-h.driver.Changes():
		t.Error("token for nothing of ours")
	default:
	}
}

// TestForeignTables holds that no other table is read as ours or changed.
func TestForeignTables(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	h.nft(`
		table ip flannel-ipv4 { comment "rules for flannel-ipv4"; chain postrtg { type nat hook postrouting priority srcnat; meta mark 0x4000 return; }; }
		table inet weft { chain spec { return comment "10.244.0.0/16 10.244.1.0/24"; }; }
		table ip weft2 { chain spec { return comment "10.244.0.0/16 10.244.1.0/24"; }; }
		table ip nat { chain POSTROUTING { type nat hook postrouting priority 90; masquerade; }; }`)
	before := h.nft("list ruleset")
	h.check()
	h.apply(firewall4(), firewall6())
	h.check(firewall4(), firewall6())
	for _, fw := range []tunnel.Firewall{firewall4(), firewall6()} {
		if err := h.driver.Delete(t.Context(), fw); err != nil {
			t.Fatal(err)
		}
	}
	h.check()
	if after := h.nft("list ruleset"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRefused holds that a transaction the kernel refuses changes nothing and
// leaves the connection in order.
func TestRefused(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	h.apply(firewall4())
	h.driver.nft.AddTable(ip4.table())
	h.driver.nft.FlushTable(ip4.table())
	for range 3 {
		h.driver.nft.AddChain(&nftables.Chain{
			Table: ip4.table(), Name: "bad", Type: "nosuch",
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
	}
	if err := h.driver.nft.Flush(); err == nil {
		t.Fatal("no error")
	} else if text := explain(err).Error(); !strings.Contains(text, "nft_chain_nat") {
		t.Errorf("error %q does not name the module", text)
	}
	h.check(firewall4())
	h.apply(firewall6())
	h.check(firewall4(), firewall6())
}

func TestNoRights(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	err := h.Do(func() error {
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		_, err := Open(Config{Logger: discard})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want an error that names CAP_NET_ADMIN", err)
	}
}

func TestBadFirewalls(t *testing.T) {
	h := addHost(t, labtest.New(t), "a")
	for want, change := range map[string]func(*tunnel.Firewall){
		"network: not set":  func(f *tunnel.Firewall) { f.Network = netip.PrefixFrom(f.Network.Addr(), -1) },
		"subnet: not set":   func(f *tunnel.Firewall) { f.Subnet = netip.PrefixFrom(f.Network.Addr(), -1) },
		"is not inside":     func(f *tunnel.Firewall) { f.Subnet = firewall6().Subnet },
		"want 10.0.0.0/8":   func(f *tunnel.Firewall) { f.Network = netip.PrefixFrom(f.Network.Addr(), 8) },
		"want 10.244.1.0/2": func(f *tunnel.Firewall) { f.Subnet = netip.PrefixFrom(f.Subnet.Addr().Next(), 24) },
	} {
		fw := firewall4()
		change(&fw)
		if err := h.driver.Apply(t.Context(), fw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("apply %+v: got %v, want %q", fw, err, want)
		}
	}
	if err := h.driver.Apply(t.Context(), tunnel.Address{}); err == nil {
		t.Error("apply address: no error")
	}
	h.check()
	if rules := h.nft("list ruleset"); rules != "" {
		t.Errorf("something was made:\n%s", rules)
	}
}
