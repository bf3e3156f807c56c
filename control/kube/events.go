package kube

import (
	"context"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// happening is something about this host that people may want to look up.
type happening struct {
	kind         string // corev1.EventTypeNormal or EventTypeWarning
	reason, note string
}

// maxHappenings wait to be told; more at one time are told by nobody.
const maxHappenings = 64

// Event keeps an Event of the own Node, for kubectl describe node. It does not
// wait, and what cannot be told is lost: the log has it as well. Guests have no
// right to, and do not try.
func (s *Source) Event(warning bool, reason, note string) {
	if s.cfg.Invite != nil {
		return
	}
	h := happening{corev1.EventTypeNormal, reason, note}
	if warning {
		h.kind = corev1.EventTypeWarning
	}
	select {
	case s.happenings <- h:
	default:
	}
}

// tellEvents does so until ctx is done. The library joins those that repeat, and
// bounds how many there are.
func (s *Source) tellEvents(ctx context.Context, node string) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(eventSink{ctx, s.api})
	recorder := broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: "weft", Host: node})
	// As the kubelet refers to its Node.
	about := &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: node, UID: types.UID(node)}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h := <-s.happenings:
			recorder.Event(about, h.kind, h.reason, h.note)
		}
	}
}

// eventSink writes Events. Those of Nodes, which have no namespace, are in the default one.
type eventSink struct {
	ctx context.Context
	api api
}

const eventsPath = "/api/v1/namespaces/" + metav1.NamespaceDefault + "/events"

// Create implements record.EventSink.
func (e eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	event.APIVersion, event.Kind = "v1", "Event"
	return event, e.api.json(e.ctx, http.MethodPost, eventsPath, event, event)
}

// Update implements record.EventSink.
func (e eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	return event, e.api.json(e.ctx, http.MethodPut, eventsPath+"/"+event.Name, event, event)
}

// Patch implements record.EventSink.
func (e eventSink) Patch(event *corev1.Event, patch []byte) (*corev1.Event, error) {
	answer, err := e.api.rest.Patch(types.StrategicMergePatchType).AbsPath(eventsPath + "/" + event.Name).Body(patch).Do(e.ctx).Raw()
	if err != nil {
		return nil, err
	}
	return event, decodeAnswer(answer, event)
}
