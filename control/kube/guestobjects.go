package kube

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
	"github.com/weft-net/weft/tunnel"
)

// guestNode is the Node that stands for a guest. It must never take a Pod or be
// taken for a machine of the cluster's:
//   - two taints, no room for Pods, and no labels of an operating system, which
//     DaemonSets select: those tolerate every taint;
//   - no addresses: nobody shall dial a kubelet there;
//   - the VTEP MAC is chosen here and the guest cannot change it: with another
//     host's it could draw that host's traffic to itself, on hosts that run flanneld.
func guestNode(name string, expires time.Time, podCIDRs []netip.Prefix, published map[string]string) *corev1.Node {
	node := &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Labels: map[string]string{
				guestLabel:                       "true",
				corev1.LabelHostname:             name,
				corev1.LabelNodeExcludeBalancers: "",
			},
			Annotations: map[string]string{expiresAnnotation: expires.UTC().Format(time.RFC3339)},
		},
		Spec: corev1.NodeSpec{
			Unschedulable: true,
			Taints: []corev1.Taint{
				{Key: guestLabel, Value: "true", Effect: corev1.TaintEffectNoSchedule},
				{Key: guestLabel, Value: "true", Effect: corev1.TaintEffectNoExecute},
			},
		},
		Status: corev1.NodeStatus{
			Capacity:    corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")},
			Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")},
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "GuestHasNotJoined", Message: "no weft agent uses the invite yet",
			}},
		},
	}
	for key, value := range published {
		node.Annotations[key] = value
	}
	for _, cidr := range podCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, cidr.String())
	}
	if len(podCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
	return node
}

// guestData are the annotations that give a guest its VTEP MACs, random and so
// nobody else's. They make no member of it yet.
func guestData(config netconf.Config, prefix lease.Prefix) (map[string]string, error) {
	if config.Backend.Type == netconf.WireGuard {
		return nil, errors.New("a network with Backend.Type wireguard takes no guests, as a guest may not publish the backend's data: use vxlan, with Backend.Encrypt guests")
	}
	claim := control.Claim{Backend: config.Backend.Type}
	for _, family := range config.Families {
		// Any address will do: of what is made, only the backend's data is kept.
		leg := control.Leg{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, 1}), VNI: config.Backend.VNI}
		if family.Network.Addr().Is6() {
			leg.PublicIP = netip.MustParseAddr("2001:db8::1")
		}
		if config.Backend.Type == netconf.VXLAN {
			leg.MAC = randomMAC()
		}
		claim.Legs = append(claim.Legs, leg)
	}
	all, err := lease.Annotations(claim, prefix, nil)
	if err != nil {
		return nil, fmt.Errorf("choose the guest's MAC: %w", err)
	}
	data := map[string]string{}
	for _, name := range []string{prefix.Name(lease.BackendData), prefix.Name(lease.BackendV6Data)} {
		if value, ok := all[name]; ok {
			data[name] = value
		}
	}
	return data, nil
}

// randomMAC makes a locally administered unicast MAC.
func randomMAC() (mac tunnel.MAC) {
	rand.Read(mac[:]) // never fails
	mac[0] = mac[0]&0xfe | 0x02
	return mac
}

// guestThing is an object that an invite makes beside the Node: where those of
// its kind are, and what it is there.
type guestThing struct {
	path, name string
	object     any
}

func (g guestThing) String() string { return path.Base(g.path) + "/" + g.name }

// guestThings are what an invite makes beside the Node, in order: the Lease, and
// an account that may read what an agent needs and change this one Node's
// status and Lease. The garbage collector takes them away after the Node, also
// if it was not weft that deleted it.
func guestThings(node *corev1.Node, namespace string) []guestThing {
	name := guestObject + node.Name
	meta := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Name: name, Namespace: namespace, Labels: map[string]string{guestLabel: node.Name},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		}
	}
	kind := func(group, kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: group, Kind: kind} }
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: namespace}}
	ref := func(kind string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	}
	const rbac = "rbac.authorization.k8s.io/v1"
	no := false
	return []guestThing{
		{"/apis/coordination.k8s.io/v1/namespaces/" + leaseNamespace + "/leases", node.Name, &coordinationv1.Lease{
			TypeMeta: kind("coordination.k8s.io/v1", "Lease"), ObjectMeta: meta(leaseNamespace, node.Name),
		}},
		{"/api/v1/namespaces/" + namespace + "/serviceaccounts", name, &corev1.ServiceAccount{
			TypeMeta: kind("v1", "ServiceAccount"), ObjectMeta: meta(namespace, name), AutomountServiceAccountToken: &no,
		}},
		{"/apis/" + rbac + "/clusterroles", name, &rbacv1.ClusterRole{
			TypeMeta: kind(rbac, "ClusterRole"), ObjectMeta: meta("", name), Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}},
				{APIGroups: []string{""}, Resources: []string{"nodes/status"}, ResourceNames: []string{node.Name}, Verbs: []string{"patch"}},
				{APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"get", "list", "watch"}},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
			},
		}},
		{"/apis/" + rbac + "/clusterrolebindings", name, &rbacv1.ClusterRoleBinding{
			TypeMeta: kind(rbac, "ClusterRoleBinding"), ObjectMeta: meta("", name), RoleRef: ref("ClusterRole"), Subjects: subjects,
		}},
		{"/apis/" + rbac + "/namespaces/" + leaseNamespace + "/roles", name, &rbacv1.Role{
			TypeMeta: kind(rbac, "Role"), ObjectMeta: meta(leaseNamespace, name), Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{node.Name}, Verbs: []string{"get", "update"}},
			},
		}},
		{"/apis/" + rbac + "/namespaces/" + leaseNamespace + "/rolebindings", name, &rbacv1.RoleBinding{
			TypeMeta: kind(rbac, "RoleBinding"), ObjectMeta: meta(leaseNamespace, name), RoleRef: ref("Role"), Subjects: subjects,
		}},
	}
}
