package datapath

import (
	"context"
	"errors"
	"fmt"
)

// measureSet opens all paths over one underlay and measures round by round,
// path after path, so that what disturbs one disturbs all. What fails is part
// of the rows.
func (b *bench) measureSet(ctx context.Context, set Set) (rows []Row, problems []string, err error) {
	b.Progress(fmt.Sprintf("underlay %s: %s", set.Underlay.Name, set.Underlay.About))
	lanes := make([]*lane, len(b.Paths))
	defer func() {
		for _, l := range lanes {
			if err := l.close(); err != nil {
				problems = append(problems, fmt.Sprintf("close path %s over underlay %s: %v", l.path.Name, set.Underlay.Name, err))
			}
		}
	}()
	for i, path := range b.Paths {
		lanes[i] = &lane{bench: b, underlay: set.Underlay, path: path}
		if err := lanes[i].open(ctx); err != nil {
			b.Progress(err.Error())
		}
	}
	var results []*result
	for _, t := range set.Tests {
		for _, l := range lanes {
			if t.over(l.path) == nil {
				continue
			}
			results = append(results, &result{lane: l, test: t})
		}
	}
	for range b.Rounds {
		for _, r := range results {
			s, err := r.lane.measure(ctx, r.test)
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
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
	return rows, nil, nil
}

// lane is a path over an underlay, open as far as that works.
type lane struct {
	bench    *bench
	underlay Underlay
	path     Path
	way      *way  // nil while it is not open
	broken   error // why it could not be opened
}

func (l *lane) open(ctx context.Context) error {
	l.way, l.broken = l.bench.openWay(ctx, l.underlay, l.path)
	return l.broken
}

func (l *lane) close() error {
	if l == nil || l.way == nil {
		return nil
	}
	w := l.way
	l.way = nil
	return w.close()
}

// measure runs a test once. After a failure it opens the path anew, so that
// the next test does not suffer from what this one left.
func (l *lane) measure(ctx context.Context, t Test) (sample, error) {
	if l.way == nil {
		return sample{}, l.broken
	}
	s, err := l.bench.measure(ctx, l.way, t)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	return sample{}, errors.Join(err, l.close(), l.open(ctx))
}

// result is what one test has told of one lane.
type result struct {
	lane     *lane
	test     Test
	samples  []sample
	failures []error
}

// progress is a line about one measurement.
func (r *result) progress(s sample, err error) string {
	line := fmt.Sprintf("%s  %-9s  %-17s", r.lane.underlay.Name, r.test.Name, r.lane.path.Name)
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
