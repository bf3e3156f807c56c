package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ndots is what Kubernetes gives pods: names with fewer dots are looked up
	// below the search domains first.
	ndots = 5
	// maxTTL and noNameTTL bound how long answers, and the lack of one, are
	// believed: pods come and go.
	maxTTL    = 30 * time.Second
	noNameTTL = 5 * time.Second
	// maxCached bounds the names remembered.
	maxCached = 4096
	// maxAliases bounds the CNAMEs followed for one name.
	maxAliases = 8
)

// LookupNetIP returns the addresses of a host: itself if it is an address, else
// what cluster DNS says, looked up below the search domains as in a pod. With
// Outside, names that cluster DNS does not have are asked of the operating
// system. Addresses inside the overlay come first. The result is never empty.
func (d *Dialer) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return nil, fmt.Errorf("address %s: zones have no meaning in the overlay", addr)
		}
		return []netip.Addr{addr.Unmap()}, nil
	}
	if err := checkName(strings.TrimSuffix(host, ".")); err != nil {
		return nil, fmt.Errorf("resolve %.300q: %w", host, err)
	}
	addrs, err := d.resolveCluster(ctx, host)
	if err != nil && d.config.Outside && ctx.Err() == nil {
		found, outsideErr := d.config.LookupOutside(ctx, host)
		if outsideErr == nil && len(found) > 0 {
			addrs, err = make([]netip.Addr, 0, len(found)), nil
			for _, addr := range found {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int {
		return rank(d.inside(a)) - rank(d.inside(b))
	})
	return addrs, nil
}

func rank(inside bool) int {
	if inside {
		return 0
	}
	return 1
}

// resolveCluster asks cluster DNS for each name that host may stand for.
func (d *Dialer) resolveCluster(ctx context.Context, host string) ([]netip.Addr, error) {
	s := d.settings.Load()
	if len(s.dns) == 0 {
		return nil, errors.New("no DNS server is known: --dns ADDRESS sets one")
	}
	names := candidates(host, s.search)
	for _, name := range names {
		addrs, err := d.resolver.lookup(ctx, s.dns, name)
		if err != nil {
			return nil, err
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, fmt.Errorf("%w in cluster DNS (tried %s)", ErrNoName, strings.Join(names, " "))
}

// candidates are the full names that host may stand for, in the order in which
// they are to be asked for (resolv.conf(5), options ndots).
func candidates(host string, search []string) []string {
	name, absolute := strings.CutSuffix(strings.ToLower(host), ".")
	if absolute {
		return []string{name + "."}
	}
	var below []string
	for _, domain := range search {
		if full := name + "." + domain; checkName(full) == nil {
			below = append(below, full+".")
		}
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name + "."}, below...)
	}
	return append(below, name+".")
}

// checkName refuses what is no host name (RFC 1123, and underscores).
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("host name of %d characters: want 1 to 253", len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("host name %q: want 1 to 63 characters between dots", name)
		}
		for _, c := range []byte(label) {
			if c|0x20 < 'a' || c|0x20 > 'z' {
				if (c < '0' || c > '9') && c != '-' && c != '_' {
					return fmt.Errorf("host name %q: want letters, digits, - and _ between dots", name)
				}
			}
		}
	}
	return nil
}

// resolver asks DNS servers and remembers what they said for a short time.
type resolver struct {
	dial dialFunc

	mu     sync.Mutex
	cached map[string]remembered
}

type remembered struct {
	addrs []netip.Addr // none: there is no such name
	until time.Time
}

func (r *resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cached = nil
}

func (r *resolver) recall(name string) (addrs []netip.Addr, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.cached[name]
	return slices.Clone(known.addrs), ok && time.Now().Before(known.until)
}

func (r *resolver) remember(name string, addrs []netip.Addr, ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cached == nil || len(r.cached) >= maxCached {
		r.cached = map[string]remembered{}
	}
	r.cached[name] = remembered{slices.Clone(addrs), time.Now().Add(ttl)}
}

// lookup returns the addresses of both families of a full name; none without
// an error if there is no such name.
func (r *resolver) lookup(ctx context.Context, servers []netip.AddrPort, name string) ([]netip.Addr, error) {
	if addrs, ok := r.recall(name); ok {
		return addrs, nil
	}
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	answers := make([]answer, len(types))
	errs := make([]error, len(types))
	var both sync.WaitGroup
	for i, qtype := range types {
		both.Go(func() { answers[i], errs[i] = r.query(ctx, servers, name, qtype) })
	}
	both.Wait()
	var addrs []netip.Addr
	ttl := maxTTL
	for _, a := range answers {
		if len(a.addrs) > 0 {
			addrs, ttl = append(addrs, a.addrs...), min(ttl, a.ttl)
		}
	}
	switch {
	case errs[0] != nil && (errs[1] != nil || len(addrs) == 0):
		return nil, errs[0]
	case errs[1] != nil && len(addrs) == 0:
		return nil, errs[1]
	case errs[0] != nil || errs[1] != nil || len(addrs) == 0:
		ttl = min(ttl, noNameTTL) // half an answer is better than none, for a while
	}
	r.remember(name, addrs, ttl)
	return addrs, nil
}

// query asks for one type and follows aliases that come without addresses.
func (r *resolver) query(ctx context.Context, servers []netip.AddrPort, name string, qtype dnsmessage.Type) (answer, error) {
	ttl := maxTTL
	for range maxAliases {
		a, err := r.ask(ctx, servers, name, qtype)
		if err != nil {
			return answer{}, err
		}
		ttl = min(ttl, a.ttl)
		if len(a.addrs) > 0 || a.alias == "" {
			a.ttl = ttl
			return a, nil
		}
		name = a.alias
	}
	return answer{}, fmt.Errorf("more than %d aliases, the last is %s", maxAliases, name)
}
