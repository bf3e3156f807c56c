package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const dnsAddress = "10.96.0.10:53"

// zone is a DNS server's content and behaviour.
type zone struct {
	addrs     map[string][]string // by full name
	aliases   map[string]string
	ttl       uint32
	truncate  bool                // by UDP
	rcode     dnsmessage.RCode    // in place of answers
	lies      func([]byte) []byte // what is sent before, or in place of, the answer
	onlyLies  bool
	silent    bool
	noAnswers dnsmessage.Type // type that is not answered

	mu    sync.Mutex
	asked []string
}

func (z *zone) questions() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	slices.Sort(z.asked)
	return slices.Clone(z.asked)
}

// answer makes the answer to a query; nil if there is none.
func (z *zone) answer(query []byte, protocol string) []byte {
	var message dnsmessage.Message
	if message.Unpack(query) != nil || len(message.Questions) != 1 || z.silent {
		return nil
	}
	question := message.Questions[0]
	z.mu.Lock()
	z.asked = append(z.asked, strings.TrimPrefix(question.Type.String(), "Type")+" "+question.Name.String())
	z.mu.Unlock()
	if question.Type == z.noAnswers {
		return nil
	}
	message.Response = true
	message.RCode = z.rcode
	message.Truncated = z.truncate && protocol == UDP
	if !message.Truncated && z.rcode == 0 && !z.fill(&message, question) {
		message.RCode = dnsmessage.RCodeNameError
	}
	packed, err := message.Pack()
	if err != nil {
		panic(err)
	}
	return packed
}

// fill reports whether there is such a name.
func (z *zone) fill(message *dnsmessage.Message, question dnsmessage.Question) bool {
	owner := question.Name.String()
	header := func() dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(owner), Class: dnsmessage.ClassINET, TTL: z.ttl}
	}
	for range 20 {
		alias, ok := z.aliases[owner]
		if !ok {
			break
		}
		message.Answers = append(message.Answers, dnsmessage.Resource{Header: header(), Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(alias)}})
		owner = alias
	}
	addrs, ok := z.addrs[owner]
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		switch {
		case addr.Is4() && question.Type == dnsmessage.TypeA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header(), Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && question.Type == dnsmessage.TypeAAAA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header(), Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return ok || len(message.Answers) > 0
}

// serveDNS answers at an overlay address by UDP and TCP.
func serveDNS(t *testing.T, n *twin, at string, z *zone) {
	t.Helper()
	address := netip.MustParseAddrPort(at)
	conn, err := n.ListenUDP(address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, maxDatagram)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			reply := z.answer(buffer[:size], UDP)
			if reply == nil {
				continue
			}
			if z.lies != nil {
				_, _ = conn.WriteTo(z.lies(slices.Clone(reply)), from)
			}
			if !z.onlyLies {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	n.pod(t, at, func(conn net.Conn) {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply := z.answer(query, TCP)
		_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	})
}

func cluster() *zone {
	return &zone{ttl: 30, addrs: map[string][]string{
		"web.default.svc.cluster.local.": {"10.244.1.7", "fd00:244:1::7"},
		"v6.default.svc.cluster.local.":  {"fd00:244:1::6"},
		"empty.cluster.local.":           {},
		"example.com.":                   {"203.0.113.9", "10.244.1.9"},
		"a.b.c.d.e.example.com.":         {"10.244.1.10"},
	}}
}

// withDNS is a Dialer that asks z at the cluster's usual DNS address.
func withDNS(t *testing.T, n *twin, z *zone, edit func(*DialerConfig)) *Dialer {
	t.Helper()
	serveDNS(t, n, "10.244.0.2:53", z)
	d := newTestDialer(t, n, func(c *DialerConfig) {
		c.DNS = []netip.AddrPort{netip.MustParseAddrPort(dnsAddress)}
		c.Search = []string{"svc.cluster.local", "cluster.local"}
		if edit != nil {
			edit(c)
		}
	})
	d.SetServices([]Service{dnsService("10.244.0.2:53")})
	return d
}

// dnsService is cluster DNS behind its ClusterIP.
func dnsService(backends ...string) Service {
	var ports []ServicePort
	for _, protocol := range []string{UDP, TCP} {
		port := ServicePort{Protocol: protocol, Port: 53}
		for _, backend := range backends {
			port.Backends = append(port.Backends, netip.MustParseAddrPort(backend))
		}
		ports = append(ports, port)
	}
	return Service{Namespace: "kube-system", Name: "kube-dns", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: ports}
}

func TestLookup(t *testing.T) {
	for _, test := range []struct {
		name  string
		edit  func(*zone)
		host  string
		want  string
		error []string
		asked string // A questions, in no order
	}{
		{name: "search", host: "web.default", want: "10.244.1.7 fd00:244:1::7", asked: "web.default.svc.cluster.local."},
		{name: "case", host: "Web.Default", want: "10.244.1.7 fd00:244:1::7"},
		{name: "second search domain", host: "v6.default.svc", want: "fd00:244:1::6", asked: "v6.default.svc.cluster.local. v6.default.svc.svc.cluster.local."},
		{name: "inside first", host: "example.com", want: "10.244.1.9 203.0.113.9"},
		{name: "absolute", host: "example.com.", want: "10.244.1.9 203.0.113.9", asked: "example.com."},
		{name: "many dots", host: "a.b.c.d.e.example.com", want: "10.244.1.10", asked: "a.b.c.d.e.example.com."},
		{name: "no such name", host: "nobody", error: []string{"resolve nobody: no such name in cluster DNS", "nobody.svc.cluster.local. nobody.cluster.local. nobody."}},
		{name: "no address", host: "empty.cluster.local.", error: []string{"no such name"}},
		{name: "address", host: "::ffff:10.244.1.7", want: "10.244.1.7"},
		{name: "truncated", host: "web.default", want: "10.244.1.7 fd00:244:1::7", edit: func(z *zone) { z.truncate = true }},
		{name: "server failure", host: "web.default", error: []string{"DNS server 10.96.0.10:53 does not answer", "ServerFailure"},
			edit: func(z *zone) { z.rcode = dnsmessage.RCodeServerFailure }},
		{name: "aliases", host: "www", want: "10.244.1.7 fd00:244:1::7", edit: func(z *zone) {
			z.aliases = map[string]string{"www.svc.cluster.local.": "WWW.example.com.", "WWW.example.com.": "web.default.svc.cluster.local."}
		}},
		{name: "alias loop", host: "www", error: []string{"more than 8 aliases"}, edit: func(z *zone) {
			z.aliases = map[string]string{"www.svc.cluster.local.": "www.example.com.", "www.example.com.": "www.svc.cluster.local."}
		}},
		{name: "forged ID first", host: "web.default", want: "10.244.1.7 fd00:244:1::7", edit: func(z *zone) {
			z.lies = func(reply []byte) []byte { reply[0] ^= 0xff; return reply }
		}},
		{name: "garbage first", host: "web.default", want: "10.244.1.7 fd00:244:1::7", edit: func(z *zone) {
			z.lies = func([]byte) []byte { return []byte("garbage") }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			z := cluster()
			if test.edit != nil {
				test.edit(z)
			}
			d := withDNS(t, newTwin(), z, nil)
			addrs, err := d.LookupNetIP(testContext(t), test.host)
			if got := strings.Trim(fmt.Sprint(addrs), "[]"); got != test.want {
				t.Errorf("got %s, %v; want %s", got, err, test.want)
			}
			wantError(t, err, test.error...)
			if test.error == nil && err != nil {
				t.Error(err)
			}
			var asked []string
			for _, question := range z.questions() {
				if name, ok := strings.CutPrefix(question, "A "); ok {
					asked = append(asked, name)
				}
			}
			if got := strings.Join(asked, " "); test.asked != "" && got != test.asked {
				t.Errorf("asked for %s; want %s", got, test.asked)
			}
		})
	}
}

// TestLookupUnanswered has servers that never give a usable answer.
func TestLookupUnanswered(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		edit  func(*zone)
		error string
	}{
		{"silent", func(z *zone) { z.silent = true }, "timeout"},
		{"wrong ID", func(z *zone) {
			z.onlyLies, z.lies = true, func(reply []byte) []byte { reply[1] ^= 1; return reply }
		}, "another question"},
		{"wrong question", func(z *zone) {
			z.onlyLies, z.lies = true, func(reply []byte) []byte {
				return []byte(strings.Replace(string(reply), "\x03web", "\x03wob", 1))
			}
		}, "another question"},
		{"question sent back", func(z *zone) {
			z.onlyLies, z.lies = true, func(reply []byte) []byte { reply[2] &^= 0x80; return reply }
		}, "another question"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			z := cluster()
			test.edit(z)
			d := withDNS(t, newTwin(), z, nil)
			_, err := d.DialContext(testContext(t), TCP, "web.default:80")
			wantError(t, err, "dial web.default:80: resolve web.default: DNS server 10.96.0.10:53 does not answer: ", test.error)
			if !errors.Is(err, ErrNoAnswer) {
				t.Errorf("%v is not ErrNoAnswer", err)
			}
		})
	}
}

// TestLookupOtherServer has a first server, or backend of it, that is down.
func TestLookupOtherServer(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		n := newTwin()
		d := withDNS(t, n, cluster(), func(c *DialerConfig) {
			c.DNS = []netip.AddrPort{netip.MustParseAddrPort("10.244.0.3:53"), netip.MustParseAddrPort(dnsAddress)}
		})
		if _, err := d.LookupNetIP(testContext(t), "web.default"); err != nil {
			t.Error(err)
		}
	})
	t.Run("backend", func(t *testing.T) {
		t.Parallel()
		n := newTwin()
		n.podUDP(t, "10.244.0.3:53", func([]byte) []byte { return nil })
		d := withDNS(t, n, cluster(), nil)
		d.SetServices([]Service{dnsService("10.244.0.3:53", "10.244.0.2:53")})
		if addrs, err := d.LookupNetIP(testContext(t), "web.default"); err != nil || len(addrs) != 2 {
			t.Errorf("got %v, %v; want both families", addrs, err)
		}
		if !d.avoid.has(frontend{UDP, netip.MustParseAddrPort("10.244.0.3:53")}) {
			t.Error("the silent backend is not avoided")
		}
	})
	t.Run("none known", func(t *testing.T) {
		t.Parallel()
		_, err := newTestDialer(t, newTwin(), nil).LookupNetIP(testContext(t), "web.default")
		wantError(t, err, "no DNS server is known", "--dns")
	})
	t.Run("no backend", func(t *testing.T) {
		t.Parallel()
		d := withDNS(t, newTwin(), cluster(), nil)
		d.SetServices([]Service{dnsService()})
		_, err := d.LookupNetIP(testContext(t), "web.default")
		wantError(t, err, "DNS server 10.96.0.10:53 does not answer", "kube-system/kube-dns", "no ready backend")
	})
	t.Run("one family", func(t *testing.T) {
		t.Parallel()
		z := cluster()
		z.noAnswers = dnsmessage.TypeAAAA
		addrs, err := withDNS(t, newTwin(), z, nil).LookupNetIP(testContext(t), "web.default")
		if err != nil || len(addrs) != 1 {
			t.Errorf("got %v, %v; want the IPv4 address", addrs, err)
		}
	})
}

// TestLookupCache holds that answers are remembered as long as they may be,
// and not beyond a change of servers.
func TestLookupCache(t *testing.T) {
	for _, test := range []struct {
		ttl  uint32
		host string
		want int // questions of two lookups
	}{
		{ttl: 30, host: "web.default", want: 2},
		{ttl: 0, host: "web.default", want: 4},
		{ttl: 0, host: "nobody.", want: 2},
	} {
		z := cluster()
		z.ttl = test.ttl
		d := withDNS(t, newTwin(), z, nil)
		for range 2 {
			_, _ = d.LookupNetIP(testContext(t), test.host)
		}
		if got := len(z.questions()); got != test.want {
			t.Errorf("TTL %d, %s: asked %d times, want %d", test.ttl, test.host, got, test.want)
		}
		if err := d.SetDNS([]netip.AddrPort{netip.MustParseAddrPort(dnsAddress)}, nil); err != nil {
			t.Fatal(err)
		}
		_, _ = d.LookupNetIP(testContext(t), test.host)
		if got := len(z.questions()); got != test.want+2 {
			t.Errorf("TTL %d, %s: asked %d times after SetDNS, want %d", test.ttl, test.host, got, test.want+2)
		}
	}
}

// TestCacheNoAddress holds that the lack of an address is believed for a short
// time alone.
func TestCacheNoAddress(t *testing.T) {
	d := withDNS(t, newTwin(), cluster(), nil)
	const name = "empty.cluster.local."
	_, _ = d.LookupNetIP(testContext(t), name)
	known, ok := d.resolver.cached[name]
	if left := time.Until(known.until); !ok || left <= 0 || left > noNameTTL {
		t.Errorf("believed for %v (%v), want at most %v", left, ok, noNameTTL)
	}
}

func TestCacheBounded(t *testing.T) {
	var r resolver
	for i := range 3 * maxCached {
		r.remember(fmt.Sprint(i), nil, time.Hour)
	}
	if len(r.cached) > maxCached {
		t.Errorf("%d names remembered, want at most %d", len(r.cached), maxCached)
	}
}

func FuzzParseAnswer(f *testing.F) {
	z := cluster()
	z.aliases = map[string]string{"www.": "web.default.svc.cluster.local."}
	query, question, err := packQuestion(7, "www.", dnsmessage.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(z.answer(query, UDP))
	z.aliases["web.default.svc.cluster.local."] = "www."
	f.Add(z.answer(query, UDP))
	z.truncate = true
	f.Add(z.answer(query, UDP))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, message []byte) {
		a, err := parseAnswer(message, 7, question)
		if err == nil && (len(message) < 12 || message[0] != 0 || message[1] != 7) {
			t.Errorf("%x was taken for an answer", message)
		}
		if a.ttl < 0 || a.ttl > maxTTL {
			t.Errorf("TTL is %v", a.ttl)
		}
		for _, addr := range a.addrs {
			if !addr.IsValid() || addr.Is4In6() {
				t.Errorf("address %v", addr)
			}
		}
	})
}
