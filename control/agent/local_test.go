package agent

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestLocal: one agent per socket, again after its end.
func TestLocal(t *testing.T) {
	path := localPath(t)
	for range 2 {
		if _, err := FetchStatus(t.Context(), path); err == nil {
			t.Fatal("nobody answered")
		}
		listener, err := listenLocal(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- serve(ctx, listener, quietAgent().localAPI()) }()
		status, err := FetchStatus(ctx, path)
		if err != nil || status.Host != "a" || status.State != StateWaiting {
			t.Errorf("status %+v, %v", status, err)
		}
		if _, err := listenLocal(ctx, path); err == nil || !strings.Contains(err.Error(), "another agent is running") {
			t.Errorf("second agent: %v", err)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("serve ends with %v", err)
		}
	}
}

// TestLocalHalfClose: what forwards connections over the local API must be able
// to end one direction alone.
func TestLocalHalfClose(t *testing.T) {
	path := localPath(t)
	listener, err := listenLocal(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	echoed := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = io.Copy(conn, conn)
		}
		if err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		echoed <- err
	}()
	conn, err := DialLocal(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := strings.Repeat("weft", 50_000)
	go func() {
		_, err := io.WriteString(conn, want)
		if err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	if got, err := io.ReadAll(conn); err != nil || string(got) != want {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(want), err)
	}
	if err := <-echoed; err != nil {
		t.Error(err)
	}
}
