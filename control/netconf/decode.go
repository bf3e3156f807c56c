package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// decode unmarshals one JSON object and words errors in terms of its keys.
// within is the key the object belongs to, or empty.
func decode(data []byte, within string, into any) error {
	what := within
	if what == "" {
		what = "the document"
	}
	if trimmed := bytes.TrimSpace(data); len(trimmed) == 0 || trimmed[0] != '{' {
		return fmt.Errorf(`%s is not a JSON object; allowed: {"Key": value, ...}`, what)
	}
	err := json.Unmarshal(data, into)
	var typeErr *json.UnmarshalTypeError
	var syntaxErr *json.SyntaxError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &typeErr):
		key := typeErr.Field
		if within != "" {
			key = within + "." + key
		}
		return fmt.Errorf("%s is a JSON %s; allowed: a %s", key, typeErr.Value, kindWord(typeErr.Type.Kind().String()))
	case errors.As(err, &syntaxErr):
		before := data[:min(int(syntaxErr.Offset), len(data))]
		return fmt.Errorf("line %d: %w", 1+bytes.Count(before, []byte("\n")), err)
	default:
		return err
	}
}

// kindWord translates Go's name of a kind for someone who writes JSON.
func kindWord(kind string) string {
	switch kind {
	case "bool":
		return "boolean (true or false)"
	case "int", "int64":
		return "whole number"
	case "slice":
		return "list"
	default:
		return kind
	}
}

// shorten bounds foreign text that is repeated in an error.
func shorten(text string) string {
	const limit = 64
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "..."
}

// lowerASCII lowers A to Z only: a type name is no prose, and no other letter
// may turn into one of its letters.
func lowerASCII(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, text)
}
