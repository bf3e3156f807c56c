package underlay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestTick holds what Watch does where nobody tells of changes.
func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		tokens := tick(ctx)
		for i := range 3 {
			<-tokens
			if got, want := time.Since(began), time.Duration(i+1)*lookInterval; got != want {
				t.Errorf("token after %v, want %v", got, want)
			}
		}
		time.Sleep(time.Hour) // nobody takes them: the loop must not block
		<-tokens
		cancel()
	})
}
