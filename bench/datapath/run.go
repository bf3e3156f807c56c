package datapath

import (
	"context"
	"errors"
	"fmt"
)

// measureUnderlay opens all paths over one underlay and measures round by
// round, path after path, so that what disturbs one disturbs all.
func (b *bench) measureUnderlay(ctx context.Context, underlay Underlay) (rows []Row, err error) {
	var ways []*way
	defer func() {
		for _, w := range ways {
			err = errors.Join(err, w.close())
		}
	}()
	b.Progress(fmt.Sprintf("underlay %s: %s", underlay.Name, underlay.About))
	for _, path := range b.Paths {
		w, err := b.openWay(ctx, underlay, path)
		if err != nil {
			return nil, err
		}
		ways = append(ways, w)
	}
	results := make([]result, 0, len(b.Tests)*len(ways))
	for _, t := range b.Tests {
		for _, w := range ways {
			results = append(results, result{underlay: underlay, path: w.path, test: t})
		}
	}
	for round := range b.Rounds {
		for i := range results {
			r, w := &results[i], ways[i%len(ways)]
			s, err := b.measure(ctx, w, r.test)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			b.Progress(r.progress(round+1, b.Rounds, s, err))
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
func (r *result) progress(round, rounds int, s sample, err error) string {
	line := fmt.Sprintf("  %s %d/%d %-9s %-17s", r.underlay.Name, round, rounds, r.test.Name, r.path.Name)
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
