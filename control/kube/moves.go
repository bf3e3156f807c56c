package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// Move replaces the claim of Acquire, as this host's outer addresses have
// changed. It does not wait: Run publishes it. Connections that were made
// before may be dead without anybody being told, so all are made anew.
func (s *Source) Move(claim control.Claim) error {
	if _, err := lease.Annotations(claim, s.prefix, nil); err != nil {
		return fmt.Errorf("move: %w", err)
	}
	claim.Legs = slices.Clone(claim.Legs)
	s.mu.Lock()
	s.own.claim = &claim
	s.mu.Unlock()
	s.connections.CloseAll()
	s.poke()
	return nil
}

// Recalls has what Recall would return now, whenever that has changed while Run
// runs.
func (s *Source) Recalls() <-chan control.Recall { return s.recalls }

// tellRecall passes on what the user has changed on the own Node. What makes no
// sense is not passed on: what was there before counts until it does.
func (s *Source) tellRecall(node *corev1.Node) {
	recall, err := recallOf(node, s.prefix)
	if err != nil {
		s.waiting(topicRecall, err.Error())
		return
	}
	s.waiting(topicRecall, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.recalled
	if slices.Equal(recall.PublicIP, before.PublicIP) && slices.Equal(recall.Overwrite, before.Overwrite) && slices.Equal(recall.InternalIP, before.InternalIP) {
		return
	}
	s.recalled = recall
	select {
	case <-s.recalls: // nobody has taken it, and it is out of date
	default:
	}
	s.recalls <- recall
}

var overwriteNames = [...]string{lease.PublicIPOverwrite, lease.PublicIPv6Overwrite}

// overwritesOf are the addresses to be published instead of this host's own.
// Those that make no sense are left out: they keep the Node from being written,
// which says so.
func overwritesOf(node *corev1.Node, prefix lease.Prefix) (addrs []netip.Addr) {
	for _, name := range overwriteNames {
		if addr, err := netip.ParseAddr(node.Annotations[prefix.Name(name)]); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// How often the own Node is repaired when something keeps changing it.
const (
	firstRepairGap = time.Second
	lastRepairGap  = 30 * time.Second
	repairPeace    = time.Minute // without a repair, after which the next is immediate
)

// pace spaces out the repairs of what somebody breaks again and again.
type pace struct {
	before wish
	gap    time.Duration
	last   time.Time
}

// next is how long to wait with a repair. What is missing because another thing
// is wanted is nobody's doing, and is not waited with.
func (p *pace) next(now time.Time, wanted wish) (wait time.Duration) {
	if wanted == p.before && now.Sub(p.last) < repairPeace {
		wait = p.gap
	}
	*p = pace{before: wanted, gap: min(max(2*wait, firstRepairGap), lastRepairGap), last: now.Add(wait)}
	return wait
}

// wish tells apart what is wanted of the own Node at two times.
type wish struct {
	claim      *control.Claim
	overwrites [len(overwriteNames)]string
}

func (s *Source) wish(want own, node *corev1.Node) wish {
	w := wish{claim: want.claim}
	for i, name := range overwriteNames {
		w.overwrites[i] = node.Annotations[s.prefix.Name(name)]
	}
	return w
}
