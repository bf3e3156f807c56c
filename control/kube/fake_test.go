package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// fakeServer is an API server that knows Nodes and Pods, with the semantics
// of the real one as far as a Source can tell: resource versions, streaming
// lists, bookmarks, strategic merge patches. Its faults are switches.
type fakeServer struct {
	t *testing.T
	*httptest.Server

	mu      sync.Mutex
	nodes   map[string]*corev1.Node
	pods    map[string]*corev1.Pod
	leases  map[string]*coordinationv1.Lease
	told    []corev1.Event // as created
	repeats []string       // bodies of patches of those
	version int
	events  []fakeEvent // all, oldest first
	moved   chan struct{}
	patches []string // bodies, oldest first
	lists   int      // plain lists served

	oldest     int  // events up to this version are forgotten: a watch from before gets 410
	down       bool // connections are cut
	refusal    int  // status with which every request is refused; 0: none is
	noStreams  bool // streaming lists are refused, as by servers without the feature
	failPatch  int  // so many patches are refused
	hideAll    bool // lists hold nothing
	connection int  // of the watches; a change cuts those that are open

	closed int // connections
}

type fakeEvent struct {
	version int
	kind    string
	node    *corev1.Node
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{t: t, nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}, leases: map[string]*coordinationv1.Lease{}, version: 100, oldest: 100, moved: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", f.listOrWatch)
	mux.HandleFunc("GET /api/v1/nodes/{name}", f.getNode)
	mux.HandleFunc("PATCH /api/v1/nodes/{name}/status", f.patchNode)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{name}", f.getPod)
	mux.HandleFunc("POST "+eventsPath, f.putEvent)
	mux.HandleFunc("PATCH "+eventsPath+"/{name}", f.putEvent)
	mux.HandleFunc("GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}", f.getLease)
	mux.HandleFunc("PUT /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}", f.putLease)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.isDown() {
			panic(http.ErrAbortHandler)
		}
		switch f.refuses() {
		case http.StatusUnauthorized:
			f.refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized")
			return
		case http.StatusForbidden:
			f.refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "forbidden")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	f.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			f.change(func() { f.closed++ })
		}
	}
	f.Start()
	t.Cleanup(func() {
		f.change(func() { f.connection++ })
		f.Close()
	})
	return f
}

func (f *fakeServer) isDown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

func (f *fakeServer) refuses() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refusal
}

// change runs do and wakes every watch.
func (f *fakeServer) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	f.wake()
}

// wake must be called with f.mu held.
func (f *fakeServer) wake() {
	close(f.moved)
	f.moved = make(chan struct{})
}

// set creates or updates a Node.
func (f *fakeServer) set(node *corev1.Node) {
	f.change(func() { f.store(node.DeepCopy()) })
}

// edit changes a Node in place.
func (f *fakeServer) edit(name string, do func(*corev1.Node)) {
	f.change(func() {
		node := f.nodes[name].DeepCopy()
		do(node)
		f.store(node)
	})
}

// store must be called with f.mu held.
func (f *fakeServer) store(node *corev1.Node) {
	kind := "MODIFIED"
	if f.nodes[node.Name] == nil {
		kind = "ADDED"
	}
	f.version++
	node.ResourceVersion = strconv.Itoa(f.version)
	node.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
	f.nodes[node.Name] = node
	f.events = append(f.events, fakeEvent{f.version, kind, node})
}

func (f *fakeServer) remove(name string) {
	f.change(func() {
		node := f.nodes[name].DeepCopy()
		delete(f.nodes, name)
		f.version++
		node.ResourceVersion = strconv.Itoa(f.version)
		f.events = append(f.events, fakeEvent{f.version, "DELETED", node})
	})
}

func (f *fakeServer) get(name string) *corev1.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[name].DeepCopy()
}

// await waits until good holds, which it asks after every change.
func (f *fakeServer) await(t *testing.T, what string, good func() bool) {
	t.Helper()
	for {
		f.mu.Lock()
		moved := f.moved
		f.mu.Unlock()
		if good() {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("still waiting for %s", what)
		case <-moved:
		}
	}
}

func (f *fakeServer) sentPatches() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.patches)
}

func (f *fakeServer) refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	f.encode(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message})
}

func (f *fakeServer) encode(w io.Writer, value any) {
	if err := json.NewEncoder(w).Encode(value); err != nil {
		f.t.Logf("fake server: %v", err) // the client has gone
	}
}

func (f *fakeServer) getNode(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	node := f.nodes[r.PathValue("name")]
	if node == nil {
		f.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "nodes not found")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, node)
}

func (f *fakeServer) getPod(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pod := f.pods[r.PathValue("namespace")+"/"+r.PathValue("name")]
	if pod == nil {
		f.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "pods not found")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, pod)
}

func (f *fakeServer) getLease(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := f.leases[r.PathValue("name")]
	if held == nil {
		f.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "leases not found")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, held)
}

// putLease stores a Lease over the version that was read, and no other.
func (f *fakeServer) putLease(w http.ResponseWriter, r *http.Request) {
	sent := &coordinationv1.Lease{}
	if err := json.NewDecoder(r.Body).Decode(sent); err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if held := f.leases[r.PathValue("name")]; held == nil || held.ResourceVersion != sent.ResourceVersion {
		f.refuse(w, http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified")
		return
	}
	f.version++
	sent.ResourceVersion = strconv.Itoa(f.version)
	f.leases[sent.Name] = sent
	f.wake()
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, sent)
}

// lease is the Lease as it is now.
func (f *fakeServer) lease(name string) *coordinationv1.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leases[name].DeepCopy()
}

func (f *fakeServer) patchNode(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failPatch > 0 {
		f.failPatch--
		f.refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, "etcd is slow")
		return
	}
	before := f.nodes[r.PathValue("name")]
	if before == nil {
		f.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "nodes not found")
		return
	}
	if got := r.Header.Get("Content-Type"); got != "application/strategic-merge-patch+json" {
		f.t.Errorf("patch has content type %q", got)
	}
	f.patches = append(f.patches, string(body))
	original, err := json.Marshal(before)
	if err != nil {
		f.t.Error(err)
		return
	}
	patched, err := strategicpatch.StrategicMergePatch(original, body, &corev1.Node{})
	if err != nil {
		f.refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	after := &corev1.Node{}
	if err := json.Unmarshal(patched, after); err != nil {
		f.t.Error(err)
		return
	}
	f.store(after)
	f.wake()
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, after)
}

func (f *fakeServer) listOrWatch(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Get("watch") != "true" && query.Get("watch") != "1" {
		f.list(w)
		return
	}
	f.mu.Lock()
	noStreams, oldest, connection, from := f.noStreams, f.oldest, f.connection, f.version
	initial := f.listed()
	f.mu.Unlock()
	stream := query.Get("sendInitialEvents") == "true"
	if stream && noStreams {
		f.refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	if !stream {
		version, err := strconv.Atoi(query.Get("resourceVersion"))
		if err != nil || version < oldest {
			f.refuse(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
			return
		}
		from = version
	}
	w.Header().Set("Content-Type", "application/json")
	if stream {
		for _, node := range initial {
			f.encode(w, map[string]any{"type": "ADDED", "object": node})
		}
		f.encode(w, map[string]any{"type": "BOOKMARK", "object": map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(from), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
		}})
	}
	f.follow(w, r, from, connection)
}

// follow streams every event after from until the connection is cut.
func (f *fakeServer) follow(w http.ResponseWriter, r *http.Request, from, connection int) {
	for {
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		f.mu.Lock()
		moved, cut := f.moved, f.connection != connection
		var events []fakeEvent
		for _, event := range f.events {
			if event.version > from {
				events = append(events, event)
			}
		}
		f.mu.Unlock()
		if cut {
			return
		}
		for _, event := range events {
			f.encode(w, map[string]any{"type": event.kind, "object": event.node})
			from = event.version
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-r.Context().Done():
			return
		case <-moved:
		}
	}
}

// listed is every Node there is to list. f.mu must be held.
func (f *fakeServer) listed() []*corev1.Node {
	var nodes []*corev1.Node
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		if !f.hideAll {
			nodes = append(nodes, f.nodes[name])
		}
	}
	return nodes
}

func (f *fakeServer) list(w http.ResponseWriter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists++
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	list.ResourceVersion = strconv.Itoa(f.version)
	for _, node := range f.listed() {
		list.Items = append(list.Items, *node)
	}
	w.Header().Set("Content-Type", "application/json")
	f.encode(w, list)
}

// stop cuts every connection and refuses new ones, as a dead API server does;
// forget is whether it has also compacted its history when it comes back.
func (f *fakeServer) stop() { f.change(func() { f.down = true; f.connection++ }) }

func (f *fakeServer) start(forget bool) {
	f.change(func() {
		f.down = false
		if forget {
			f.oldest = f.version + 1
		}
	})
}

// reasons collects what a Source is waiting for.
type reasons struct {
	mu   sync.Mutex
	last string
	all  []string
	news chan struct{}
}

func newReasons() *reasons { return &reasons{news: make(chan struct{})} }

func (r *reasons) Waiting(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = reason
	r.all = append(r.all, reason)
	close(r.news)
	r.news = make(chan struct{})
}

// await waits until the reason contains text; the empty text waits for none.
func (r *reasons) await(t *testing.T, text string) {
	t.Helper()
	for {
		r.mu.Lock()
		last, news := r.last, r.news
		r.mu.Unlock()
		if last == text || text != "" && strings.Contains(last, text) {
			return
		}
		select {
		case <-t.Context().Done():
			t.Errorf("still waiting for the reason %q, got %q", text, last)
			return
		case <-news:
		}
	}
}

func (r *reasons) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%q", r.all)
}

// putEvent creates an Event, or patches one.
func (f *fakeServer) putEvent(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	var event corev1.Event
	if err := json.Unmarshal(body, &event); err != nil {
		f.t.Error(err)
	}
	f.change(func() {
		if r.Method == http.MethodPost {
			f.told = append(f.told, event)
		} else {
			f.repeats = append(f.repeats, string(body))
		}
	})
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(event)
}
