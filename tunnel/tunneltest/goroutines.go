package tunneltest

import (
	"runtime"
	"strings"
)

// Goroutines counts those with a function on their stack whose name has a text
// in it, as in "weft/tunnel/engine". The runtime has others, which come and go.
func Goroutines(of string) (count int) {
	stacks := make([]byte, 1<<20)
	for _, stack := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, of) {
			count++
		}
	}
	return count
}
