package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A guest has no kubelet, so its agent does what keeps a Node from being taken
// for dead: it renews the Node's Lease. The Lease also says which machine uses
// the invite, for one may be copied.
const (
	leaseNamespace = corev1.NamespaceNodeLease
	leaseRenewal   = 10 * time.Second
	leaseDuration  = 40 * time.Second
	// An API server that starts may refuse a good token for a moment.
	refusedFor = 5 * time.Second
)

// The condition of a guest whose agent is at work.
const (
	guestReason  = "GuestIsUp"
	guestMessage = "a weft agent keeps this guest a member of the pod network"
)

// finalError ends a Source: waiting would not help.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// hold is a guest's hold on its invite.
type hold struct {
	identity string // this process: the machine, then something random

	mu      sync.Mutex
	invite  Invite    // as last read
	refused time.Time // since when the API server refuses the token; zero: it does not
}

// now is the invite as last read.
func (h *hold) now() Invite {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.invite
}

// reread takes over a renewed invite, put where the first one was: it is the
// same guest with more time. It reports whether there was one.
func (h *hold) reread() bool {
	old := h.now()
	if old.path == "" {
		return false
	}
	fresh, err := LoadInvite(old.path)
	if err != nil || fresh.Node != old.Node || !fresh.Expires.After(old.Expires) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.invite = fresh
	return true
}

// guestTransport says who the guest is, by the token it has now.
type guestTransport struct {
	next http.RoundTripper
	hold *hold
}

// RoundTrip implements http.RoundTripper.
func (t guestTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+t.hold.now().Token)
	return t.next.RoundTrip(request)
}

// holdTime is how Lease holders are shown to people.
func holdTime(at time.Time) string { return at.Local().Format("15:04:05") }

// final returns what err means to a guest: the end, if the Node or the right to
// use it is gone. Everything else passes through.
func (s *Source) final(err error) error {
	if s.cfg.Invite == nil {
		return err
	}
	name := s.cfg.Invite.Node
	s.hold.mu.Lock()
	defer s.hold.mu.Unlock()
	switch now := time.Now(); {
	case apierrors.IsUnauthorized(err):
		if s.hold.refused.IsZero() {
			s.hold.refused = now
		}
		if now.Sub(s.hold.refused) < refusedFor {
			return err
		}
		if end := s.hold.invite.Expires; !now.Before(end) {
			return finalError{expired(name, end)}
		}
		return finalError{fmt.Errorf("the API server does not take the token of %s any more: the invite was revoked; ask an administrator for a new one (weft invite %s)", name, name)}
	case errors.Is(err, errNoNode):
		return finalError{fmt.Errorf("the Node %s is gone: the invite was revoked; ask an administrator for a new one (weft invite %s)", name, name)}
	}
	s.hold.refused = time.Time{}
	return err
}

// guestGone asks whether the own Node is gone for good, which its absence from
// a list is no proof of. It returns nil while nobody can say.
func (s *Source) guestGone(ctx context.Context) error {
	err := once(ctx, func(ctx context.Context) error {
		_, err := s.api.node(ctx, s.cfg.Invite.Node)
		return err
	})
	if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
		// The token is bound to the Node, and so are the rights. The API server
		// may remember the token for some seconds longer than the rights.
		err = errNoNode
	}
	var end finalError
	if errors.As(s.final(err), &end) {
		return end
	}
	return nil
}

// take makes this process the one that uses the invite. It is refused while
// another machine does; an earlier process of the same machine is replaced.
func (s *Source) take(ctx context.Context) error {
	held, err := s.api.lease(ctx, s.cfg.Invite.Node)
	if err != nil {
		return err
	}
	if other, renewed := holderOf(held); other != "" && !s.sameMachine(other) && time.Since(renewed) < leaseDuration {
		return finalError{fmt.Errorf("the invite of %s is in use: %.120q renewed it at %s by this machine's clock. Stop the agent there and try again %s later, or ask for an invite for each machine",
			s.cfg.Invite.Node, other, holdTime(renewed), leaseDuration)}
	}
	return s.renew(ctx, held)
}

// sameMachine reports whether a holder is an agent of this machine.
func (s *Source) sameMachine(holder string) bool {
	return strings.HasPrefix(holder, s.cfg.Machine+"/")
}

// renew writes the Lease over the state that was read: if anybody has written
// since, it fails with a conflict.
func (s *Source) renew(ctx context.Context, held *coordinationv1.Lease) error {
	now, seconds := metav1.NowMicro(), int32(leaseDuration/time.Second)
	if other, _ := holderOf(held); other != s.hold.identity {
		held.Spec.AcquireTime = &now
		transitions := int32(1)
		if held.Spec.LeaseTransitions != nil {
			transitions += *held.Spec.LeaseTransitions
		}
		held.Spec.LeaseTransitions = &transitions
	}
	held.Spec.HolderIdentity, held.Spec.LeaseDurationSeconds, held.Spec.RenewTime = &s.hold.identity, &seconds, &now
	return s.api.putLease(ctx, held)
}

// holderOf is who holds a Lease, and when that was last renewed.
func holderOf(held *coordinationv1.Lease) (holder string, renewed time.Time) {
	if held.Spec.HolderIdentity != nil {
		holder = *held.Spec.HolderIdentity
	}
	if held.Spec.RenewTime != nil {
		renewed = held.Spec.RenewTime.Time
	}
	return holder, renewed
}

// keepHold renews the Lease until ctx is done, the invite ends or another
// machine has it; it lets go of the Lease when ctx is done, so that the invite
// can be used elsewhere at once.
func (s *Source) keepHold(ctx context.Context) error {
	end := time.NewTimer(time.Until(s.hold.now().Expires))
	defer end.Stop()
	tick := time.NewTicker(leaseRenewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.letGo(context.WithoutCancel(ctx))
			return ctx.Err()
		case <-end.C:
			if !s.hold.reread() {
				return expired(s.cfg.Invite.Node, s.hold.now().Expires)
			}
			end.Reset(time.Until(s.hold.now().Expires))
		case <-tick.C:
			if s.hold.reread() {
				s.cfg.Logger.Info("the invite was renewed", "expires", s.hold.now().Expires)
				end.Reset(time.Until(s.hold.now().Expires))
			}
		}
		if err := s.retry(ctx, topicHold, s.renewOwn); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// renewOwn renews the Lease if this process holds it, or could again: nobody
// else took it while it was stale.
func (s *Source) renewOwn(ctx context.Context) error {
	held, err := s.api.lease(ctx, s.cfg.Invite.Node)
	if err != nil {
		return err
	}
	if other, renewed := holderOf(held); other != "" && other != s.hold.identity {
		return finalError{fmt.Errorf("the invite of %s is now in use by %.120q, which renewed it at %s: this agent ends; ask for an invite for each machine",
			s.cfg.Invite.Node, other, holdTime(renewed))}
	}
	return s.renew(ctx, held)
}

// letGo gives the Lease back if this process holds it. A failure costs the next
// machine some waiting and nothing else.
func (s *Source) letGo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	held, err := s.api.lease(ctx, s.cfg.Invite.Node)
	if err == nil {
		if holder, _ := holderOf(held); holder != s.hold.identity {
			return
		}
		held.Spec.HolderIdentity = nil
		err = s.api.putLease(ctx, held)
	}
	if err != nil {
		s.cfg.Logger.Debug("cannot let go of the invite", "err", err)
	}
}

// leasePath is where the Lease of a Node is.
func leasePath(node string) string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + leaseNamespace + "/leases/" + node
}

func (a api) lease(ctx context.Context, node string) (*coordinationv1.Lease, error) {
	held := new(coordinationv1.Lease)
	if err := a.json(ctx, http.MethodGet, leasePath(node), nil, held); err != nil {
		return nil, fmt.Errorf("get Lease of %s: %w", node, err)
	}
	return held, nil
}

func (a api) putLease(ctx context.Context, held *coordinationv1.Lease) error {
	if err := a.json(ctx, http.MethodPut, leasePath(held.Name), held, nil); err != nil {
		return fmt.Errorf("renew Lease of %s: %w", held.Name, err)
	}
	return nil
}

// json makes a request of any API group, for the resources that are asked for
// too rarely to be worth a client of their own. in and out may be nil.
func (a api) json(ctx context.Context, verb, path string, in, out any) error {
	request := a.rest.Verb(verb).MaxRetries(0).AbsPath(path).SetHeader("Accept", "application/json")
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		request = request.SetHeader("Content-Type", "application/json").Body(body)
	}
	answer, err := request.Do(ctx).Raw()
	if err != nil || out == nil {
		return err
	}
	return decodeAnswer(answer, out)
}

func decodeAnswer(answer []byte, out any) error {
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}
