package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What marks the Node of a guest, a machine that is no Kubernetes node. None of
// it is under the prefix of the lease's annotations: a guest may not change it.
const (
	// guestLabel, with the value "true", is on the Node of every guest, and with
	// the Node's name on everything else that an invite makes. It is the key of
	// the Node's taints too.
	guestLabel = "weft-net.github.io/guest"
	// expiresAnnotation is when the invite ends, as RFC 3339 has it.
	expiresAnnotation = "weft-net.github.io/expires"
	// guestObject is what the names of a guest's account and rights begin with.
	guestObject = "weft-guest-"
)

// isGuest reports whether a Node is a guest's: made by an invite, and free to
// be deleted by revoking it.
func isGuest(node *corev1.Node) bool { return node.Labels[guestLabel] == "true" }

// guestExpiry is when a guest's invite ends; long ago if nobody can tell.
func guestExpiry(node *corev1.Node) time.Time {
	at, err := time.Parse(time.RFC3339, node.Annotations[expiresAnnotation])
	if err != nil {
		return time.Unix(0, 0)
	}
	return at
}
