package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
)

// InviteRequest says whom to invite. Only Name and TTL are needed.
type InviteRequest struct {
	Name string
	TTL  time.Duration // MinTTL to MaxTTL
	// Renew gives a guest that is there already another token, and more time.
	Renew bool
	// PodCIDRs are for clusters whose controller manager does not hand any out;
	// at most one per family.
	PodCIDRs []netip.Prefix
	NetConf  []byte // net-conf.json; nil: weft's or flannel's ConfigMap
	Prefix   string // of annotations; empty: flannel's
	// APIURL is where the guest finds the API server; empty: where this
	// administrator does.
	APIURL        string
	ClusterDomain string // empty: CoreDNS' configuration, or else cluster.local
	// WithoutPolicy makes an invite though the admission policy is not in force.
	WithoutPolicy bool
}

// Bounds of an invite's time. Kubernetes gives no token for less than the least.
const (
	MinTTL = 10 * time.Minute
	MaxTTL = 366 * 24 * time.Hour
)

// Limits of waiting for the cluster's own controllers.
const (
	podCIDRWait = 30 * time.Second
	rightsWait  = 15 * time.Second
	policyWait  = 5 * time.Second
	inviteRetry = 100 * time.Millisecond
)

// Invite makes a guest, and all it needs to join. If it fails, nothing of it is
// left, unless the guest was there before. notes are what the administrator
// should know though it went well.
func (a *Admin) Invite(ctx context.Context, request InviteRequest) (invite Invite, notes []string, err error) {
	config, err := a.complete(ctx, &request)
	if err != nil {
		return Invite{}, nil, err
	}
	node, err := a.guestNode(ctx, request, config)
	if err != nil {
		return Invite{}, nil, err
	}
	if !request.Renew {
		defer func() {
			if err != nil {
				undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
				defer cancel()
				_, failed := a.Revoke(undo, request.Name)
				err = errors.Join(err, failed)
			}
		}()
	}
	if err := a.awaitPodCIDR(ctx, node, config); err != nil {
		return Invite{}, nil, err
	}
	for _, thing := range guestThings(node, a.namespace) {
		if err := a.makeThing(ctx, thing, request.Renew); err != nil {
			return Invite{}, nil, err
		}
	}
	invite = a.access
	invite.Node, invite.NetConf, invite.Prefix, invite.ClusterDomain = request.Name, request.NetConf, request.Prefix, request.ClusterDomain
	invite.Server = request.APIURL
	if notes, err = a.admit(ctx, request, node, &invite); err != nil {
		return Invite{}, nil, err
	}
	found, err := a.findNetwork(ctx, &invite)
	if err != nil {
		return Invite{}, nil, err
	}
	if server, err := url.Parse(invite.Server); err == nil && isLoopback(server.Hostname()) {
		notes = append(notes, fmt.Sprintf("the guest is told that the API server is at %s, which is the machine it runs on: set --guest-api-url for guests elsewhere", invite.Server))
	}
	return invite, append(notes, found...), invite.check()
}

// isLoopback reports whether a URL's host is this very machine.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// complete checks the request and fills in what can be found out.
func (a *Admin) complete(ctx context.Context, request *InviteRequest) (netconf.Config, error) {
	if err := CheckGuestName(request.Name); err != nil {
		return netconf.Config{}, err
	}
	if request.TTL < MinTTL || request.TTL > MaxTTL {
		return netconf.Config{}, fmt.Errorf("--ttl %s: want %s to %s", request.TTL, MinTTL, MaxTTL)
	}
	if request.Prefix == "" {
		request.Prefix = string(lease.DefaultPrefix)
	}
	prefix, err := lease.ParsePrefix(request.Prefix)
	if err != nil {
		return netconf.Config{}, fmt.Errorf("--kube-annotation-prefix: %w", err)
	}
	request.Prefix = string(prefix)
	if a.insecure {
		return netconf.Config{}, errors.New("the kubeconfig does not say how to know the API server (insecure-skip-tls-verify), and so the invite could not: put certificate-authority-data there")
	}
	if request.APIURL == "" {
		request.APIURL = a.access.Server
	}
	if server, err := url.Parse(request.APIURL); err != nil || server.Scheme != "https" || server.Host == "" {
		return netconf.Config{}, fmt.Errorf("the guest would reach the API server at %.80q: want an https URL, set --guest-api-url", request.APIURL)
	}
	if request.NetConf == nil {
		if request.NetConf, err = a.findNetConf(ctx); err != nil {
			return netconf.Config{}, err
		}
	}
	config, err := netconf.Parse(request.NetConf)
	if err != nil {
		return netconf.Config{}, fmt.Errorf("net-conf.json: %w", err)
	}
	return config, nil
}

// findNetConf reads the network configuration of the cluster's agents.
func (a *Admin) findNetConf(ctx context.Context) ([]byte, error) {
	for _, at := range []objectKey{{a.namespace, "weft"}, {"kube-flannel", "kube-flannel-cfg"}, {"kube-system", "kube-flannel-cfg"}} {
		files, err := a.configMap(ctx, at)
		if err != nil {
			return nil, err
		}
		if text := files["net-conf.json"]; text != "" {
			return []byte(text), nil
		}
	}
	return nil, fmt.Errorf("no ConfigMap %s/weft or kube-flannel/kube-flannel-cfg holds net-conf.json: set --net-config-path", a.namespace)
}

// configMap is a ConfigMap's files; none if there is none.
func (a *Admin) configMap(ctx context.Context, at objectKey) (map[string]string, error) {
	var object corev1.ConfigMap
	err := a.api.json(ctx, http.MethodGet, "/api/v1/namespaces/"+at.namespace+"/configmaps/"+at.name, nil, &object)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("get ConfigMap %s/%s: %w", at.namespace, at.name, err)
	}
	return object.Data, nil
}

// guestNode makes the guest's Node, or with Renew finds it.
func (a *Admin) guestNode(ctx context.Context, request InviteRequest, config netconf.Config) (*corev1.Node, error) {
	node, err := a.api.node(ctx, request.Name)
	switch {
	case err != nil && !errors.Is(err, errNoNode):
		return nil, err
	case err == nil && !isGuest(node):
		return nil, fmt.Errorf("%s is a Node of the cluster: choose another name", request.Name)
	case err == nil && !request.Renew:
		return nil, fmt.Errorf("%s has been invited already: 'weft invite %s --renew' gives it more time, 'weft revoke %s' ends it", request.Name, request.Name, request.Name)
	case err == nil:
		return node, nil
	case request.Renew:
		return nil, fmt.Errorf("there is no guest %s to renew: leave --renew out", request.Name)
	}
	if err := a.checkFree(ctx, request.PodCIDRs); err != nil {
		return nil, err
	}
	data, err := guestData(config, lease.Prefix(request.Prefix))
	if err != nil {
		return nil, err
	}
	node = guestNode(request.Name, time.Now().Add(request.TTL), request.PodCIDRs, data)
	if err := a.api.json(ctx, http.MethodPost, "/api/v1/nodes", node, node); err != nil {
		return nil, fmt.Errorf("create Node %s: %w", request.Name, err)
	}
	return node, nil
}

// checkFree refuses pod CIDRs that some Node has: nobody else would.
func (a *Admin) checkFree(ctx context.Context, wanted []netip.Prefix) error {
	if len(wanted) == 0 {
		return nil
	}
	list, err := a.api.listNodes(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Nodes: %w", err)
	}
	for i := range list.Items {
		taken, _ := lease.NodeSubnets(podCIDRs(&list.Items[i])) // what is unreadable is used by nobody
		for _, prefix := range wanted {
			if slices.ContainsFunc(taken, prefix.Overlaps) {
				return fmt.Errorf("--pod-cidr %s: overlaps that of Node %s, %v", prefix, list.Items[i].Name, taken)
			}
		}
	}
	return nil
}

// awaitPodCIDR waits until the Node has a pod CIDR inside each network.
func (a *Admin) awaitPodCIDR(ctx context.Context, node *corev1.Node, config netconf.Config) error {
	err := a.poll(ctx, podCIDRWait, func(ctx context.Context) error {
		fresh, err := a.api.node(ctx, node.Name)
		if err != nil {
			return err
		}
		if *node = *fresh; len(podCIDRs(node)) == 0 {
			return errors.New("no pod CIDR was assigned: kube-controller-manager does that, with --allocate-node-cidrs; where nothing does, choose a free one with --pod-cidr")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the pod CIDR of Node %s: %w", node.Name, err)
	}
	assigned, err := lease.NodeSubnets(podCIDRs(node))
	if err != nil {
		return fmt.Errorf("Node %s: %w", node.Name, err)
	}
	for _, network := range config.Networks() {
		if !slices.ContainsFunc(assigned, func(p netip.Prefix) bool { return inside(p, network) }) {
			return fmt.Errorf("Node %s was given %v, and none of it is inside of the network %s in net-conf.json", node.Name, assigned, network)
		}
	}
	return nil
}

// poll calls attempt until it succeeds, or returns its last error after limit.
func (a *Admin) poll(ctx context.Context, limit time.Duration, attempt func(context.Context) error) error {
	for end := time.Now().Add(limit); ; {
		err := once(ctx, attempt)
		if err == nil || time.Now().After(end) {
			return err
		}
		if stopped := pause(ctx, inviteRetry); stopped != nil {
			return stopped
		}
	}
}

// makeThing creates an object. What an earlier guest of the name has left goes
// first: it belongs to a Node that is no more. keep leaves the Lease as it is.
func (a *Admin) makeThing(ctx context.Context, thing guestThing, keep bool) error {
	create := func() error { return a.api.json(ctx, http.MethodPost, thing.path, thing.object, nil) }
	err := create()
	if apierrors.IsAlreadyExists(err) && keep {
		return nil
	}
	if apierrors.IsAlreadyExists(err) {
		if _, err := a.deleteThing(ctx, thing); err != nil {
			return err
		}
		err = create()
	}
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("create %s: %w (is %s applied to the cluster?)", thing, err, "deploy/guests.yaml")
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", thing, err)
	}
	return nil
}

// admit gives the guest its token, and tries out that it may do what it must
// and nothing else.
func (a *Admin) admit(ctx context.Context, request InviteRequest, node *corev1.Node, invite *Invite) (notes []string, err error) {
	seconds := int64(request.TTL / time.Second)
	token := authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			// The token dies with the Node, and names it to the admission policy.
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID},
		},
	}
	path := "/api/v1/namespaces/" + a.namespace + "/serviceaccounts/" + guestObject + node.Name + "/token"
	if err := a.api.json(ctx, http.MethodPost, path, token, &token); err != nil {
		return nil, fmt.Errorf("make a token bound to Node %s: %w", node.Name, err)
	}
	invite.Token, invite.Expires = token.Status.Token, token.Status.ExpirationTimestamp.UTC().Truncate(time.Second)
	if given := time.Until(invite.Expires); given < request.TTL-time.Minute {
		notes = append(notes, fmt.Sprintf("the API server gives tokens for %s at most: the invite ends after that", given.Round(time.Minute)))
	}
	if err := a.setExpiry(ctx, node.Name, invite.Expires); err != nil {
		return nil, err
	}
	unheld, err := a.tryOut(ctx, *invite, node)
	if err != nil {
		return nil, err
	}
	if unheld && !request.WithoutPolicy {
		return nil, errors.New("the admission policy of guests is not in force, so this one could change its Node's labels, capacity and addresses: " +
			"kubectl apply -f deploy/admission.yaml, or --without-policy if that is no concern")
	}
	if unheld {
		notes = append(notes, "the admission policy of guests is not in force: this one may change anything in its own Node's status")
	}
	return notes, nil
}

func (a *Admin) setExpiry(ctx context.Context, name string, at time.Time) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{expiresAnnotation: at.Format(time.RFC3339)}}})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	err = a.api.nodes(http.MethodPatch).SetHeader("Content-Type", string(types.MergePatchType)).Name(name).Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("set the expiry of Node %s: %w", name, err)
	}
	return nil
}

// tryOut makes dry runs as the guest: of what it must be allowed, waiting until
// it is, and of what the admission policy must refuse. unheld: it does not.
func (a *Admin) tryOut(ctx context.Context, invite Invite, node *corev1.Node) (unheld bool, err error) {
	// As this administrator reaches the server: the guest's way may be another.
	invite.Server, invite.TLSServerName, invite.CA = a.access.Server, a.access.TLSServerName, a.access.CA
	config, err := invite.restConfig()
	if err != nil {
		return false, err
	}
	guest, err := newAPI(config)
	if err != nil {
		return false, err
	}
	defer guest.close()
	dryRun := func(ctx context.Context, annotation string) error {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"true"}}}`, annotation)
		return guest.nodes(http.MethodPatch).SetHeader("Content-Type", string(types.MergePatchType)).Name(node.Name).SubResource("status").
			Param("dryRun", metav1.DryRunAll).Body([]byte(patch)).Do(ctx).Error()
	}
	err = a.poll(ctx, rightsWait, func(ctx context.Context) error {
		_, err := guest.lease(ctx, node.Name)
		return errors.Join(err, dryRun(ctx, lease.Prefix(invite.Prefix).Name(lease.KubeSubnetManager)))
	})
	if err != nil {
		return false, fmt.Errorf("try out the rights of guest %s: %w", node.Name, err)
	}
	var patched error
	_ = a.poll(ctx, policyWait, func(ctx context.Context) error {
		if patched = dryRun(ctx, guestLabel+"-probe"); patched == nil {
			return errors.New("not refused yet")
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case patched != nil && !apierrors.IsInvalid(patched) && !apierrors.IsForbidden(patched):
		return false, fmt.Errorf("try out what guest %s may not do: %w", node.Name, patched)
	}
	return patched == nil, nil
}

// coreDNSDomain is the line of a Corefile that names the cluster's domain.
var coreDNSDomain = regexp.MustCompile(`(?m)^\s*kubernetes\s+([^\s{]+)`)

// findNetwork looks for what a device-less guest needs to know of Services.
func (a *Admin) findNetwork(ctx context.Context, invite *Invite) (notes []string, err error) {
	if invite.DNS, err = a.api.findDNS(ctx); err != nil {
		return nil, err
	}
	if len(invite.DNS) == 0 {
		notes = append(notes, "there is no Service kube-system/kube-dns: the guest will need --dns to resolve names of Services")
	}
	var ranges struct {
		Items []struct {
			Spec struct {
				CIDRs []netip.Prefix `json:"cidrs"`
			} `json:"spec"`
		} `json:"items"`
	}
	err = a.api.json(ctx, http.MethodGet, "/apis/networking.k8s.io/v1/servicecidrs", nil, &ranges)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	for _, item := range ranges.Items {
		for _, prefix := range item.Spec.CIDRs {
			invite.ServiceCIDRs = append(invite.ServiceCIDRs, prefix.Masked())
		}
	}
	if invite.ClusterDomain == "" {
		corefile, err := a.configMap(ctx, objectKey{"kube-system", "coredns"})
		if err != nil {
			return nil, err
		}
		invite.ClusterDomain = "cluster.local"
		if found := coreDNSDomain.FindStringSubmatch(corefile["Corefile"]); found != nil && guestName.MatchString(found[1]) {
			invite.ClusterDomain = found[1]
		}
	}
	return notes, nil
}
