package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/control"
)

// mover follows where this host is: its outer device, the addresses it has
// there, and those that peers are told to send to.
type mover struct {
	agent   *Agent
	changes <-chan struct{} // a token: look may find something else
	claim   control.Claim   // as the lease source has it
}

// Limits of calm. An interface that is being set up anew changes several times
// in a row, and for a moment may have no address.
const (
	calmTime    = 200 * time.Millisecond
	longestCalm = time.Second
)

// calm passes tokens on once none has come for calmTime, and after longestCalm
// at the latest, until ctx is done.
func calm(ctx context.Context, tokens <-chan struct{}) <-chan struct{} {
	calmed := make(chan struct{}, 1)
	go func() {
		var quiet, enough <-chan time.Time // nil while nothing has happened
		for {
			select {
			case <-ctx.Done():
				return
			case <-tokens:
				quiet = time.After(calmTime)
				if enough == nil {
					enough = time.After(longestCalm)
				}
				continue
			case <-quiet:
			case <-enough:
			}
			quiet, enough = nil, nil
			signal(calmed)
		}
	}()
	return calmed
}

// look finds out where this host is now, tells the lease source, and puts it
// into self. While it cannot tell, all stays as it is: an address may be gone
// only for the moment in which it is renewed.
func (m *mover) look(ctx context.Context, self *control.Self) (changed bool) {
	a := m.agent
	outer, err := a.Host.Underlay(ctx, a.recall, a.policy.Networks, self.Underlay.Addrs)
	if err == nil {
		err = m.tell(self.Underlay, outer)
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		a.Status.waitFor(topicUnderlay, fmt.Sprintf("going on with %s at %v: %v", self.Underlay.Link, self.Underlay.Addrs, err))
		return false
	}
	a.Status.waitFor(topicUnderlay, "")
	if before := self.Underlay; !sameUnderlay(before, outer.Underlay) {
		a.Logger.Info("underlay changed", "link", outer.Link, "addresses", outer.Addrs, "mtu", outer.MTU, "on_link", fmt.Sprint(outer.OnLink), "reason", outer.Reason)
		self.Underlay, changed = outer.Underlay, true
	}
	return m.readdress(self, outer) || changed
}

// tell has the lease source publish what has changed, or reach out anew where
// this host's own end of its connections is gone.
func (m *mover) tell(before control.Underlay, outer Outer) error {
	claim := m.claim
	claim.Legs = slices.Clone(claim.Legs)
	for i, network := range m.agent.policy.Networks {
		claim.Legs[i].PublicIP = addrOfFamily(outer.Public, network)
	}
	if slices.Equal(claim.Legs, m.claim.Legs) && before.Link == outer.Link && slices.Equal(before.Addrs, outer.Addrs) {
		return nil
	}
	if err := m.agent.Source.Move(claim); err != nil {
		return fmt.Errorf("publish %v: %w", outer.Public, err)
	}
	m.claim = claim
	return nil
}

// readdress puts the addresses that peers are told now into the own lease.
func (m *mover) readdress(self *control.Self, outer Outer) (changed bool) {
	reason := outer.Reason
	legs := slices.Clone(self.Lease.Legs)
	for i := range legs {
		legs[i].PublicIP = addrOfFamily(outer.Public, legs[i].Subnet)
		if overwrite := addrOfFamily(m.agent.recall.Overwrite, legs[i].Subnet); overwrite.IsValid() {
			legs[i].PublicIP, reason = overwrite, "public-ip-overwrite"
		}
	}
	if slices.Equal(legs, self.Lease.Legs) {
		return false
	}
	from, to := publicIPs(self.Lease.Legs), publicIPs(legs)
	m.agent.Logger.Info("address republished", "from", from, "to", to, "reason", reason)
	self.Lease.Legs = legs
	m.agent.Status.moved(from, to, reason)
	return true
}

func publicIPs(legs []control.Leg) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(legs))
	for _, leg := range legs {
		addrs = append(addrs, leg.PublicIP)
	}
	return addrs
}

func sameUnderlay(x, y control.Underlay) bool {
	return x.Link == y.Link && x.MTU == y.MTU && slices.Equal(x.Addrs, y.Addrs) && slices.Equal(x.OnLink, y.OnLink)
}
