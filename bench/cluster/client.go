package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// The content types of request bodies.
const (
	jsonType       = "application/json"
	mergePatchType = "application/merge-patch+json" // RFC 7396
	applyType      = "application/apply-patch+yaml"
)

// StatusError is a refusal by the API server.
type StatusError struct {
	Code    int
	Message string
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Code, http.StatusText(e.Code), e.Message)
}

// Request asks the API server as administrator. body is sent as JSON, or as a
// JSON merge patch with PATCH; the answer is decoded into out. Either may be
// nil. A refusal is a *StatusError.
func (c *Cluster) Request(ctx context.Context, method, path string, body, out any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	contentType := jsonType
	if method == http.MethodPatch {
		contentType = mergePatchType
	}
	return c.send(ctx, method, path, contentType, data, out)
}

func (c *Cluster) send(ctx context.Context, method, path, contentType string, body []byte, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+c.admin)
	request.Header.Set("Content-Type", contentType)
	response, err := c.client.Do(request)
	if err != nil {
		return fmt.Errorf("ask kube-apiserver: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		var status struct{ Message string }
		if json.Unmarshal(answer, &status) != nil {
			status.Message = string(answer)
		}
		return fmt.Errorf("%s %s: %w", method, path, &StatusError{Code: response.StatusCode, Message: status.Message})
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return nil
}

// AddNode creates a Node as a kubelet would register it.
func (c *Cluster) AddNode(ctx context.Context, name string, internal ...netip.Addr) error {
	type object = map[string]any
	addresses := []object{{"type": "Hostname", "address": name}}
	for _, addr := range internal {
		addresses = append(addresses, object{"type": "InternalIP", "address": addr})
	}
	return c.Request(ctx, http.MethodPost, "/api/v1/nodes", object{
		"apiVersion": "v1", "kind": "Node",
		"metadata": object{"name": name, "labels": object{"kubernetes.io/os": "linux", "kubernetes.io/hostname": name}},
		"status": object{"addresses": addresses, "conditions": []object{
			{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "no kubelet here"},
		}},
	}, nil)
}

// DeleteNode deletes a Node.
func (c *Cluster) DeleteNode(ctx context.Context, name string) error {
	return c.Request(ctx, http.MethodDelete, "/api/v1/nodes/"+name, nil, nil)
}

// PodCIDRs waits until the Node has been given its podCIDRs.
func (c *Cluster) PodCIDRs(ctx context.Context, name string) ([]netip.Prefix, error) {
	for {
		var node struct {
			Spec struct{ PodCIDRs []netip.Prefix }
		}
		if err := c.Request(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &node); err != nil {
			return nil, err
		}
		if len(node.Spec.PodCIDRs) > 0 {
			return node.Spec.PodCIDRs, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for podCIDRs of %s: %w", name, err)
		}
	}
}

// Apply applies a manifest of one or more YAML documents, as `kubectl apply
// --server-side --validate=strict` does: an unknown field is an error.
func (c *Cluster) Apply(ctx context.Context, manifest []byte) error {
	for _, document := range bytes.Split(manifest, []byte("\n---\n")) {
		path, err := objectPath(document)
		if err != nil {
			return err
		}
		if path == "" {
			continue
		}
		if err := c.send(ctx, http.MethodPatch, path+"?fieldManager=weft&force=true&fieldValidation=Strict", applyType, document, nil); err != nil {
			return fmt.Errorf("apply manifest: %w", err)
		}
	}
	return nil
}

// objectPath is where the API server keeps the document's object; empty if
// the document has none.
func objectPath(document []byte) (string, error) {
	var object struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name, Namespace string }
	}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return "", fmt.Errorf("read manifest: %w", err)
	}
	if object.Kind == "" {
		return "", nil
	}
	// The resource is the plural of the kind, for every kind a manifest of ours
	// may hold.
	resource := strings.ToLower(object.Kind) + "s"
	if stem, ok := strings.CutSuffix(resource, "ys"); ok {
		resource = stem + "ies"
	}
	path := "/apis/" + object.APIVersion
	if !strings.Contains(object.APIVersion, "/") {
		path = "/api/" + object.APIVersion
	}
	if object.Metadata.Namespace != "" {
		path += "/namespaces/" + url.PathEscape(object.Metadata.Namespace)
	}
	return path + "/" + resource + "/" + url.PathEscape(object.Metadata.Name), nil
}

// ConfigMap returns a ConfigMap's files.
func (c *Cluster) ConfigMap(ctx context.Context, namespace, name string) (map[string]string, error) {
	var object struct{ Data map[string]string }
	err := c.Request(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace+"/configmaps/"+name, nil, &object)
	return object.Data, err
}

// Account is a ServiceAccount, as a Pod on Node would use it.
type Account struct {
	Namespace, Name string
	// Node is the Node the token is bound to; empty: to none.
	Node string
}

// AccountKubeconfig writes a kubeconfig with a fresh token of the account: who
// uses it has exactly the account's rights.
func (c *Cluster) AccountKubeconfig(ctx context.Context, account Account, path string) error {
	type object = map[string]any
	spec := object{"expirationSeconds": 3600}
	if account.Node != "" {
		var node struct{ Metadata struct{ UID string } }
		if err := c.Request(ctx, http.MethodGet, "/api/v1/nodes/"+account.Node, nil, &node); err != nil {
			return err
		}
		spec["boundObjectRef"] = object{"apiVersion": "v1", "kind": "Node", "name": account.Node, "uid": node.Metadata.UID}
	}
	var answer struct{ Status struct{ Token string } }
	resource := "/api/v1/namespaces/" + account.Namespace + "/serviceaccounts/" + account.Name + "/token"
	request := object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
	if err := c.Request(ctx, http.MethodPost, resource, request, &answer); err != nil {
		return err
	}
	return c.writeKubeconfig(path, account.Name, answer.Status.Token)
}
