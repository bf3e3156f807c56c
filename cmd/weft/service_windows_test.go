package main

import (
	"context"
	"errors"
	"strings"
	"testing"
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
	ended := false
	p := &program{ctx: t.Context(), run: func(ctx context.Context) int {
		<-ctx.Done()
		ended = errors.Is(ctx.Err(), context.Canceled)
		return 7
	}}
	if err := errors.Join(p.Start(nil), p.Stop(nil)); err != nil || !ended || p.code != 7 {
		t.Errorf("stop: %v, ended %t, code %d", err, ended, p.code)
	}
}
