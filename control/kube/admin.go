package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// DefaultNamespace is where deploy/weft.yaml puts weft, and invites put the
// accounts of guests.
const DefaultNamespace = "kube-weft"

// AdminConfig says where the API server is and who asks.
type AdminConfig struct {
	// Kubeconfig is a file; empty: what kubectl would take, or else the
	// credentials every Pod is given.
	Kubeconfig string
	Namespace  string // of guests' accounts; empty: DefaultNamespace
	Logger     *slog.Logger
}

// Admin makes and revokes invites. It needs an administrator's rights; revoking
// expired ones needs to list and delete Nodes alone.
type Admin struct {
	api       api
	namespace string
	access    Invite // how this administrator reaches the API server
	insecure  bool   // and does not know whether it is the right one
}

// NewAdmin builds a client. It does not talk to the API server.
func NewAdmin(cfg AdminConfig) (*Admin, error) {
	routeClientLogs(cfg.Logger)
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cfg.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no kubeconfig was found: set --kubeconfig-file or KUBECONFIG")
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig-file: %w", err)
	}
	admin := &Admin{namespace: cfg.Namespace, access: Invite{Server: config.Host, TLSServerName: config.ServerName, CA: config.CAData}}
	admin.insecure = config.Insecure
	if !strings.Contains(config.Host, "://") {
		admin.access.Server = "https://" + config.Host
	}
	if admin.namespace == "" {
		admin.namespace = DefaultNamespace
	}
	if config.CAFile != "" && len(config.CAData) == 0 {
		if admin.access.CA, err = os.ReadFile(config.CAFile); err != nil {
			return nil, fmt.Errorf("read the API server's certificate authority: %w", err)
		}
	}
	if admin.api, err = newAPI(config); err != nil {
		return nil, err
	}
	return admin, nil
}

// Close closes idle connections.
func (a *Admin) Close() { a.api.close() }

// Guest is an invite, as the cluster knows it.
type Guest struct {
	Name     string    `json:"name"`
	PodCIDRs []string  `json:"podCIDRs"`
	Expires  time.Time `json:"expires"` // zero: nobody can tell, and peers take it for expired
	// Joined is whether any machine has used the invite, Holder which one does
	// now, and Renewed when one last said so.
	Joined  bool      `json:"joined"`
	Holder  string    `json:"holder,omitempty"`
	Renewed time.Time `json:"renewed,omitzero"`
}

// Guests returns all guests, by name.
func (a *Admin) Guests(ctx context.Context) ([]Guest, error) {
	nodes, err := a.guestNodes(ctx)
	if err != nil {
		return nil, err
	}
	guests := make([]Guest, 0, len(nodes))
	for i := range nodes {
		guest, err := a.describe(ctx, &nodes[i])
		if err != nil {
			return nil, err
		}
		guests = append(guests, guest)
	}
	slices.SortFunc(guests, func(x, y Guest) int { return strings.Compare(x.Name, y.Name) })
	return guests, nil
}

func (a *Admin) guestNodes(ctx context.Context) ([]corev1.Node, error) {
	list, err := a.api.listNodes(ctx, metav1.ListOptions{LabelSelector: guestLabel + "=true"})
	if err != nil {
		return nil, fmt.Errorf("list guests: %w", err)
	}
	return list.Items, nil
}

func (a *Admin) describe(ctx context.Context, node *corev1.Node) (Guest, error) {
	guest := Guest{Name: node.Name, PodCIDRs: podCIDRs(node)}
	if at, err := time.Parse(time.RFC3339, node.Annotations[expiresAnnotation]); err == nil {
		guest.Expires = at
	}
	held, err := a.api.lease(ctx, node.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return Guest{}, err
	}
	if err == nil {
		guest.Joined = held.Spec.AcquireTime != nil
		guest.Holder, guest.Renewed = holderOf(held)
	}
	return guest, nil
}

// Revoke takes a guest's Node away, which every peer sees at once and which ends
// its token, and then what else the invite had made. It returns what it has
// deleted: nothing if there was no such guest. A Node that is no guest's is
// left alone.
func (a *Admin) Revoke(ctx context.Context, name string) (deleted []string, err error) {
	if err := CheckGuestName(name); err != nil {
		return nil, err
	}
	node, err := a.api.node(ctx, name)
	switch {
	case err == nil && !isGuest(node):
		return nil, fmt.Errorf("the Node %s is no guest (it has no label %s=true): it is not weft's to delete", name, guestLabel)
	case err == nil:
		if err := a.deleteNode(ctx, node, metav1.Preconditions{UID: &node.UID}); err != nil {
			return nil, err
		}
		deleted = append(deleted, "nodes/"+name)
	case !errors.Is(err, errNoNode):
		return nil, err
	default:
		node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	things := guestThings(node, a.namespace)
	slices.Reverse(things) // first the rights, last the account
	var errs []error
	for _, thing := range things {
		done, err := a.deleteThing(ctx, thing)
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			deleted = append(deleted, thing.String())
		}
	}
	return deleted, errors.Join(errs...)
}

// RevokeExpired revokes every guest whose invite ended before now. It is for a
// job whose only rights are those to list and delete Nodes: everything else is
// the garbage collector's.
func (a *Admin) RevokeExpired(ctx context.Context, now time.Time) (revoked []string, err error) {
	for range conflictTries {
		var again []string
		if again, err = a.revokeExpired(ctx, now); !apierrors.IsConflict(err) {
			return append(revoked, again...), err
		}
		revoked = append(revoked, again...)
	}
	return revoked, err
}

// conflictTries is how often Nodes are looked at again that have changed since.
const conflictTries = 5

// revokeExpired makes one pass; any other error goes before a conflict.
func (a *Admin) revokeExpired(ctx context.Context, now time.Time) (revoked []string, err error) {
	nodes, err := a.guestNodes(ctx)
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		if now.Before(guestExpiry(&nodes[i])) {
			continue
		}
		// Not if it was renewed meanwhile.
		unchanged := metav1.Preconditions{UID: &nodes[i].UID, ResourceVersion: &nodes[i].ResourceVersion}
		if failed := a.deleteNode(ctx, &nodes[i], unchanged); failed != nil {
			if err == nil || apierrors.IsConflict(err) {
				err = failed
			}
			continue
		}
		revoked = append(revoked, nodes[i].Name)
	}
	return revoked, err
}

// deleteNode deletes the Node that was looked at, and no other of its name.
func (a *Admin) deleteNode(ctx context.Context, node *corev1.Node, unchanged metav1.Preconditions) error {
	options := metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}, Preconditions: &unchanged}
	err := a.api.json(ctx, http.MethodDelete, "/api/v1/nodes/"+node.Name, options, nil)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Node %s: %w", node.Name, err)
	}
	return nil
}

// deleteThing deletes what an invite has made under a name, and nothing else
// that has the name.
func (a *Admin) deleteThing(ctx context.Context, thing guestThing) (done bool, err error) {
	var have metav1.PartialObjectMetadata
	path := thing.path + "/" + thing.name
	err = a.api.json(ctx, http.MethodGet, path, nil, &have)
	if err == nil && have.Labels[guestLabel] != "" {
		done = true
		err = a.api.json(ctx, http.MethodDelete, path, nil, nil)
	}
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %s: %w", thing, err)
	}
	return done, nil
}
