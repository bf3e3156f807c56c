package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// own is what this host wants of its own Node. It is a value: a change
// replaces it.
type own struct {
	claim   *control.Claim // nil before Acquire
	subnets []netip.Prefix // as acquired, in the order of claim.Legs
	ready   bool
	guest   bool // no kubelet says that the Node is ready
}

// The condition that keeps Pods away from a Node, and flannel's words for it.
const (
	readyReason  = "FlannelIsUp"
	readyMessage = "Flannel is running on this node"
)

// recallOf reads what the Node knows about this host.
func recallOf(node *corev1.Node, prefix lease.Prefix) (control.Recall, error) {
	public, err := lease.NodePublicIPs(node.Annotations, prefix)
	if err != nil {
		return control.Recall{}, fmt.Errorf("Node %s: %w", node.Name, err)
	}
	recall := control.Recall{
		Host: node.Name, MACs: lease.NodeMACs(node.Annotations, prefix), Keys: lease.NodeKeys(node.Annotations, prefix),
		PublicIP: public, Overwrite: overwritesOf(node, prefix),
	}
	for _, address := range node.Status.Addresses {
		if address.Type != corev1.NodeInternalIP {
			continue
		}
		// Not an IP address: of no use here, and no reason to stay away.
		if addr, err := netip.ParseAddr(address.Address); err == nil {
			recall.InternalIP = append(recall.InternalIP, addr.Unmap())
		}
	}
	return recall, nil
}

// Acquire waits until the own Node has a podCIDR of every family of the claim,
// inside that family's network, and publishes the claim. From then on Run
// keeps it published.
func (s *Source) Acquire(ctx context.Context, claim control.Claim) (control.Lease, error) {
	name, err := s.NodeName(ctx)
	if err != nil {
		return control.Lease{}, err
	}
	claim.Legs = slices.Clone(claim.Legs)
	var acquired control.Lease
	err = s.retry(ctx, topicOwn, func(ctx context.Context) error {
		if s.cfg.Invite != nil {
			if err := s.take(ctx); err != nil {
				return err
			}
		}
		node, err := s.api.node(ctx, name)
		if err != nil {
			return err
		}
		want := own{claim: &claim, ready: s.wanted().ready, guest: s.cfg.Invite != nil}
		if want.subnets, err = s.subnetsFor(claim, node); err != nil {
			return err
		}
		if node, _, err = s.repair(ctx, want, node); err != nil {
			return err
		}
		if acquired, err = ownLease(claim, node, s.prefix); err != nil {
			return err
		}
		s.want(want)
		return nil
	})
	return acquired, err
}

// subnetsFor picks the Node's podCIDR of each leg's family.
func (s *Source) subnetsFor(claim control.Claim, node *corev1.Node) ([]netip.Prefix, error) {
	s.mu.Lock()
	networks := s.networks
	s.mu.Unlock()
	assigned, err := lease.NodeSubnets(podCIDRs(node))
	if err != nil {
		return nil, fmt.Errorf("Node %s: %w (kube-controller-manager assigns it, with --allocate-node-cidrs)", node.Name, err)
	}
	subnets := make([]netip.Prefix, 0, len(claim.Legs))
	for _, leg := range claim.Legs {
		sameFamily := func(p netip.Prefix) bool { return p.Addr().Is4() == leg.PublicIP.Is4() }
		i := slices.IndexFunc(assigned, sameFamily)
		if i < 0 {
			return nil, fmt.Errorf("Node %s: none of its pod CIDRs %v is of the family of %s: enable that family in the cluster, or disable it in net-conf.json",
				node.Name, assigned, leg.PublicIP)
		}
		if n := slices.IndexFunc(networks, sameFamily); n >= 0 && !inside(assigned[i], networks[n]) {
			return nil, fmt.Errorf("Node %s: pod CIDR %s is outside of the network %s in net-conf.json: make Network the cluster CIDR of kube-controller-manager",
				node.Name, assigned[i], networks[n])
		}
		subnets = append(subnets, assigned[i])
	}
	return subnets, nil
}

// inside reports whether p is a part of network.
func inside(p, network netip.Prefix) bool {
	return network.Contains(p.Addr()) && p.Bits() >= network.Bits()
}

// ownLease reads the own Node as any peer will read it.
func ownLease(claim control.Claim, node *corev1.Node, prefix lease.Prefix) (control.Lease, error) {
	read, managed := lease.FromNode(nodeData(node), prefix)
	if !managed {
		return control.Lease{}, fmt.Errorf("Node %s: somebody removed the annotations while they were set", node.Name)
	}
	read.Legs = slices.DeleteFunc(read.Legs, func(leg control.Leg) bool {
		return !slices.ContainsFunc(claim.Legs, func(c control.Leg) bool { return c.PublicIP.Is4() == leg.Subnet.Addr().Is4() })
	})
	if len(read.Legs) != len(claim.Legs) {
		return control.Lease{}, fmt.Errorf("Node %s: its lease is not usable by peers: %v", node.Name, read.Problems)
	}
	return read, nil
}

// Ready lets Pods onto the Node: it has Run set the condition
// NetworkUnavailable to False, and again whenever something sets it back. It
// does not wait.
func (s *Source) Ready(context.Context) error {
	if !s.cfg.SetNetworkUnavailable {
		return nil
	}
	s.mu.Lock()
	s.own.ready = true
	s.mu.Unlock()
	s.poke()
	return nil
}

func (s *Source) wanted() own {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own
}

func (s *Source) want(want own) {
	s.mu.Lock()
	want.ready = want.ready || s.own.ready
	s.own = want
	s.mu.Unlock()
	s.poke()
}

// poke has keepOwn look at the own Node.
func (s *Source) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// repair makes the Node what is wanted, and says what was missing.
func (s *Source) repair(ctx context.Context, want own, node *corev1.Node) (*corev1.Node, []string, error) {
	patch, missing, err := missing(want, node, s.prefix)
	if err != nil || len(missing) == 0 {
		return node, nil, err
	}
	patched, err := s.api.patchNode(ctx, node.Name, patch)
	if err != nil {
		return nil, nil, err
	}
	return patched, missing, nil
}

// nodePatch is a strategic merge patch of a Node; null takes an annotation away.
type nodePatch struct {
	Metadata struct {
		Annotations map[string]*string `json:"annotations,omitempty"`
	} `json:"metadata"`
	Status struct {
		Conditions []corev1.NodeCondition `json:"conditions,omitempty"`
	} `json:"status"`
}

// missing returns the patch that makes node what is wanted, and the sorted
// names of what it sets or takes away: only what differs.
func missing(want own, node *corev1.Node, prefix lease.Prefix) (data []byte, names []string, err error) {
	var patch nodePatch
	if want.claim != nil {
		annotations, err := lease.Annotations(*want.claim, prefix, node.Annotations)
		if err != nil {
			return nil, nil, fmt.Errorf("Node %s: %w", node.Name, err)
		}
		for name, value := range annotations {
			if have, ok := node.Annotations[name]; ok && have == value {
				continue
			}
			if patch.Metadata.Annotations == nil {
				patch.Metadata.Annotations = map[string]*string{}
			}
			patch.Metadata.Annotations[name] = nil
			if value != "" {
				patch.Metadata.Annotations[name] = &value
			}
			names = append(names, name)
		}
		slices.Sort(names)
	}
	patch.Status.Conditions = missingConditions(want, node)
	for _, condition := range patch.Status.Conditions {
		names = append(names, string(condition.Type))
	}
	data, err = json.Marshal(patch)
	if err != nil {
		return nil, nil, fmt.Errorf("encode patch of Node %s: %w", node.Name, err)
	}
	return data, names, nil
}

// missingConditions are the conditions that the Node lacks or has otherwise.
func missingConditions(want own, node *corev1.Node) []corev1.NodeCondition {
	if !want.ready {
		return nil
	}
	conditions := []corev1.NodeCondition{
		{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: readyReason, Message: readyMessage},
	}
	if want.guest {
		conditions = append(conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: guestReason, Message: guestMessage})
	}
	var lacking []corev1.NodeCondition
	for _, condition := range conditions {
		have := conditionOf(node, condition.Type)
		if have.Status == condition.Status && have.Reason == condition.Reason {
			continue
		}
		condition.LastHeartbeatTime = metav1.NewTime(time.Now())
		if condition.LastTransitionTime = have.LastTransitionTime; have.Status != condition.Status {
			condition.LastTransitionTime = condition.LastHeartbeatTime
		}
		lacking = append(lacking, condition)
	}
	return lacking
}

// conditionOf is one of a Node's conditions; the zero value if it has it not.
func conditionOf(node *corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, condition := range node.Status.Conditions {
		if condition.Type == kind {
			return condition
		}
	}
	return corev1.NodeCondition{}
}

// errSubnetLost ends Run: whatever has the old subnet must start over.
var errSubnetLost = errors.New("start again to take the new subnet")

// keepOwn keeps the own Node what is wanted until ctx is done or the Node has
// another subnet.
func (s *Source) keepOwn(ctx context.Context) error {
	var pace pace
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		node, known := s.nodes.ownNode()
		if !known {
			continue
		}
		want := s.wanted()
		if want.claim == nil {
			continue
		}
		if node == nil && s.cfg.Invite != nil {
			if err := s.guestGone(ctx); err != nil {
				return err
			}
		}
		if node == nil {
			s.waiting(topicOwn, "this host's Node was deleted; waiting for it to come back")
			continue
		}
		if err := s.checkSubnets(want, node); err != nil {
			return err
		}
		_, names, err := missing(want, node, s.prefix)
		if err != nil {
			s.waiting(topicOwn, err.Error()) // the user's to mend, which pokes
			continue
		}
		s.tellRecall(node)
		if len(names) == 0 {
			s.waiting(topicOwn, "")
			continue
		}
		if err := pause(ctx, pace.next(time.Now(), s.wish(want, node))); err != nil {
			return err
		}
		s.repairNow(ctx)
	}
}

// checkSubnets fails once the Node has other subnets than those acquired. A
// Node without any may just have been made anew.
func (s *Source) checkSubnets(want own, node *corev1.Node) error {
	if len(podCIDRs(node)) == 0 {
		return nil
	}
	subnets, err := s.subnetsFor(*want.claim, node)
	if err != nil {
		return fmt.Errorf("%w; this host held %v: %w", err, want.subnets, errSubnetLost)
	}
	if !slices.Equal(subnets, want.subnets) {
		return fmt.Errorf("Node %s: its pod CIDRs changed from %v to %v: %w", node.Name, want.subnets, subnets, errSubnetLost)
	}
	return nil
}

// repairNow repairs the own Node as it is now, once; a failure is tried again
// by the next token.
func (s *Source) repairNow(ctx context.Context) {
	node, known := s.nodes.ownNode()
	if !known || node == nil {
		return
	}
	err := once(ctx, func(ctx context.Context) error {
		repaired, names, err := s.repair(ctx, s.wanted(), node)
		if err == nil && len(names) > 0 {
			s.nodes.repaired(node, repaired)
			s.cfg.Logger.Info("set on the own Node", "node", node.Name, "names", names)
		}
		return err
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.waiting(topicOwn, plain(err))
		s.poke()
		return
	}
	s.waiting(topicOwn, "")
}
