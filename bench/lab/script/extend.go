package script

import (
	"fmt"
	"os/exec"
	"path/filepath"
)

// Getenv is a variable of the script's environment, for commands of a test's own.
func (r *Run) Getenv(name string) string { return r.getenv(name) }

// Background starts cmd as the job of that name, as "on -bg" does: its output
// goes to $WORK/NAME.log, and it ends with the script.
func (r *Run) Background(name string, cmd *exec.Cmd) error {
	if have := r.jobs[name]; have != nil && have.running() {
		return fmt.Errorf("job %s is running", name)
	}
	job, err := begin(cmd, filepath.Join(r.work, name+".log"))
	if err != nil {
		return err
	}
	r.jobs[name] = job
	return nil
}

// Defer has f called when the script ends, before its lab goes away; the last
// one first.
func (r *Run) Defer(f func() error) { r.deferred = append(r.deferred, f) }

// Do runs one of the script's commands, for commands of a test's own that are
// made of others. Its output is in Stdout and Stderr.
func (r *Run) Do(name string, args ...string) error {
	command := r.commands[name]
	if command == nil {
		return fmt.Errorf("no command %q", name)
	}
	return command(r, args)
}
