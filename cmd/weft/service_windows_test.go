package main

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/windows/svc"
)

func TestServiceRights(t *testing.T) {
	for _, tt := range []struct {
		asUser, elevated bool
		want             string
	}{
		{false, true, ""}, {false, false, "needs an administrator"}, {true, true, "no services of a user"}, {true, false, "no services of a user"},
	} {
		err := needsAdministrator(serviceOptions{user: tt.asUser}, tt.elevated)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// TestProgramStops: the manager's request to stop ends the program, and is
// answered after its end.
func TestProgramStops(t *testing.T) {
	out, problems := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = out, problems }()
	ended := false
	p := &program{ctx: t.Context(), logs: string([]byte{0}), run: func(ctx context.Context) int {
		<-ctx.Done()
		ended = true
		return 7
	}}
	requests, status := make(chan svc.ChangeRequest), make(chan svc.Status, 8)
	go func() {
		for _, cmd := range []svc.Cmd{svc.Interrogate, svc.Stop} {
			requests <- svc.ChangeRequest{Cmd: cmd}
		}
	}()
	if specific, code := p.Execute(nil, requests, status); specific || code != 0 || !ended || p.code != 7 {
		t.Errorf("stop: %t %d, ended %t, code %d", specific, code, ended, p.code)
	}
	for _, want := range []svc.State{svc.Running, svc.Running, svc.StopPending} {
		if got := <-status; got.State != want {
			t.Errorf("state %v, want %v", got.State, want)
		}
	}
}
