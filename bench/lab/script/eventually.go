package script

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// eventually repeats a command until it succeeds and prints what it should.
func eventually(run *Run, args []string) error {
	timeout := 30 * time.Second
	var match, noMatch *regexp.Regexp
	for ; len(args) > 0; args = args[1:] {
		name, value, ok := strings.Cut(args[0], "=")
		if !ok {
			break
		}
		var err error
		switch name {
		case "timeout":
			timeout, err = time.ParseDuration(value)
		case "match":
			match, err = regexp.Compile("(?m)" + value)
		case "nomatch":
			noMatch, err = regexp.Compile("(?m)" + value)
		default:
			err = fmt.Errorf("no such option: want timeout, match or nomatch")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
	}
	neg := len(args) > 0 && args[0] == "!"
	if neg {
		args = args[1:]
	}
	if len(args) == 0 || run.commands[args[0]] == nil || args[0] == "eventually" {
		return usage("eventually [timeout=30s] [match=REGEXP] [nomatch=REGEXP] [!] COMMAND..., with one of the lab's commands")
	}
	return run.within(timeout, func(context.Context) error {
		if err := run.invoke(args[0], neg, args[1:]); err != nil {
			return err
		}
		return checkOutput(run.Stdout, match, noMatch)
	})
}

func checkOutput(out *bytes.Buffer, match, noMatch *regexp.Regexp) error {
	if match != nil && !match.Match(out.Bytes()) {
		return fmt.Errorf("no match for %q in the output", match)
	}
	if noMatch != nil && noMatch.Match(out.Bytes()) {
		return fmt.Errorf("a match for %q in the output", noMatch)
	}
	return nil
}
