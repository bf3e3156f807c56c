package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Family is an address family.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns the family's name.
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

func (f Family) has(addr netip.Addr) bool { return addr.IsValid() && addr.Is4() == (f == IPv4) }

// Request is what the user and the lease source say about the underlay. The
// first of Ifaces, IfaceRegex, CanReach, PublicIPs and InternalIPs that leads
// to an interface decides; then the default route.
type Request struct {
	Ifaces     []string   // --iface: names or addresses
	IfaceRegex []string   // --iface-regex: matched against addresses, then names
	CanReach   netip.Addr // --iface-can-reach
	// PublicIPs are --public-ip and --public-ipv6: what is published, and what
	// is bound as well where it is an address of this host. At most one per family.
	PublicIPs   []netip.Addr
	InternalIPs []netip.Addr // of the Node
	// InUse are the addresses chosen before. Among those of one interface they
	// stay chosen while they are fit: others may come and go beside them.
	InUse []netip.Addr
	// Families are those that must have an address, IPv4 first.
	Families []Family
}

// Choice is the chosen interface. Its Link, MTU, Addrs and OnLink are those of
// control.Underlay.
type Choice struct {
	Link   string
	MTU    int            // bytes
	Addrs  []netip.Addr   // local, in the order of Request.Families
	Public []netip.Addr   // to be published, in the same order
	OnLink []netip.Prefix // outer prefixes reachable without a gateway
	Reason string         // why this interface
}

// Equal reports whether two choices are the same.
func (c Choice) Equal(other Choice) bool {
	return c.Link == other.Link && c.MTU == other.MTU && c.Reason == other.Reason &&
		slices.Equal(c.Addrs, other.Addrs) && slices.Equal(c.Public, other.Public) && slices.Equal(c.OnLink, other.OnLink)
}

// candidate is an interface under consideration.
type candidate struct {
	link   Link
	local  netip.Addr // the address by which it was found; zero if by something else
	reason string
}

// Choose decides. Where interfaces were named, only those come into question,
// and the error says for each why it does not fit.
func Choose(request Request, facts Facts) (Choice, error) {
	if len(request.Families) == 0 {
		return Choice{}, errors.New("choose interface: no address family is enabled: enable IPv4 or IPv6 in net-conf.json")
	}
	var refused []error
	for _, find := range finders(request) {
		found, err := find(request, facts)
		if err != nil {
			refused = append(refused, err)
		}
		for _, c := range found {
			choice, err := c.choice(request, facts)
			if err == nil {
				return choice, nil
			}
			refused = append(refused, fmt.Errorf("%s: %w", c.reason, err))
		}
	}
	refused = append(refused, fmt.Errorf("interfaces here: %s", facts.describe()))
	return Choice{}, fmt.Errorf("choose interface: %w", errors.Join(refused...))
}

// finder proposes interfaces, the best first, or says why it has none.
type finder func(Request, Facts) ([]candidate, error)

// finders returns who is asked, in order. Who names interfaces means it:
// nothing else is asked then.
func finders(r Request) []finder {
	var named []finder
	for _, iface := range r.Ifaces {
		named = append(named, func(r Request, f Facts) ([]candidate, error) { return byName(iface, f) })
	}
	for _, expr := range r.IfaceRegex {
		named = append(named, func(r Request, f Facts) ([]candidate, error) { return byRegex(expr, r, f) })
	}
	if r.CanReach.IsValid() {
		named = append(named, byReach)
	}
	if len(named) > 0 {
		return named
	}
	return []finder{byPublicIP, byInternalIP, byDefaultRoute}
}

func byName(iface string, facts Facts) ([]candidate, error) {
	reason := "--iface=" + iface
	if addr, err := netip.ParseAddr(iface); err == nil {
		if l, ok := facts.owner(addr.Unmap()); ok {
			return []candidate{{l, addr.Unmap(), reason}}, nil
		}
		return nil, fmt.Errorf("%s: no interface that is up has this address ready for use: name another one, or add it", reason)
	}
	if l, ok := facts.link(iface); ok {
		return []candidate{{link: l, reason: reason}}, nil
	}
	return nil, fmt.Errorf("%s: there is no such interface: name one that exists", reason)
}

// byRegex proposes first those whose addresses match in every family, then
// those whose names match.
func byRegex(expr string, request Request, facts Facts) ([]candidate, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("--iface-regex=%s: %w: write it in Go's regular expression syntax", expr, err)
	}
	reason := "--iface-regex=" + expr
	var byAddr, byName []candidate
	for _, l := range facts.Links {
		matches := func(f Family) bool {
			return slices.ContainsFunc(l.best(f), func(a netip.Addr) bool { return re.MatchString(a.String()) })
		}
		if !slices.ContainsFunc(request.Families, func(f Family) bool { return !matches(f) }) {
			byAddr = append(byAddr, candidate{link: l, reason: reason})
		}
		if re.MatchString(l.Name) {
			byName = append(byName, candidate{link: l, reason: reason})
		}
	}
	if len(byAddr)+len(byName) == 0 {
		return nil, fmt.Errorf("%s: matches no interface's addresses and no name: change the expression", reason)
	}
	return append(byAddr, byName...), nil
}

func byReach(request Request, facts Facts) ([]candidate, error) {
	reason := fmt.Sprintf("--iface-can-reach=%v", request.CanReach)
	if facts.Reach.Err != nil {
		return nil, fmt.Errorf("%s: %w: name an address this host has a route to", reason, facts.Reach.Err)
	}
	l, ok := facts.link(facts.Reach.Link)
	if !ok {
		return nil, fmt.Errorf("%s: the route's interface %q is gone", reason, facts.Reach.Link)
	}
	return []candidate{{l, facts.Reach.Local, reason}}, nil
}

// byPublicIP proposes the interface that has the published address. One that
// is not this host's, as behind a NAT, does not decide anything.
func byPublicIP(request Request, facts Facts) ([]candidate, error) {
	return byOwner("public IP", request.PublicIPs, facts), nil
}

func byInternalIP(request Request, facts Facts) ([]candidate, error) {
	return byOwner("the Node's InternalIP", request.InternalIPs, facts), nil
}

func byOwner(what string, addrs []netip.Addr, facts Facts) (found []candidate) {
	for _, addr := range addrs {
		if l, ok := facts.owner(addr); ok {
			found = append(found, candidate{l, addr, fmt.Sprintf("%s %v", what, addr)})
		}
	}
	return found
}

// byDefaultRoute proposes the interface of the default route. It must be the
// same for all families that have one.
func byDefaultRoute(request Request, facts Facts) ([]candidate, error) {
	var names []string
	for _, f := range request.Families {
		names = append(names, facts.defaults(f)...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("no default route for %s: name the interface with --iface", join(request.Families))
	case 1:
		l, ok := facts.link(names[0])
		if !ok {
			return nil, fmt.Errorf("the default route's interface %q is gone", names[0])
		}
		return []candidate{{link: l, reason: "default route"}}, nil
	}
	return nil, fmt.Errorf("default routes over %s: name one with --iface", strings.Join(names, ", "))
}

// defaults returns the links of the default routes with the lowest metric.
func (f Facts) defaults(family Family) (names []string) {
	lowest := 0
	for _, r := range f.Routes {
		if !family.has(r.Prefix.Addr()) || r.Prefix.Bits() != 0 {
			continue
		}
		switch {
		case len(names) == 0 || r.Metric < lowest:
			names, lowest = []string{r.Link}, r.Metric
		case r.Metric == lowest:
			names = append(names, r.Link)
		}
	}
	return names
}

// choice completes a candidate or says why it does not fit.
func (c candidate) choice(request Request, facts Facts) (Choice, error) {
	if !c.link.Up {
		return Choice{}, fmt.Errorf("%s is down: set it up, or name another one", c.link.Name)
	}
	if c.link.MTU <= 0 {
		return Choice{}, fmt.Errorf("%s has no MTU: name another one", c.link.Name)
	}
	choice := Choice{Link: c.link.Name, MTU: c.link.MTU, OnLink: facts.onLink(c.link.Name), Reason: c.reason}
	for _, f := range request.Families {
		i := slices.IndexFunc(request.PublicIPs, f.has)
		local, ok := c.local, false
		switch {
		case i >= 0 && facts.isLocal(request.PublicIPs[i]):
			// Peers accept packets only from where they send them to.
			local, ok = request.PublicIPs[i], true
		case f.has(c.local):
			ok = true
		default:
			local, ok = c.address(f, request)
		}
		if !ok {
			return Choice{}, fmt.Errorf("%s has no %s address that peers can send to%s: add one, or name another interface with --iface",
				c.link.Name, f, c.link.unfit(f))
		}
		public := local
		if i >= 0 {
			public = request.PublicIPs[i]
		}
		choice.Addrs = append(choice.Addrs, local)
		choice.Public = append(choice.Public, public)
	}
	return choice, nil
}

// address returns the link's best address of a family; where the Node's
// InternalIP led here, its addresses are better than others, and those in use
// come next.
func (c candidate) address(f Family, request Request) (netip.Addr, bool) {
	preferred := request.InUse
	if c.local.IsValid() && slices.Contains(request.InternalIPs, c.local) {
		preferred = slices.Concat(request.InternalIPs, request.InUse)
	}
	for _, addr := range preferred {
		if f.has(addr) && c.link.usable(addr) {
			return addr, true
		}
	}
	best := c.link.best(f)
	if len(best) == 0 {
		return netip.Addr{}, false
	}
	return best[0], true
}

func (f Facts) isLocal(addr netip.Addr) bool {
	_, ok := f.owner(addr)
	return ok
}

// unfit lists the addresses of a family that were passed over, and why.
func (l Link) unfit(f Family) string {
	var texts []string
	for _, a := range l.Addrs {
		if !f.has(a.Prefix.Addr()) {
			continue
		}
		why := "local to the link"
		switch {
		case a.Tentative:
			why = "tentative"
		case a.Deprecated:
			why = "deprecated"
		case a.Prefix.Addr().IsLoopback():
			why = "loopback"
		}
		texts = append(texts, fmt.Sprintf("%v is %s", a.Prefix.Addr(), why))
	}
	if len(texts) == 0 {
		return ""
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

// describe lists the interfaces with their addresses, for errors.
func (f Facts) describe() string {
	texts := make([]string, 0, len(f.Links))
	for _, l := range f.Links {
		text := l.Name
		if !l.Up {
			text += " (down)"
		}
		for _, a := range l.Addrs {
			text += " " + a.Prefix.Addr().String()
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

func join(families []Family) string {
	texts := make([]string, 0, len(families))
	for _, f := range families {
		texts = append(texts, f.String())
	}
	return strings.Join(texts, " and ")
}
