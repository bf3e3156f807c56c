// Package userns gives a process of an ordinary user on Linux the rights to
// program a network namespace, without leaving the host's: it runs the process
// again in a user namespace that owns the other network namespace, and does
// single things in there on threads of their own. A small process holds what
// nobody else does, so that it outlives an agent with all pods in it. It must
// never decide what is programmed, and never touch a namespace of somebody
// else.
package userns

import (
	"errors"
	"log/slog"
)

// ErrUnavailable is wrapped by errors that say why this machine lets this user
// make or enter no namespaces, and what would allow it.
var ErrUnavailable = errors.New("user namespaces are not available")

// Config says which namespaces Open opens.
type Config struct {
	// Dir is a directory of this user alone; it is made where it is missing. In
	// it is the number of the process that holds the namespaces.
	Dir string
	// Netns is the file of a network namespace that somebody else holds, such as
	// /proc/PID/ns/net; empty: that which Hold holds, made where there is none.
	Netns string
	// Hold is the command line of a program that calls Hold.
	Hold   []string
	Logger *slog.Logger
}
