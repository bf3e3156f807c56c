package e2e

import (
	"fmt"
	"sync"

	"github.com/weft-net/weft/bench/lab/script"
)

// running holds what each script has going of one kind; scripts run side by side.
type running[T any] struct {
	mu   sync.Mutex
	runs map[*script.Run]*T
}

// begin has start begin it, once for a script at a time.
func (r *running[T]) begin(run *script.Run, what string, start func() (*T, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs[run] != nil {
		return fmt.Errorf("%s is running already", what)
	}
	begun, err := start()
	if err != nil {
		return err
	}
	if r.runs == nil {
		r.runs = map[*script.Run]*T{}
	}
	r.runs[run] = begun
	return nil
}

// of is what a script has going.
func (r *running[T]) of(run *script.Run, what string) (*T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs[run] == nil {
		return nil, fmt.Errorf("%s was not begun", what)
	}
	return r.runs[run], nil
}

// end is of, for the last time.
func (r *running[T]) end(run *script.Run, what string) (*T, error) {
	ended, err := r.of(run, what)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, run)
	return ended, err
}
