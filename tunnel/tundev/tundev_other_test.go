//go:build darwin || freebsd || windows

package tundev

import (
	"errors"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

// TestExplain: what lasts is told from what does not, and nothing of the
// system's own error is lost.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		err  error
		none bool
		want string
	}{
		{errRights, true, "needs"},
		{errors.New("odd"), false, "odd"},
	} {
		got := explain(tt.err)
		if !errors.Is(got, tt.err) || errors.Is(got, tunnel.ErrNoDevice) != tt.none || !strings.Contains(got.Error(), tt.want) {
			t.Errorf("explain(%v) = %v", tt.err, got)
		}
	}
}
