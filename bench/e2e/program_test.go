package e2e

import (
	"bytes"
	"os"
	"testing"
)

// The linker drops the methods that nobody calls, which is a fifth of the agent
// and of its memory, unless something may call methods by a name that is known
// only when it runs. Templates do.
func TestProgramHasNoTemplates(t *testing.T) {
	program, err := os.ReadFile(os.Getenv("WEFT_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	// Names of functions stay in a program that is stripped: tracebacks need them.
	if !bytes.Contains(program, []byte("main.agentCommand")) {
		t.Fatal("the program has no names of functions: this test would prove nothing")
	}
	if bytes.Contains(program, []byte("text/template.(*state).evalField")) {
		t.Error("the agent has text/template in it, which keeps every method of every type: build it with 'make build' (-tags=grpcnotrace), and find what uses templates with 'go build -tags=grpcnotrace -ldflags=-dumpdep ./cmd/weft'")
	}
}
