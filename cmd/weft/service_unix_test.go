//go:build !windows

package main

import (
	"strings"
	"testing"
)

func TestServiceRights(t *testing.T) {
	for _, tt := range []struct {
		asUser bool
		user   int
		want   string
	}{
		{false, 0, ""}, {true, 1000, ""}, {false, 1000, "needs root: use sudo, or --user"}, {true, 0, "leave --user out"},
	} {
		err := needsRoot(serviceOptions{user: tt.asUser}, tt.user)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
