package datapath

import (
	"context"
	"errors"
	"fmt"
)

// measureSet opens all paths over one underlay and measures round by round,
// path after path, so that what disturbs one disturbs all.
func (b *bench) measureSet(ctx context.Context, set Set) (rows []Row, err error) {
	var ways []*way
	defer func() {
		for _, w := range ways {
			err = errors.Join(err, w.close())
		}
	}()
	b.Progress(fmt.Sprintf("underlay %s: %s", set.Underlay.Name, set.Underlay.About))
	for _, path := range b.Paths {
		w, err := b.openWay(ctx, set.Underlay, path)
		if err != nil {
			return nil, err
		}
		ways = append(ways, w)
	}
	var results []result
	for _, t := range set.Tests {
		for _, w := range ways {
			results = append(results, result{underlay: set.Underlay, path: w.path, test: t})
		}
	}
	for range b.Rounds {
		for i := range results {
			r, w := &results[i], ways[i%len(ways)]
			s, err := b.measure(ctx, w, r.test)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			b.done++
			b.Progress(fmt.Sprintf("%4d/%d  %s", b.done, b.total(), r.progress(s, err)))
			if err != nil {
				r.failures = append(r.failures, err)
				continue
			}
			r.samples = append(r.samples, s)
		}
	}
	for _, r := range results {
		rows = append(rows, r.rows()...)
	}
	return rows, nil
}

// result is what one test has told of one path over one underlay.
type result struct {
	underlay Underlay
	path     Path
	test     Test
	samples  []sample
	failures []error
}

// progress is a line about one measurement.
func (r *result) progress(s sample, err error) string {
	line := fmt.Sprintf("%s  %-9s  %-17s", r.underlay.Name, r.test.Name, r.path.Name)
	if err != nil {
		return fmt.Sprintf("%s failed: %v", line, err)
	}
	for _, figure := range r.test.Figures {
		line += fmt.Sprintf(" %8s %s", short(figure.value(s)), figure.Unit)
	}
	if s.busy {
		line += " (the machine was busy before)"
	}
	return line
}
