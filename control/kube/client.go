package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// api is the few requests weft makes. client-go's clientset would bring the
// types of every API group with it, and twice the binary.
type api struct {
	rest      *rest.RESTClient
	discovery *rest.RESTClient // the group of EndpointSlices
	params    runtime.ParameterCodec
	http      *http.Client
}

// newAPI builds a client; config is its own from then on.
func newAPI(config *rest.Config) (api, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)); err != nil {
		return api{}, fmt.Errorf("register Kubernetes types: %w", err)
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.UserAgent = "weft"
	config.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return api{}, fmt.Errorf("build HTTP client: %w", err)
	}
	a := api{params: runtime.NewParameterCodec(scheme), http: client}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	if a.rest, err = rest.RESTClientForConfigAndClient(config, client); err != nil {
		return api{}, fmt.Errorf("build Kubernetes client: %w", err)
	}
	config.APIPath, config.GroupVersion = "/apis", &discoveryv1.SchemeGroupVersion
	if a.discovery, err = rest.RESTClientForConfigAndClient(config, client); err != nil {
		return api{}, fmt.Errorf("build Kubernetes client: %w", err)
	}
	return a, nil
}

// restConfig finds the API server and the credentials for it.
func restConfig(cfg Config) (*rest.Config, error) {
	if cfg.Invite != nil {
		return cfg.Invite.restConfig()
	}
	if cfg.Kubeconfig != "" {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig}
		var overrides clientcmd.ConfigOverrides
		overrides.ClusterInfo.Server = cfg.APIURL
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &overrides).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig-file: %w", err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	switch {
	case err == nil && cfg.APIURL != "":
		config.Host = cfg.APIURL
	case errors.Is(err, rest.ErrNotInCluster) && cfg.APIURL != "":
		return &rest.Config{Host: cfg.APIURL}, nil
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("this is no Pod: set --kubeconfig-file, or --kube-api-url")
	case err != nil:
		return nil, fmt.Errorf("read the Pod's credentials: %w", err)
	}
	return config, nil
}

// nodes begins a request on Nodes. It is never repeated within: whoever asks
// says why it takes so long, and waits as long as the server tells him to.
func (a api) nodes(verb string) *rest.Request {
	return a.rest.Verb(verb).MaxRetries(0).Resource("nodes")
}

func (a api) close() { a.http.CloseIdleConnections() }

func (a api) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := new(corev1.Pod)
	if err := a.rest.Get().MaxRetries(0).Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(pod); err != nil {
		return nil, fmt.Errorf("get Pod %s/%s: %w", namespace, name, err)
	}
	return pod, nil
}

func (a api) node(ctx context.Context, name string) (*corev1.Node, error) {
	node := new(corev1.Node)
	err := a.nodes(http.MethodGet).Name(name).Do(ctx).Into(node)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%w %q: either its kubelet has not registered it yet, or --node-name is wrong", errNoNode, name)
	}
	if err != nil {
		return nil, fmt.Errorf("get Node %s: %w", name, err)
	}
	return node, nil
}

// patchNode changes a Node's status and annotations by a strategic merge
// patch, which merges conditions by type, and returns the result.
func (a api) patchNode(ctx context.Context, name string, patch []byte) (*corev1.Node, error) {
	node := new(corev1.Node)
	err := a.nodes(http.MethodPatch).SetHeader("Content-Type", string(types.StrategicMergePatchType)).
		Name(name).SubResource("status").Body(patch).Do(ctx).Into(node)
	if err != nil {
		return nil, fmt.Errorf("patch status of Node %s: %w", name, err)
	}
	return node, nil
}

func (a api) listNodes(ctx context.Context, options metav1.ListOptions) (*corev1.NodeList, error) {
	list := new(corev1.NodeList)
	err := a.nodes(http.MethodGet).VersionedParams(&options, a.params).Do(ctx).Into(list)
	return list, err
}

func (a api) watchNodes(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return a.watch(ctx, a.nodes(http.MethodGet), options)
}

// watch opens the watch or streaming list that request begins.
func (a api) watch(ctx context.Context, request *rest.Request, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	stream, err := request.VersionedParams(&options, a.params).Watch(ctx)
	if err != nil {
		return nil, err
	}
	// client-go makes a watch that has ended already out of a connection that
	// was closed without an answer, as load balancers without a server do.
	if _, open := stream.(*watch.StreamWatcher); !open {
		return nil, errNoAnswer
	}
	return stream, nil
}

var errNoNode = errors.New("there is no Node")

var errNoAnswer = errors.New("the connection was closed without an answer")

// clientLogsOnce guards client-go's logger, of which a process has only one.
var clientLogsOnce sync.Once

// routeClientLogs sends what client-go has to say to the debug level: what
// matters of it is reported by Waiting, once.
func routeClientLogs(logger *slog.Logger) {
	clientLogsOnce.Do(func() {
		klog.SetSlogLogger(slog.New(demoted{logger.Handler()}).With("from", "client-go"))
	})
}

// demoted logs every record at the debug level.
type demoted struct{ slog.Handler }

// Enabled implements slog.Handler.
func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (d demoted) Handle(ctx context.Context, record slog.Record) error {
	record.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
